"""Whether the engine says what stock transformers says: greedy answers to mixed cases, drawn as real files.

    python -m benchmarks.stock --seed 7 --cases 100

Each question goes through the product (sandbox, sampling, prompt, engine with its own positions, cache and decode loop)
and, for the same prompt and pixels, through `Qwen3VLForConditionalGeneration.generate` of transformers, which computes
positions and cache by itself. Prints JSON: how many answers were equal token for token, and those that were not.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy import LEVEL, draw
from qwen3vl_webui.engine.contract import GenerationRequest, TokenEvent
from qwen3vl_webui.engine.local import LocalEngine, forbidden_ids
from qwen3vl_webui.media.image import read_pixels
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.media.values import Image
from qwen3vl_webui.media.video import read_frames
from qwen3vl_webui.model.inputs import encode, frame_patches, image_patches
from qwen3vl_webui.model.loading import LoadedModel, load
from qwen3vl_webui.prompt import Attached, Draft, lay_out


def stock_inputs(request: GenerationRequest, loaded: LoadedModel) -> dict[str, torch.Tensor]:
    """The prompt as the processor of transformers would give it to the stock model."""
    inputs = encode(request.messages, loaded.vocabulary)
    kinds = np.zeros_like(inputs.ids)
    rows: dict[int, list[torch.Tensor]] = {1: [], 2: []}
    grids: dict[int, list[tuple[int, int, int]]] = {1: [], 2: []}
    frames: list[Any] = []
    for span in inputs.spans:
        kind = 1 if isinstance(span.part, Image) else 2
        kinds[span.start : span.end] = kind
        if isinstance(span.part, Image):
            assert span.part.seen is not None
            rows[kind].append(image_patches(read_pixels(span.part), span.part.seen))
            grids[kind].append(span.grid_thw)
            continue
        if span.patch == 0:
            frames = [frame.pixels for frame in read_frames(span.part)]
            grids[kind].append((len(span.part.patches), *span.grid_thw[1:]))
        rows[kind].append(frame_patches(*frames[2 * span.patch : 2 * span.patch + 2]))
    ids = torch.from_numpy(inputs.ids)[None]
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": torch.from_numpy(kinds)[None],
    }
    for kind, pixels, grid in ((1, "pixel_values", "image_grid_thw"), (2, "pixel_values_videos", "video_grid_thw")):
        if rows[kind]:
            given |= {pixels: torch.cat(rows[kind]), grid: torch.tensor(grids[kind])}
    return given


def measure(model: str, *, seed: str, cases: int) -> dict[str, Any]:
    from transformers import Qwen3VLForConditionalGeneration

    loaded = load(model, quantization="none")
    engine = LocalEngine(loaded)
    stock = Qwen3VLForConditionalGeneration.from_pretrained(loaded.info.checkpoint, dtype=torch.float32).eval()
    kinds, weights = zip(*LEVEL.kinds, strict=True)
    equal, asked, visual = 0, 0, 0
    different: list[dict[str, str]] = []
    for number in range(cases):
        with tempfile.TemporaryDirectory() as name:
            drawn = draw(Path(name), f"stock:{seed}:{number}", kinds, weights)
            items = tuple(Attached(open_upload(path), name=path.name) for path in drawn.files)
            for exchange in drawn.exchanges:
                request = lay_out([Draft("user", (*items, exchange.question))], engine).request
                ours = answer(engine, request)
                given = stock_inputs(request, loaded)
                theirs = stock_answer(stock, given, loaded, request.sampling.max_tokens)
                asked += 1
                visual += bool(drawn.files)
                equal += ours == theirs
                if ours != theirs:
                    different.append({"question": exchange.question, "ours": ours, "stock": theirs})
    engine.close()
    return {"seed": seed, "asked": asked, "with_media": visual, "equal": equal, "different": different}


def answer(engine: LocalEngine, request: GenerationRequest) -> str:
    events = engine.generate(request)
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


@torch.inference_mode()
def stock_answer(stock: Any, given: dict[str, torch.Tensor], loaded: LoadedModel, most: int) -> str:
    written = stock.generate(
        **given, do_sample=False, max_new_tokens=most, suppress_tokens=forbidden_ids(loaded).tolist()
    )
    ids: Sequence[int] = written[0, given["input_ids"].shape[1] :].tolist()
    return str(loaded.vocabulary.tokenizer.decode(ids, skip_special_tokens=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--cases", type=int, default=100, help="contexts; each is asked twice")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(json.dumps(measure(args.model, seed=args.seed, cases=args.cases), ensure_ascii=False))


if __name__ == "__main__":
    main()
