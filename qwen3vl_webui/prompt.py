"""Conversation + options -> GenerationRequest within the token budget: the only bridge from what people upload to what
an engine sees.

Files are opened by `showing.py`, sized by `fitting.py` and written by `layout.py`. Where a conversation outgrows the
context, earlier questions give way (`exchanges.py`); what is left out is told.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from qwen3vl_webui.conversation import Attachment, Conversation
from qwen3vl_webui.draft import Attached, Draft, Options
from qwen3vl_webui.engine.contract import Budget, Engine, GenerationRequest, SamplingParams
from qwen3vl_webui.errors import TooLong, Unsupported, UserError
from qwen3vl_webui.exchanges import Exchange, by_need, exchanges, forgotten_sentence, without
from qwen3vl_webui.fitting import fit, fit_words, looked, with_cues
from qwen3vl_webui.layout import request_of, write
from qwen3vl_webui.media.sampling import LABEL_TOKENS
from qwen3vl_webui.media.values import Cue, FramePlan, Image, Media, Part
from qwen3vl_webui.relevance import choose_pages, written_pages
from qwen3vl_webui.showing import File, Named, lines_of, open_all
from qwen3vl_webui.times import format_clock

ANSWER_SHARE = 4  # at most a quarter of the context is kept free for the answer
LEAST_ANSWER_SHARE = 32  # of the context: with less left for the answer, earlier questions give way


@dataclass(frozen=True)
class Shown:
    """What the model is shown of one file of the new message."""

    id: str
    name: str
    kind: str  # image | video | document | subtitles
    tokens: int
    width: int = 0
    height: int = 0
    moments: tuple[float, ...] = ()  # seconds of a video's stamps
    pages: tuple[int, ...] = ()  # of a PDF, 1-based
    of_pages: int = 0  # how many it has, where only those nearest to the question fit the context
    span: tuple[float, float] | None = None  # of a video, in seconds, when it is not shown whole
    looked: float | None = None  # share of a video looked through, while its moments are spread evenly for want of it
    lines: tuple[int, int] = (0, 0)  # of subtitles: how many are shown, of how many


@dataclass(frozen=True)
class Prompt:
    """`parts` are those of the last message, to be kept with its turn; `named` the spans its words name."""

    request: GenerationRequest
    budget: Budget
    parts: tuple[Part, ...]
    shown: tuple[Shown, ...]
    named: tuple[Named, ...] = ()
    left_out: tuple[str, ...] = ()  # sentences: what is not looked at for want of room
    crowded: bool = False  # a video of the last message is shown in fewer moments than are useful
    said: tuple[Cue, ...] = ()  # every line of the last video, those that had no room among them: for a closer look

    @property
    def note(self) -> str:
        """What belongs below the answer, a sentence a line."""
        return "\n".join(self.left_out)


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
            drafts.append(Draft("user", tuple(_still_there(turn.attachments, media)), turn.parts))
            continue
        files = tuple(Attached(media(a), a.id, a.name) for a in turn.attachments)
        drafts.append(Draft("user", (*files, turn.text) if turn.text else files))
    return lay_out(drafts, engine, options, conversation=conversation.id, forget=True)


def _still_there(attachments: Sequence[Attachment], media: Callable[[Attachment], Media]) -> Iterator[Attached]:
    """Files shown before; one that is gone since cannot be shown again, and what was seen of it stays."""
    for attachment in attachments:
        with suppress(UserError):
            yield Attached(media(attachment), attachment.id, attachment.name)


def lay_out(
    drafts: Sequence[Draft],
    engine: Engine,
    options: Options | None = None,
    *,
    conversation: str = "",
    forget: bool = False,
) -> Prompt:
    """Messages with every file sized so that prompt and answer fit the context. Of PDFs that are too long for it, the
    pages nearest to the question. With `forget`, where earlier messages leave the last one no room: those that are
    nearest to it, the others left out. What is left out is told in `Prompt.note`.

    Raises TooLong with the numbers and what would fit, MediaError when a page or span does not exist.
    """
    options = options or Options()
    earlier = exchanges(drafts) if forget else []

    def told(left: Collection[int] = (), *, pages: bool = False, strict: bool = False) -> Prompt:
        """Without the exchanges `left`; with `pages`, as few pages as must be."""
        shown = without(drafts, [earlier[number] for number in left])
        opened, named = open_all(shown, options)
        laying = partial(_lay_out, shown, named=named, engine=engine, options=options, conversation=conversation)
        prompt = _as_many_pages(shown, opened, laying) if pages else laying(opened, strict=strict)
        forgotten = [forgotten_sentence(drafts, earlier, left)] if left else []
        return replace(prompt, left_out=(*forgotten, *prompt.left_out))

    try:
        return told(strict=bool(earlier))
    except TooLong as error:
        refusal = error
    everything = range(len(earlier))
    if earlier:
        with suppress(TooLong):
            alone = told(everything)
            return _beside(alone, drafts, earlier, engine, options, partial(told, strict=not alone.crowded))
    if not options.pages and pages_of(open_all(drafts, options)[0]) > 1:
        with suppress(TooLong):
            return told(pages=True)
        if earlier:
            return told(everything, pages=True)
    raise refusal


def pages_of(opened: Sequence[Sequence[str | File]]) -> int:
    return sum(len(item.pages) for items in opened for item in items if isinstance(item, File))


def _as_many_pages(
    drafts: Sequence[Draft], opened: Sequence[Sequence[str | File]], laying: Callable[..., Prompt]
) -> Prompt:
    """With as many pages as fit, at least one. Raises TooLong."""
    found, least, most = laying(nearest_pages(drafts, opened, 1)), 2, pages_of(opened) - 1
    while least <= most:
        count = (least + most + 1) // 2
        try:
            found, least = laying(nearest_pages(drafts, opened, count)), count + 1
        except TooLong:
            most = count - 1
    return found


def _beside(
    alone: Prompt,
    drafts: Sequence[Draft],
    earlier: Sequence[Exchange],
    engine: Engine,
    options: Options,
    told: Callable[[Collection[int]], Prompt],
) -> Prompt:
    """As many earlier exchanges as fit beside the last question, which fits `alone`, those it needs most first. New
    files give way down to half the context."""
    budget = alone.budget
    answer = min(alone.request.sampling.max_tokens, budget.context_length // ANSWER_SHARE)
    room = budget.context_length - answer - min(budget.tokens, budget.context_length // 2)
    kept: list[int] = []
    for number in by_need(drafts, earlier):
        said = [drafts[index] for index in earlier[number]]
        messages = write(said, [[item for item in draft.items if isinstance(item, str)] for draft in said], {})
        cost = engine.plan(request_of(messages, SamplingParams(), replace(options, system=""), "")).tokens
        if cost <= room:
            kept.append(number)
            room -= cost
    while kept:
        with suppress(TooLong):
            return told([number for number in range(len(earlier)) if number not in kept])
        del kept[-max(1, len(kept) // 4) :]
    return alone


def nearest_pages(
    drafts: Sequence[Draft], opened: Sequence[Sequence[str | File]], count: int
) -> list[list[str | File]]:
    """The same files with only `count` pages of their PDFs, those nearest to the last words; every PDF keeps one."""
    documents = [item for items in opened for item in items if isinstance(item, File) and item.pages]
    texts = [text for file in documents for text in file.texts]
    chosen = set(choose_pages(drafts[-1].words, texts, count))
    begin = 0
    fewer: dict[File, File] = {}
    for file in documents:
        kept = [index for index in range(len(file.pages)) if begin + index in chosen] or [0]
        begin += len(file.pages)
        fewer[file] = replace(
            file,
            pages=tuple(file.pages[index] for index in kept),
            points=tuple(file.points[index] for index in kept),
            texts=tuple(file.texts[index] for index in kept),
            of_pages=len(file.pages),
        )
    return [[fewer.get(item, item) if isinstance(item, File) else item for item in items] for items in opened]


def _lay_out(
    drafts: Sequence[Draft],
    opened: Sequence[Sequence[str | File]],
    *,
    named: tuple[Named, ...],
    engine: Engine,
    options: Options,
    conversation: str,
    strict: bool = False,
) -> Prompt:
    """With `strict` it is too long already where a video or the answer gets too little of the context."""
    files = [item for items in opened for item in items if not isinstance(item, str)]
    visual = bool(files) or any(isinstance(part, Image | FramePlan) for draft in drafts for part in draft.parts or ())
    sampling = options.sampling or (engine.model.sampling if visual else engine.model.sampling_text)

    # Everything but the new pixels is counted first; what is left is shared among the new files.
    skeleton = engine.plan(request_of(write(drafts, opened, {}), sampling, options, conversation))
    answer = min(sampling.max_tokens, engine.context_length // ANSWER_SHARE)
    room = engine.context_length - skeleton.tokens - answer - LABEL_TOKENS * len(files)
    if files and room <= 0:
        raise TooLong(
            f"The text of this conversation and its files has {skeleton.tokens:,} tokens; the model reads "
            f"{engine.context_length:,}, {answer:,} of them kept for the answer. Choose fewer pages or start a "
            "new chat."
        )
    question = drafts[-1].words
    said, spoken = fit_words(files, engine, options, room, question)
    visible = [file for file in files if file.kind != "Subtitles"]
    fitted, crowded = fit(visible, engine, options, room - spoken, question)
    fitted = {file: with_cues(file, fitted.get(file, ()), said.get(file, ())) for file in files}

    request = request_of(write(drafts, opened, fitted), sampling, options, conversation)
    budget = engine.plan(request)
    _refuse_what_does_not_fit(budget, bool(files))
    if strict and (crowded or budget.answer_tokens < min(answer, engine.context_length // LEAST_ANSWER_SHARE)):
        raise TooLong("This conversation fills the context. Start a new chat.")
    shown = tuple(
        replace(_shown(file, fitted[file], len(said.get(file, ()))), looked=looked(file, options)) for file in files
    )
    left_out = [_some_pages_sentence(file) for file in shown if len(file.pages) < file.of_pages]
    left_out += [_some_moments_sentence(file) for file in crowded]
    left_out += [_some_lines_sentence(file) for file in shown if file.lines[0] < file.lines[1]]
    return Prompt(
        request,
        budget,
        request.messages[-1].parts,
        shown,
        named,
        tuple(left_out),
        bool(crowded),
        _said_in_last(drafts, request, options),
    )


def _said_in_last(drafts: Sequence[Draft], request: GenerationRequest, options: Options) -> tuple[Cue, ...]:
    plans = [part for message in request.messages for part in message.parts if isinstance(part, FramePlan)]
    return lines_of(plans[-1].clip, drafts, options) if plans else ()


def _some_pages_sentence(file: Shown) -> str:
    pages = written_pages(file.pages)
    return (
        f"Of the {file.of_pages} pages of {file.name or 'the document'}, the model is shown {pages}, "
        "those nearest to the question. Name others in the settings to have them read."
    )


def _some_moments_sentence(plan: FramePlan) -> str:
    return (
        f"There is room for {len(plan.patches)} moments of {format_clock(plan.clip.duration)} of video, one every "
        f"{plan.clip.duration / len(plan.patches):.0f} seconds; what lies between is not looked at. Ask about a part "
        "of it, or start a new chat."
    )


def _some_lines_sentence(file: Shown) -> str:
    return (
        f"Of the {file.lines[1]:,} subtitle lines of {file.name or 'the video'}, the model is shown {file.lines[0]:,}, "
        "evenly spread and those nearest to the question."
    )


def _refuse_what_does_not_fit(budget: Budget, has_files: bool) -> None:
    if budget.fits:
        return
    advice = "Attach less, choose a shorter span or fewer pages" if has_files else "Shorten the text"
    if budget.tokens >= budget.context_length:
        raise TooLong(
            f"The prompt has {budget.tokens:,} tokens; the model reads {budget.context_length:,}. {advice}, or start a "
            "new chat.",
            tokens=budget.tokens,
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


def _shown(file: File, views: tuple[Part, ...], lines: int) -> Shown:
    attached = file.attached
    tokens = sum(view.tokens for view in views if isinstance(view, Image | FramePlan))
    if file.kind == "Subtitles":
        return Shown(attached.id, attached.name, "subtitles", tokens, lines=(lines, len(file.cues)))
    first = views[0]
    if isinstance(first, FramePlan):
        size = first.width, first.height
        said = lines, len(file.cues)
        return Shown(
            attached.id, attached.name, "video", tokens, *size, moments=first.stamps, span=file.span, lines=said
        )
    assert isinstance(first, Image) and first.seen is not None
    width, height = first.seen
    pages = tuple(view.page for view in views if isinstance(view, Image) and view.page is not None)
    return Shown(
        attached.id,
        attached.name,
        "document" if pages else "image",
        tokens,
        width,
        height,
        pages=pages,
        of_pages=file.of_pages,
    )
