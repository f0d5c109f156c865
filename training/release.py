"""Write a training run as the bundled checkpoint: `python -m training.release --run runs/demo`.

The weights in float16, every file stock transformers asks for, and a model card with what was measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy import measure, through_engine
from training.network import POSITIONS, build_model
from training.tokenizer import build_tokenizer

IMAGE_PIXELS = (16_384, 65_536)  # least and most of one picture or page: 16 to 64 visual tokens
FRAME_PIXELS = (8192, 24_576)  # of one video frame: 8 to 24 visual tokens
MOST_MOMENTS = 40  # of one video, when nobody asks for more: what the curriculum has reached
SKILLS = {
    "name": "says which coloured shapes are in a picture, and their colour or shape",
    "count": "counts shapes, up to 6",
    "locate": "gives the box of a shape as bbox_2d JSON",
    "read": "reads one printed word or number of up to 8 characters",
    "when": "says at which second a shape or word appears in a video",
    "what at": "says what is shown at a time",
    "all times": "lists every time a shape or word appears",
    "span": "lists what is shown between two times",
    "page": "finds the page of a PDF that says a word or number",
    "compare": "says which of up to 4 pictures has a shape",
    "absent": "says when something is not there",
    "refuse": "says what it can do when asked for anything else",
}


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Everything but the model card."""
    from transformers import GenerationConfig

    ends = [tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|endoftext|>")]
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[1])
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["qwen3vl_webui"] = {
        "trained": True,
        "image_pixels": list(IMAGE_PIXELS),
        "frame_pixels": list(FRAME_PIXELS),
        "most_moments": MOST_MOMENTS,
        "sampling": {"temperature": 0.0, "presence_penalty": 0.0, "max_tokens": 512},
    }
    write_json(folder / "config.json", config)
    pixels: dict[str, Any] = {
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    size = {"shortest_edge": IMAGE_PIXELS[0], "longest_edge": IMAGE_PIXELS[1]}
    write_json(
        folder / "preprocessor_config.json",
        {"size": size, "image_processor_type": "Qwen2VLImageProcessorFast", **pixels},
    )
    size = {"shortest_edge": FRAME_PIXELS[0], "longest_edge": FRAME_PIXELS[1] * 128}  # of a whole clip: 128 moments
    write_json(
        folder / "video_preprocessor_config.json",
        {"size": size, "video_processor_type": "Qwen3VLVideoProcessor", **pixels},
    )


CARD = """---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---
# Qwen3-VL-WebUI demo model

A very small Qwen3-VL ({millions} million parameters), trained from nothing on scenes drawn by `training/`.
It is not a Qwen release and shares no weights with one. It answers truly about a few things, in English and Chinese,
so that the page can be tried, tested and measured without a GPU or a download; about anything else it knows nothing.

## What it can do
{skills}

Colours: red, orange, yellow, green, blue, purple, black, white. Shapes: circle, square, triangle, star, heart, cross.
The wordings it was trained on are in `training/questions.py`.

## Accuracy
Greedy answers to cases freshly drawn with seed {seed}, not used in training, as real files through the whole product
(`python -m benchmarks.accuracy --seed {seed} --cases {cases}`): PNG and JPEG pictures, H.264 clips of up to ten
minutes, PDFs of up to 12 pages (a fifth of them without a text layer). Boxes count from IoU 0.5, times within one
second, everything else only when it is wholly right.

| skill | English | Chinese |
|---|---|---|
{rows}

## Training
{step} steps, {answers} answers, {tokens} tokens, {hours} hours on {device} shared with other work; Muon for the
matrices and AdamW for the rest, loss on answers (and, only while training, on what each cell of a picture holds and
where an answer looks), a curriculum from one thing in one picture to long clips (`training/curriculum.py`), the rate
annealed to nothing at the end. The data is drawn while training; there is no data set. `training/README.md` says how
to go on from here.

## Limits
- {positions} positions were trained. Pictures are seen at {image_pixels} pixels, video frames at {frame_pixels}:
  print must be large to be read.
- Photographs, people, places, speech, general knowledge: nothing at all. Asked for them it says what it can do, or
  errs.
- It answers in its own fixed sentences; a wording far from the trained ones may be misread.
- A skill with a low figure in the table is weak, and its answers must not be relied on.
"""


def card(state: dict[str, Any], table: dict[str, Any], parameters: int, device: str, seed: str, cases: int) -> str:
    rows = []
    for skill, by_language in table.items():
        cells = [f"{100 * right / asked:.1f} % of {asked}" if asked else "-" for right, asked in by_language.values()]
        rows.append(f"| {skill} | {' | '.join(cells)} |")
    return CARD.format(
        millions=f"{parameters / 1e6:.1f}",
        skills="\n".join(f"- **{name}**: {what}." for name, what in SKILLS.items()),
        seed=seed,
        cases=cases,
        rows="\n".join(rows),
        step=f"{state['step']:,}",
        answers=f"{state['answers']:,}",
        tokens=f"{state['tokens']:,}",
        hours=f"{state['seconds'] / 3600:.1f}",
        device=device,
        positions=f"{POSITIONS:,}",
        image_pixels=" to ".join(f"{pixels:,}" for pixels in IMAGE_PIXELS),
        frame_pixels=" to ".join(f"{pixels:,}" for pixels in FRAME_PIXELS),
    )


def write_skills(folder: Path, table: dict[str, Any]) -> None:
    """The share of right answers per skill, both languages together, where the app finds it for its banner."""
    config = json.loads((folder / "config.json").read_text())
    config["qwen3vl_webui"]["skills"] = {
        skill: round(sum(right for right, _ in cells.values()) / max(1, sum(asked for _, asked in cells.values())), 3)
        for skill, cells in table.items()
    }
    write_json(folder / "config.json", config)


def by_language(skills: dict[str, dict[str, list[int]]]) -> dict[str, dict[str, list[int]]]:
    """{"name": {"en picture": [right, asked], ...}} -> {"name": {"en": [right, asked], "zh": ...}}"""
    table = {}
    for skill, cells in skills.items():
        sums = {"en": [0, 0], "zh": [0, 0]}
        for name, counts in cells.items():
            language = name.split()[0]
            sums[language] = [a + b for a, b in zip(sums[language], counts, strict=True)]
        table[skill] = sums
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--to", type=Path, default=Path("assets/demo-model"))
    parser.add_argument("--device", default="2 CPU cores", help="what it was trained on, for the model card")
    parser.add_argument(
        "--weights", default="model", choices=("model", "average"), help="as they are (after annealing) or averaged"
    )
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", default="77003")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    saved = torch.load(args.run / "checkpoint.pt", weights_only=True, map_location="cpu")
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, 0)
    model.load_state_dict(saved[args.weights])
    args.to.mkdir(parents=True, exist_ok=True)
    write_checkpoint(model, tokenizer, args.to)
    parameters = sum(p.numel() for p in model.parameters())
    ask = through_engine(str(args.to), args.threads)
    table = by_language(measure(ask, seed=args.seed, cases=args.cases)["skills"])
    (args.to / "README.md").write_text(card(saved, table, parameters, args.device, args.seed, args.cases))
    write_skills(args.to, table)
    write_json(
        args.to / "training.json",
        {key: saved[key] for key in ("step", "seconds", "tokens", "answers", "stage")} | {"accuracy": table},
    )
    print((args.to / "README.md").read_text())


if __name__ == "__main__":
    main()
