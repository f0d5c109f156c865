"""Conversation + options -> GenerationRequest within the token budget: the only bridge from what people upload to what
an engine sees.

Layout of a user's message, in order:

- a picture: its visual tokens; `Picture 2: ` stands before it when the conversation shows more than one;
- a video: its frames, each temporal patch behind its `<t seconds>` label; `Video 2: ` likewise;
- a PDF: for each page `Page 3: `, the page's picture, a line break, the page's text layer where it has one and a line
  break; `Document 2, ` likewise before each `Page`;
- the words.

A turn that was already shown to the model is repeated to the letter (`Turn.parts`), so that the engine's prefix holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qwen3vl_webui.conversation import Attachment, Conversation
from qwen3vl_webui.engine.contract import Budget, Engine, GenerationRequest, Message, Priority, Role, SamplingParams
from qwen3vl_webui.errors import MediaError, TooLong, Unsupported
from qwen3vl_webui.media.document import page_as_image, read_texts
from qwen3vl_webui.media.sampling import fit_document, fit_image, plan_frames
from qwen3vl_webui.media.values import PATCH_SIDE, Clip, Document, FramePlan, Image, Media, Part
from qwen3vl_webui.media.video import read_times

LABEL_TOKENS = 16  # `<7123.4 seconds>` and two vision marks: 11 with Qwen's tokenizer, 15 with one that is smaller
CPU_VIDEO_TOKENS = 8_192  # what a laptop reads in patience; notes: 64 moments at 448 x 256
CUDA_VIDEO_TOKENS = 32_768  # about 20 s of prefill for 4B on a 24 GB card; more can be set by hand
ANSWER_SHARE = 4  # at most a quarter of the context is kept free for the answer


@dataclass(frozen=True)
class Options:
    """What a person set by hand; None: chosen for them.

    `pages` names pages of every PDF of the new message, such as `1-5, 8`; `start` and `end` a span of its videos in
    seconds; `video_tokens` and `image_tokens` the most one video and one picture may cost.
    """

    sampling: SamplingParams | None = None
    system: str = ""
    fps: float | None = None
    most_moments: int | None = None
    start: float | None = None
    end: float | None = None
    video_tokens: int | None = None
    image_tokens: int | None = None
    pages: str = ""
    priority: Priority = "chat"


@dataclass(frozen=True)
class Attached:
    """A file in a message; `id` is what links in the answer call it."""

    media: Media
    id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Draft:
    """A message before it is laid out; or, with `parts`, as it was shown to the model before."""

    role: Role
    items: tuple[str | Attached, ...]
    parts: tuple[Part, ...] | None = None


@dataclass(frozen=True)
class Shown:
    """What the model is shown of one file of the new message."""

    id: str
    name: str
    kind: str  # image | video | document
    tokens: int
    width: int = 0
    height: int = 0
    moments: tuple[float, ...] = ()  # seconds of a video's stamps
    pages: tuple[int, ...] = ()  # of a PDF, 1-based


@dataclass(frozen=True)
class Prompt:
    """`parts` are those of the last message, to be kept with its turn."""

    request: GenerationRequest
    budget: Budget
    parts: tuple[Part, ...]
    shown: tuple[Shown, ...]


def build(
    conversation: Conversation,
    engine: Engine,
    media: Callable[[Attachment], Media],
    options: Options | None = None,
) -> Prompt:
    """The request for the branch shown, which ends with a user's turn. Raises what `lay_out` raises."""
    drafts = []
    path = conversation.path
    if not path or path[-1].role != "user":
        raise Unsupported("Write a question first.")
    for turn in path:
        if turn.role == "assistant":
            if turn.text:
                drafts.append(Draft("assistant", (turn.text,)))
            continue
        if turn.parts is not None and turn is not path[-1]:
            drafts.append(Draft("user", (), turn.parts))
            continue
        files = tuple(Attached(media(a), a.id, a.name) for a in turn.attachments)
        drafts.append(Draft("user", (*files, turn.text) if turn.text else files))
    return lay_out(drafts, engine, options, conversation=conversation.id)


