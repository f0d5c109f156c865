"""Messages -> what the model reads: token ids, content keys, three-axis positions, and pixel patches.

No media is read here: a picture or a video is laid out from its planned size alone, so the exact cost of a request is
known before anything is decoded. Text people wrote never becomes a control token: control ids are inserted as ids, and
every text span is neutralised and tokenized apart (tokenizers cut at added tokens first, so this equals tokenizing
the rendered chat template).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from qwen3vl_webui.engine.contract import Message
from qwen3vl_webui.errors import EngineError, Unsupported
from qwen3vl_webui.media.values import FramePlan, Image

PATCH = 16  # px
MERGE = 2  # patches of one token along each side
WORD_JOINER = "\u2060"  # invisible; put after a control token's first character it makes the token plain text


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer and the ids the layout needs. `thinking`: the chat template opens `<think>` for the answer."""

    tokenizer: Tokenizer
    im_start: int
    im_end: int
    vision_start: int
    vision_end: int
    image_pad: int
    video_pad: int
    think: int | None
    end_think: int | None
    thinking: bool
    added: Mapping[str, int]  # every added token, special or ordinary
    pattern: re.Pattern[str]  # matches each of them in text

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, thinking: bool = False) -> Vocabulary:
        """Raises Unsupported when the tokenizer is not one of Qwen3-VL's."""
        added = {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}
        names = ["im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad"]
        missing = [f"<|{name}|>" for name in names if f"<|{name}|>" not in added]
        if thinking:
            missing += [name for name in ("<think>", "</think>") if name not in added]
        if missing:
            raise Unsupported(
                f"This checkpoint's tokenizer has no {', '.join(missing)}: it is not a Qwen3-VL tokenizer."
            )
        longest_first = sorted((token for token in added if len(token) > 1), key=len, reverse=True)
        return cls(
            tokenizer,
            im_start=added["<|im_start|>"],
            im_end=added["<|im_end|>"],
            vision_start=added["<|vision_start|>"],
            vision_end=added["<|vision_end|>"],
            image_pad=added["<|image_pad|>"],
            video_pad=added["<|video_pad|>"],
            think=added.get("<think>"),
            end_think=added.get("</think>"),
            thinking=thinking,
            added=added,
            pattern=re.compile("|".join(map(re.escape, longest_first))),
        )

    def neutral(self, text: str) -> str:
        """The same text to a reader, in which no added token is left; apply it to joined text, never to its pieces."""
        found = 1
        while found:  # twice where tokens overlap
            text, found = self.pattern.subn(lambda match: match[0][0] + WORD_JOINER + match[0][1:], text)
        return text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, after `neutral` and without lone surrogates; never a control id."""
        clean = [self.neutral(text.encode("utf-8", "replace").decode()) for text in texts]
        encodings = self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        control = set(self.added.values())
        if not all(control.isdisjoint(span) for span in ids):
            raise EngineError("The text holds control tokens of the model that could not be made plain; remove them.")
        return ids


@dataclass(frozen=True)
class VisualSpan:
    """The tokens of one picture, or of one temporal patch of a video, in the prompt.

    `grid` is (rows, columns) of merged cells; `patch` indexes `part.patches` (0 for a picture). Equal `content_key`s
    mean equal features.
    """

    start: int
    count: int
    grid: tuple[int, int]
    part: Image | FramePlan
    patch: int
    content_key: str

    @property
    def end(self) -> int:
        return self.start + self.count

    @property
    def grid_thw(self) -> tuple[int, int, int]:
        """As the vision tower counts: unmerged patches."""
        return 1, self.grid[0] * MERGE, self.grid[1] * MERGE


@dataclass(frozen=True)
class Inputs:
    """One prompt, laid out. Compare `keys`, not `ids`, to find a shared prefix: every image pad is the same id.

    `ids` int64 [n]; `keys` int64 [n]: the id of a text token, a negative hash of content and index for a visual one;
    `positions` int64 [3, n] (T, H, W); generation goes on at `next_position` on all three axes.
    """

    ids: np.ndarray
    keys: np.ndarray
    positions: np.ndarray
    spans: tuple[VisualSpan, ...]  # in the order of the prompt
    next_position: int

    @property
    def tokens(self) -> int:
        return len(self.ids)


def visual_keys(content_key: str, count: int) -> np.ndarray:
    """int64 [count], all negative: 63 bits mixed (splitmix64) from a digest of the content key and the index."""
    seed = int.from_bytes(hashlib.blake2b(content_key.encode(), digest_size=8).digest(), "little")
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return -1 - ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def visual_positions(position: int, rows: int, columns: int) -> np.ndarray:
    """int64 [3, rows * columns]: T stays, H and W count from `position`; the next token is max(rows, columns) on."""
    block = np.empty((3, rows, columns), np.int64)
    block[0] = position
    block[1] = position + np.arange(rows)[:, None]
    block[2] = position + np.arange(columns)
    return block.reshape(3, -1)


@dataclass(frozen=True)
class Visual:
    """A picture or one temporal patch, where it stands in the prompt."""

    part: Image | FramePlan
    patch: int


class Layout:
    """A prompt being written: text is gathered into spans, control ids, known ids and visual blocks stand between."""

    def __init__(self, vocabulary: Vocabulary, outer_video_pair: bool) -> None:
        self.vocabulary = vocabulary
        self.outer_video_pair = outer_video_pair
        self.items: list[int | str | Sequence[int] | Visual] = []
        self.text: list[str] = []

    def write(self, text: str) -> None:
        self.text.append(text)

    def put(self, item: int | Sequence[int] | Visual) -> None:
        self.end_text()
        self.items.append(item)

    def end_text(self) -> None:
        if joined := "".join(self.text):
            self.items.append(joined)
        self.text = []

    def part(self, part: str | Image | FramePlan) -> None:
        names = self.vocabulary
        if isinstance(part, str):
            self.write(part)
        elif isinstance(part, Image):
            self.put(names.vision_start)
            self.put(Visual(part, 0))
            self.put(names.vision_end)
        else:
            if self.outer_video_pair:
                self.put(names.vision_start)
            for index, label in enumerate(part.labels):
                self.write(label)
                self.put(names.vision_start)
                self.put(Visual(part, index))
                self.put(names.vision_end)
            if self.outer_video_pair:
                self.put(names.vision_end)

    def message(self, message: Message, known_answers: Mapping[str, Sequence[int]]) -> None:
        self.put(self.vocabulary.im_start)
        self.write(f"{message.role}\n")
        if message.role == "assistant":
            if not all(isinstance(part, str) for part in message.parts):
                raise Unsupported("An answer in the history may hold text only; leave its pictures out.")
            text = "".join(str(part) for part in message.parts)
            known = known_answers.get(text)
            if known is not None:
                self.put(known)
            else:
                self.write(self.without_thoughts(text))
        else:
            for part in message.parts:
                self.part(part)
        self.put(self.vocabulary.im_end)
        self.write("\n")

    def without_thoughts(self, answer: str) -> str:
        """As the thinking checkpoints' template does: past reasoning is not shown to the model again."""
        if self.vocabulary.thinking and "</think>" in answer:
            return answer.rpartition("</think>")[2].lstrip("\n")
        return answer

    def answer_begins(self) -> None:
        self.put(self.vocabulary.im_start)
        self.write("assistant\n")
        if self.vocabulary.thinking:
            assert self.vocabulary.think is not None
            self.put(self.vocabulary.think)
            self.write("\n")

    def inputs(self) -> Inputs:
        self.end_text()
        texts = [item for item in self.items if isinstance(item, str)]
        encoded = iter(self.vocabulary.encode(texts))
        ids: list[np.ndarray] = []
        keys: list[np.ndarray] = []
        positions: list[np.ndarray] = []
        spans: list[VisualSpan] = []
        start = position = 0
        run: list[int] = []  # text tokens not yet written out

        def end_run() -> None:
            nonlocal start, position, run
            block = np.asarray(run, np.int64)
            ids.append(block)
            keys.append(block)
            line = np.arange(position, position + len(run), dtype=np.int64)
            positions.append(np.broadcast_to(line, (3, len(run))))
            start, position, run = start + len(run), position + len(run), []

        for item in self.items:
            if isinstance(item, str):
                run += next(encoded)
            elif isinstance(item, int):
                run.append(item)
            elif isinstance(item, Visual):
                part, index = item.part, item.patch
                end_run()
                if isinstance(part, Image):
                    pad, content_key = self.vocabulary.image_pad, part.content_key
                else:
                    pad, content_key = self.vocabulary.video_pad, part.patch_key(index)
                rows, columns = part.grid
                span = VisualSpan(start, rows * columns, (rows, columns), part, index, content_key)
                spans.append(span)
                ids.append(np.full(span.count, pad, np.int64))
                keys.append(visual_keys(content_key, span.count))
                positions.append(visual_positions(position, rows, columns))
                start, position = start + span.count, position + max(rows, columns)
            else:
                run += item
        end_run()
        return Inputs(np.concatenate(ids), np.concatenate(keys), np.concatenate(positions, 1), tuple(spans), position)


