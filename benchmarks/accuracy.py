"""How often the answers are true: fresh cases drawn from a seed, as real files, through the whole product.

    python -m benchmarks.accuracy --seed 7 --cases 40
    python -m benchmarks.accuracy --seed 7 --url http://127.0.0.1:7860 --model demo   # a running server, any checkpoint

Pictures become PNG or JPEG files of 64 to 1024 px, clips H.264, documents PDFs. Prints JSON: per skill, language and
modality [right, asked]; the time error of `when`; with `--keep folder` the files and questions of what went wrong.
Answers are judged as in `training/evaluate.py`. A seed that was used to choose or tune anything proves nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, get_args

import av
import numpy as np
import pymupdf
from PIL import Image

from qwen3vl_webui.draft import Attached, Draft
from qwen3vl_webui.engine.contract import TokenEvent
from qwen3vl_webui.media import storyboard
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Clip
from qwen3vl_webui.prompt import lay_out
from qwen3vl_webui.settings import KVCacheKind, Quantization
from qwen3vl_webui.zoom import look_closer
from training.cases import make_case
from training.evaluate import STAMP, is_right
from training.exchanges import Case, Exchange, Moment, Still
from training.level import Level

LEVEL = Level(
    kinds=(("picture", 3), ("text", 1.5), ("pictures", 1), ("video", 4), ("document", 1.5), ("nothing", 0.4)),
    picture_pixels=(96 * 96, 1024 * 768),
    frame_pixels=(160 * 128, 640 * 384),
    moments=(5, 40),
    pages=(3, 12),
    longest_text=8,
    branches=2,
    turns=0.0,
    runs=0.5,
    wear=0.4,
)
FRAMES_PER_SECOND = 10
Ask = Callable[[Sequence[Path], str], str]


@dataclass(frozen=True)
class Drawn:
    """A case as files, in the order they are attached."""

    files: tuple[Path, ...]
    modality: str
    exchanges: tuple[Exchange, ...]


def write_clip(path: Path, moments: Sequence[Moment]) -> None:
    """Each moment stays until the next, the last for a second; before the first the screen is grey."""
    height, width, _ = moments[0].pixels.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "28", "preset": "veryfast", "g": "50"}
        grey = np.full_like(moments[0].pixels, 128)
        pictures = [grey, *(moment.pixels for moment in moments)]
        ends = [*(moment.seconds for moment in moments), moments[-1].seconds + 1]
        written = 0
        for picture, end in zip(pictures, ends, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            while written < round(end * FRAMES_PER_SECOND):
                frame.pts = written
                for packet in stream.encode(frame):
                    container.mux(packet)
                written += 1
        for packet in stream.encode():
            container.mux(packet)


def write_document(path: Path, case: Case) -> None:
    """Pages whose text layer the case gives are printed; the others are pictures, as from a scanner."""
    texts = [part for part in case.context if isinstance(part, str)]
    stills = [part for part in case.context if isinstance(part, Still)]
    with pymupdf.open() as pdf:
        for still, after in zip(stills, texts[1:], strict=True):
            height, width, _ = still.pixels.shape
            page = pdf.new_page(width=595, height=595 * height / width)
            lines = after.split("Page ")[0].strip("\n")
            if lines:
                page.insert_textbox((40, 60, 560, 590), lines, fontsize=60, fontname="hebo")
            else:
                picture = path.with_name("page.png")
                Image.fromarray(still.pixels).save(picture)
                page.insert_image(page.rect, filename=str(picture))
        pdf.save(path)


def draw(folder: Path, seed: str, kinds: Sequence[str], weights: Sequence[float]) -> Drawn:
    random = Random(seed)
    kind = random.choices(kinds, weights)[0]
    while True:
        case = make_case(kind, LEVEL, random)
        if kind != "document" or "Page 1: " in str(case.context[0]):
            break
    exchanges = tuple(branch[0] for branch in case.branches)
    if kind == "video":
        write_clip(folder / "clip.mp4", [part for part in case.context if isinstance(part, Moment)])
        return Drawn((folder / "clip.mp4",), kind, exchanges)
    if kind == "document":
        write_document(folder / "pages.pdf", case)
        return Drawn((folder / "pages.pdf",), kind, exchanges)
    files = []
    for number, still in enumerate(part for part in case.context if isinstance(part, Still)):
        files.append(folder / f"picture{number + 1}.{random.choice(('png', 'jpg'))}")
        Image.fromarray(still.pixels).save(files[-1])
    return Drawn(tuple(files), kind, exchanges)


def through_engine(
    model: str, threads: int, *, quantization: Quantization = "none", kv_cache: KVCacheKind = "auto", zoom: bool = True
) -> Ask:
    """Ask the engine in this process, by the way the page takes: open, look through, lay out, read, look closer."""
    import torch

    from qwen3vl_webui.engine.local import LocalEngine
    from qwen3vl_webui.model.loading import load

    torch.set_num_threads(threads)
    engine = LocalEngine(load(model, quantization=quantization), kv_cache=kv_cache)

    def ask(files: Sequence[Path], question: str) -> str:
        items = tuple(Attached(open_upload(path), name=path.name) for path in files)
        for item in items:
            if isinstance(item.media, Clip):
                storyboard.at_hand(item.media, 600.0)
        request = lay_out([Draft("user", (*items, question))], engine).request
        events = look_closer(engine, request) if zoom else engine.generate(request)
        return "".join(event.text for event in events if isinstance(event, TokenEvent) and not event.thinking)

    return ask


def through_server(url: str, model: str, key: str, *, zoom: bool = True) -> Ask:
    """Ask a running server by its API, as any client would."""
    from openai import OpenAI

    client = OpenAI(base_url=f"{url.rstrip('/')}/v1", api_key=key or "none")

    def part(path: Path) -> dict[str, Any]:
        with path.open("rb") as file:
            stored = client.files.create(file=file, purpose="user_data").id
        if path.suffix == ".mp4":
            return {"type": "video_url", "video_url": {"file_id": stored}}
        if path.suffix == ".pdf":
            return {"type": "file", "file": {"file_id": stored}}
        return {"type": "image_url", "image_url": {"file_id": stored}}

    def ask(files: Sequence[Path], question: str) -> str:
        content: Any = [*map(part, files), {"type": "text", "text": question}]
        made = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], extra_body={"zoom": zoom}
        )
        return made.choices[0].message.content or ""

    return ask


def measure(ask: Ask, *, seed: str, cases: int, only: str | None = None, keep: Path | None = None) -> dict[str, Any]:
    kinds, weights = zip(*((kind, share) for kind, share in LEVEL.kinds if only in (None, kind)), strict=True)
    table: dict[str, dict[str, list[int]]] = {}
    errors: list[float] = []
    waits: list[float] = []
    wrong: list[dict[str, str]] = []
    for number in range(cases):
        with tempfile.TemporaryDirectory() as name:
            drawn = draw(Path(name), f"benchmark:{seed}:{number}", kinds, weights)
            for index, exchange in enumerate(drawn.exchanges):
                began = time.perf_counter()
                answer = ask(drawn.files, exchange.question)
                waits.append(time.perf_counter() - began)
                right = is_right(exchange, answer)
                row = table.setdefault(exchange.skill, {})
                cell = row.setdefault(f"{exchange.language} {drawn.modality}", [0, 0])
                cell[0] += right
                cell[1] += 1
                if exchange.skill == "when" and (found := STAMP.findall(answer)):
                    errors.append(abs(float(found[0]) - float(STAMP.findall(exchange.answer)[0])))
                if not right:
                    case = {"case": f"{number}.{index}", "skill": exchange.skill, "question": exchange.question}
                    wrong.append({**case, "answer": answer, "wanted": exchange.answer})
                    if keep:
                        folder = keep / f"{number}"
                        folder.mkdir(parents=True, exist_ok=True)
                        for path in drawn.files:
                            shutil.copy(path, folder / path.name)
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        (keep / "wrong.json").write_text(json.dumps(wrong, indent=2, ensure_ascii=False))
    result: dict[str, Any] = {"seed": seed, "cases": cases, "skills": dict(sorted(table.items()))}
    result["seconds_per_question"] = round(statistics.median(waits), 2)
    if len(errors) >= 2:
        twentieths = statistics.quantiles(errors, n=20)
        result["when_error_seconds"] = {"median": round(statistics.median(errors), 2), "95": round(twentieths[18], 2)}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--url", help="ask this server instead of an engine in this process")
    parser.add_argument("--key", default="", help="the server's API key")
    parser.add_argument("--only", choices=[kind for kind, _ in LEVEL.kinds])
    parser.add_argument("--keep", type=Path, help="a folder for the files and questions of wrong answers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quantization", default="none", choices=get_args(Quantization))
    parser.add_argument("--kv-cache", default="auto", choices=get_args(KVCacheKind))
    parser.add_argument("--zoom", action=argparse.BooleanOptionalAction, default=True, help="look twice at long videos")
    args = parser.parse_args()
    if args.url:
        ask = through_server(args.url, args.model, args.key, zoom=args.zoom)
    else:
        options = {"quantization": args.quantization, "kv_cache": args.kv_cache, "zoom": args.zoom}
        ask = through_engine(args.model, args.threads, **options)
    print(
        json.dumps(measure(ask, seed=args.seed, cases=args.cases, only=args.only, keep=args.keep), ensure_ascii=False)
    )


if __name__ == "__main__":
    main()