def lay_out(
    drafts: Sequence[Draft], engine: Engine, options: Options | None = None, *, conversation: str = ""
) -> Prompt:
    """Messages with every file sized so that prompt and answer fit the context.

    Raises TooLong with the numbers and what would fit, MediaError when a page or span does not exist.
    """
    options = options or Options()
    opened = [[_open(item, options) for item in draft.items] if draft.parts is None else [] for draft in drafts]
    files = [item for items in opened for item in items if not isinstance(item, str)]
    visual = bool(files) or any(isinstance(part, Image | FramePlan) for draft in drafts for part in draft.parts or ())
    sampling = options.sampling or (engine.model.sampling if visual else engine.model.sampling_text)

    # Everything but the new pixels is counted first; what is left is shared among the new files.
    skeleton = engine.plan(_request(_write(drafts, opened, {}), sampling, options, conversation))
    answer = min(sampling.max_tokens, engine.context_length // ANSWER_SHARE)
    room = engine.context_length - skeleton.tokens - answer - LABEL_TOKENS * len(files)
    if files and room <= 0:
        raise TooLong(
            f"The text of this conversation and its files has {skeleton.tokens:,} tokens; the model reads "
            f"{engine.context_length:,}, {answer:,} of them kept for the answer. Choose fewer pages or start a "
            "new chat."
        )
    fitted = _fit(files, engine, options, room)

    request = _request(_write(drafts, opened, fitted), sampling, options, conversation)
    budget = engine.plan(request)
    _refuse_what_does_not_fit(budget, bool(files))
    shown = tuple(_shown(file.attached, fitted[file]) for file in files)
    return Prompt(request, budget, request.messages[-1].parts, shown)


@dataclass(frozen=True, eq=False)
class _File:
    """A file of a new message: a picture, a clip, or the chosen pages of a PDF with their texts."""

    attached: Attached
    clip: Clip | None = None
    picture: Image | None = None
    pages: tuple[Image, ...] = ()
    points: tuple[tuple[float, float], ...] = ()  # (width, height) of each page
    texts: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "Video" if self.clip else "Picture" if self.picture else "Document"


def _open(item: str | Attached, options: Options) -> str | _File:
    if isinstance(item, str):
        return item
    match item.media:
        case Image() as picture:
            return _File(item, picture=picture)
        case Document() as document:
            chosen = read_pages(options.pages, document.pages)
            texts = read_texts(document)
            return _File(
                item,
                pages=tuple(page_as_image(document, page) for page in chosen),
                points=tuple(document.page_sizes[page - 1] for page in chosen),
                texts=tuple(texts[page - 1].strip() for page in chosen),
            )
        case Clip() as clip:
            if options.start is None and options.end is None:
                return _File(item, clip=clip)
            try:
                span = clip.between(options.start or clip.start, clip.end if options.end is None else options.end)
            except ValueError:
                raise MediaError(
                    f"Nothing is left of {item.name or 'the video'} between these times; it is {clip.duration:.1f} "
                    "seconds long."
                ) from None
            return _File(item, clip=span)


Fitted = dict[_File, tuple[Image | FramePlan, ...]]


def _fit(files: Sequence[_File], engine: Engine, options: Options, room: int) -> Fitted:
    """Each file at the size the model will see it: pictures first, then pages, then videos with what is left."""
    pictures = [file for file in files if file.picture]
    documents = [file for file in files if file.pages]
    clips = [file for file in files if file.clip]
    least, most = engine.model.image_pixels
    fitted: Fitted = {}
    if pictures:
        share = room // (1 + bool(documents) + bool(clips)) // len(pictures)
        tokens = min(share, options.image_tokens or share)
        for file in pictures:
            picture = file.picture
            assert picture is not None
            most_pixels = min(most, tokens * PATCH_SIDE**2)
            if most_pixels < least:
                raise TooLong(f"{len(pictures)} pictures do not fit the context. Attach fewer, or start a new chat.")
            size = fit_image(picture.width, picture.height, least_pixels=least, most_pixels=most_pixels)
            fitted[file] = (picture.at(*size),)
            room -= fitted[file][0].tokens
    if documents:
        pages = [page for file in documents for page in file.pages]
        points = [points for file in documents for points in file.points]
        sizes = fit_document(points, room // (1 + bool(clips)), image_pixels=(least, most), page_overhead=LABEL_TOKENS)
        sized = iter([page.at(*size) for page, size in zip(pages, sizes, strict=True)])
        for file in documents:
            fitted[file] = tuple(next(sized) for _ in file.pages)
            room -= sum(page.tokens + LABEL_TOKENS for page in fitted[file] if isinstance(page, Image))
    for left, file in zip(range(len(clips), 0, -1), clips, strict=True):
        assert file.clip is not None
        usual = CUDA_VIDEO_TOKENS if engine.model.device.startswith("cuda") else CPU_VIDEO_TOKENS
        by_hand = options.video_tokens or (None if options.fps or options.most_moments else usual)
        plan = plan_frames(
            file.clip,
            read_times(file.clip),
            budget=min(room // left, by_hand or room // left),
            label_tokens=LABEL_TOKENS,
            frame_pixels=engine.model.frame_pixels,
            fps=options.fps,
            most_moments=options.most_moments or (None if options.fps else engine.model.most_moments),
        )
        fitted[file] = (plan,)
        room -= plan.tokens + LABEL_TOKENS * len(plan.patches)
    return fitted


def _write(drafts: Sequence[Draft], opened: Sequence[Sequence[str | _File]], fitted: Fitted) -> tuple[Message, ...]:
    """The messages in layout. Files that are not fitted yet are written without their pictures."""
    totals = {kind: 0 for kind in ("Picture", "Video", "Document")}
    for draft, items in zip(drafts, opened, strict=True):
        for kind in _kinds(draft, items):
            totals[kind] += 1
    numbers = dict.fromkeys(totals, 0)
    messages = []
    for draft, items in zip(drafts, opened, strict=True):
        if draft.parts is not None:
            for kind in _kinds(draft, items):
                numbers[kind] += 1
            messages.append(Message(draft.role, draft.parts))
            continue
        parts: list[Part] = []
        for item in items:
            if isinstance(item, str):
                parts.append(item)
                continue
            numbers[item.kind] += 1
            label = f"{item.kind} {numbers[item.kind]}" if totals[item.kind] > 1 else ""
            views = fitted.get(item, ())
            if item.kind == "Document":
                for index, text in enumerate(item.texts):
                    parts.append(f"{label}, Page" if label else "Page")
                    parts.append(f" {item.pages[index].page}: ")
                    parts += views[index : index + 1]
                    parts.append(f"\n{text}\n" if text else "\n")
            else:
                parts += [f"{label}: "] if label else []
                parts += views
        messages.append(Message(draft.role, _joined(parts)))
    return tuple(messages)


def _kinds(draft: Draft, items: Sequence[str | _File]) -> list[str]:
    """The kinds of the files of one message, in order; the pages of one PDF count once."""
    if draft.parts is None:
        return [item.kind for item in items if not isinstance(item, str)]
    kinds, documents = [], set()
    for part in draft.parts:
        match part:
            case FramePlan():
                kinds.append("Video")
            case Image(page=None):
                kinds.append("Picture")
            case Image(digest=digest) if digest not in documents:
                documents.add(digest)
                kinds.append("Document")
    return kinds


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbouring texts as one, so that control tokens cannot be hidden in the seam of two."""
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined) or ("",)


def _request(
    messages: Sequence[Message], sampling: SamplingParams, options: Options, conversation: str
) -> GenerationRequest:
    system = [Message("system", (options.system,))] if options.system.strip() else []
    return GenerationRequest((*system, *messages), sampling, options.priority, conversation)


def _refuse_what_does_not_fit(budget: Budget, has_files: bool) -> None:
    if budget.fits:
        return
    advice = "Attach less, choose a shorter span or fewer pages" if has_files else "Shorten the text"
    if budget.tokens >= budget.context_length:
        raise TooLong(
            f"The prompt has {budget.tokens:,} tokens; the model reads {budget.context_length:,}. {advice}, or start a "
            "new chat."
        )
    if budget.most_positions is not None and budget.positions >= budget.most_positions:
        raise TooLong(
            f"The prompt has {budget.positions:,} positions; the model knows {budget.most_positions:,}. {advice}, or "
            "start a new chat."
        )
    needed, free = budget.memory_bytes or 0, budget.memory_free or 0
    raise TooLong(
        f"This needs {needed / 2**30:.1f} GiB of device memory and {free / 2**30:.1f} GiB are free. {advice}, or start "
        "a new chat."
    )


def _shown(attached: Attached, views: tuple[Image | FramePlan, ...]) -> Shown:
    tokens = sum(view.tokens for view in views)
    first = views[0]
    if isinstance(first, FramePlan):
        return Shown(
            attached.id, attached.name, "video", tokens, first.width, first.height, moments=tuple(first.stamps)
        )
    assert first.seen is not None
    width, height = first.seen
    pages = tuple(view.page for view in views if isinstance(view, Image) and view.page is not None)
    return Shown(attached.id, attached.name, "document" if pages else "image", tokens, width, height, pages=pages)


def read_pages(text: str, pages: int) -> tuple[int, ...]:
    """`1-3, 8` -> (1, 2, 3, 8), in order, without repeats; an empty text is every page.

    Raises MediaError when it is not of that form or names a page that is not there.
    """
    if not text.strip():
        return tuple(range(1, pages + 1))
    chosen: set[int] = set()
    for piece in text.replace("，", ",").replace("–", "-").split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", piece)
        first = int(match[1]) if match else 0
        last = int(match[2] or match[1]) if match else 0
        if not 1 <= first <= last <= pages:
            raise MediaError(f"Write pages as 1-3, 8; this PDF has {pages}.", param="pages")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))