def encode(
    messages: Sequence[Message],
    vocabulary: Vocabulary,
    *,
    known_answers: Mapping[str, Sequence[int]] | None = None,
    outer_video_pair: bool = False,
) -> Inputs:
    """Lay out the whole prompt, the opening of the answer included.

    `known_answers` maps the text of an earlier answer to the ids it was generated as (without `<|im_end|>`, and
    without the reasoning of a thinking model), so that the prompt continues what is in the cache: tokenizing the text
    again may give other ids. `outer_video_pair` writes the second pair of vision marks that transformers 5 and
    current vLLM put around a whole video; the authors' own 4.57 processor, our default, does not.
    Raises Unsupported for a picture in an answer, EngineError when control tokens cannot be made plain.
    """
    layout = Layout(vocabulary, outer_video_pair)
    for message in messages:
        layout.message(message, known_answers or {})
    layout.answer_begins()
    return layout.inputs()


def patches(frames: torch.Tensor) -> torch.Tensor:
    """Normalised rows of the vision tower: float32 [patches, 1536] of uint8 `frames` [2, 3, height, width].

    Four rows after each other are the 2 x 2 patches of one token; a row is (channel, frame, y, x). The order is made on
    bytes, then (x - 127.5) / 127.5: the same arithmetic as the image processors, at a quarter of the memory.
    """
    two, channels, height, width = frames.shape
    rows, columns = height // (PATCH * MERGE), width // (PATCH * MERGE)
    cells = frames.reshape(two, channels, rows, MERGE, PATCH, columns, MERGE, PATCH)
    ordered = cells.permute(2, 5, 3, 6, 1, 0, 4, 7)  # rows, columns, merge, merge, channel, frame, y, x
    flat = ordered.reshape(rows * columns * MERGE * MERGE, channels * two * PATCH * PATCH)
    return flat.to(torch.float32).sub_(127.5).div_(127.5)


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    """uint8 [3, height, width] of (height, width, 3)."""
    return torch.from_numpy(np.require(pixels, np.uint8, ["C", "W"])).permute(2, 0, 1)


def image_patches(pixels: np.ndarray, seen: tuple[int, int]) -> torch.Tensor:
    """A picture (height, width, 3) uint8, resized to `seen` (width, height): float32 [patches, 1536].

    The same frame twice, as the model was trained. Bicubic with antialias on bytes equals torchvision bit for bit.
    """
    width, height = seen
    frame = as_tensor(pixels)
    if frame.shape[1:] != (height, width):
        frame = F.interpolate(
            frame[None], size=(height, width), mode="bicubic", antialias=True, align_corners=False
        ).squeeze(0)
    return patches(frame.expand(2, -1, -1, -1))


def frame_patches(first: np.ndarray, second: np.ndarray) -> torch.Tensor:
    """The two frames of a temporal patch, already at the plan's size: float32 [patches, 1536]."""
    return patches(torch.stack((as_tensor(first), as_tensor(second))))
