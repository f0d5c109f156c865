"""Conversation + options -> GenerationRequest within the token budget: the only bridge from what people upload to what
an engine sees.

Layout of a user's message, in order:

- a picture: its visual tokens; `Picture 2: ` stands before it when the conversation shows more than one;
- a video: its frames, each temporal patch behind its `<t seconds>` label; `Video 2: ` likewise. Where the question
  names spans of it (`the last ten minutes`), only those; a moment it names is among the frames;
- a video shown in an earlier turn, once more, when the question names a span of it or a moment that was not seen;
- what is said in a video: lines such as `[751.0-763.2] words` from its subtitles, each before the first label later
  than it begins; the container's chapters stand before the video. Of a subtitle file that comes later than its video:
  its lines by themselves;
- a PDF: for each page `Page 3: `, the page's picture, a line break, the page's text layer where it has one and a line
  break; `Document 2, ` likewise before each `Page`;
- the words.

A turn that was already shown to the model is repeated to the letter (`Turn.parts`), so that the engine's prefix holds.
Where a conversation outgrows the context, the question before, the newest files and what shares the question's words
stay; the rest is left out and told.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from qwen3vl_webui.conversation import Attachment, Conversation
from qwen3vl_webui.draft import Attached, Draft, Options
from qwen3vl_webui.engine.contract import Budget, Engine, GenerationRequest, Message, SamplingParams
from qwen3vl_webui.errors import TooLong, Unsupported, UserError
from qwen3vl_webui.media import storyboard as storyboards
from qwen3vl_webui.media.captions import thinned, woven, written
from qwen3vl_webui.media.moments import plan_chosen, with_moments
from qwen3vl_webui.media.sampling import FEWEST_MOMENTS, LABEL_TOKENS, fit_document, fit_image, plan_frames
from qwen3vl_webui.media.segments import Storyboard
from qwen3vl_webui.media.values import PATCH_SIDE, Clip, Cue, FramePlan, Image, Media, Part
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.relevance import choose_exchanges, choose_lines, choose_pages, written_pages
from qwen3vl_webui.showing import File, Named, lines_of, open_all
from qwen3vl_webui.times import format_clock

CPU_VIDEO_TOKENS = 8_192  # what a laptop reads in patience; notes: 64 moments at 448 x 256
CUDA_VIDEO_TOKENS = 32_768  # about 20 s of prefill for 4B on a 24 GB card; more can be set by hand
CPU_WORDS_TOKENS = 4_096  # of subtitles; 2 h of dense speech have about 36,000
CUDA_WORDS_TOKENS = 32_768
WORDS_SHARE = 4  # at most a quarter of what is left is given to subtitles
ANSWER_SHARE = 4  # at most a quarter of the context is kept free for the answer
CROWDED = 4  # with fewer than a quarter of the moments it would have by itself a video is crowded
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
        sentence = _forgotten_sentence(drafts, earlier, left) if left else ""
        return replace(prompt, left_out=(*([sentence] if sentence else []), *prompt.left_out))

    try:
        return told(strict=bool(earlier))
    except TooLong as error:
        refusal = error
    everything = range(len(earlier))
    if earlier:
        with suppress(TooLong):
            alone = told(everything)
            return _beside(alone, drafts, earlier, engine, options, partial(told, strict=not alone.crowded))
    if not options.pages and drafts_pages(drafts, options) > 1:
        with suppress(TooLong):
            return told(pages=True)
        if earlier:
            return told(everything, pages=True)
    raise refusal


def drafts_pages(drafts: Sequence[Draft], options: Options) -> int:
    opened, _ = open_all(drafts, options)
    return sum(len(item.pages) for items in opened for item in items if isinstance(item, File))


def _as_many_pages(
    drafts: Sequence[Draft], opened: Sequence[Sequence[str | File]], laying: Callable[..., Prompt]
) -> Prompt:
    """With as many pages as fit, at least one. Raises TooLong."""
    pages = sum(len(item.pages) for items in opened for item in items if isinstance(item, File))
    found, least, most = laying(nearest_pages(drafts, opened, 1)), 2, pages - 1
    while least <= most:
        count = (least + most + 1) // 2
        try:
            found, least = laying(nearest_pages(drafts, opened, count)), count + 1
        except TooLong:
            most = count - 1
    return found


Exchange = range  # indexes of a question's draft and those of its answers


def exchanges(drafts: Sequence[Draft]) -> list[Exchange]:
    """All before the last question."""
    asked = [index for index, draft in enumerate(drafts) if draft.role == "user"]
    return [range(start, end) for start, end in itertools.pairwise(asked)]


def without(drafts: Sequence[Draft], left: Collection[Exchange]) -> list[Draft]:
    gone = {index for exchange in left for index in exchange}
    return [
        replace(
            draft,
            items=tuple(item for item in draft.items if isinstance(item, Attached)),
            parts=() if draft.parts is None else draft.parts,
            left_out=True,
        )
        if index in gone
        else draft
        for index, draft in enumerate(drafts)
    ]


def _beside(
    alone: Prompt,
    drafts: Sequence[Draft],
    earlier: Sequence[Exchange],
    engine: Engine,
    options: Options,
    told: Callable[[Collection[int]], Prompt],
) -> Prompt:
    """As many earlier exchanges as fit beside the last question, which fits `alone`: the one before it first, then the
    newest with files, those that share its words, the newer ones. New files give way down to half the context."""
    question = "\n".join(item for item in drafts[-1].items if isinstance(item, str))
    texts = ["\n".join(_text_of(drafts[index]) for index in exchange) for exchange in earlier]
    with_files = [any(isinstance(item, Attached) for item in drafts[exchange[0]].items) for exchange in earlier]
    order = choose_exchanges(question, texts, with_files)
    budget = alone.budget
    answer = min(alone.request.sampling.max_tokens, budget.context_length // ANSWER_SHARE)
    room = budget.context_length - answer - min(budget.tokens, budget.context_length // 2)
    kept: list[int] = []
    for number in order:
        said = [drafts[index] for index in earlier[number]]
        messages = _write(said, [[item for item in draft.items if isinstance(item, str)] for draft in said], {})
        cost = engine.plan(_request(messages, SamplingParams(), replace(options, system=""), "")).tokens
        if cost <= room:
            kept.append(number)
            room -= cost
    while kept:
        with suppress(TooLong):
            return told([number for number in range(len(earlier)) if number not in kept])
        del kept[-max(1, len(kept) // 4) :]
    return alone


def _text_of(draft: Draft) -> str:
    names = [item.name for item in draft.items if isinstance(item, Attached)]
    words = draft.items if draft.parts is None else draft.parts
    return "\n".join([*names, *(item for item in words if isinstance(item, str))])


def _forgotten_sentence(drafts: Sequence[Draft], earlier: Sequence[Exchange], left: Collection[int]) -> str:
    numbers = written_pages([number + 1 for number in left])
    items = [item for number in left for index in earlier[number] for item in drafts[index].items]
    names = list(dict.fromkeys(item.name or item.id for item in items if isinstance(item, Attached)))
    if not names:
        return (
            f"{len(left)} of your {len(earlier)} earlier questions (no. {numbers}) and their answers have no room and "
            "are not looked at. Say again what matters of them."
        )
    return (
        f"{len(left)} of your {len(earlier)} earlier questions (no. {numbers}), their answers and files "
        f"({', '.join(names)}) have no room and are not looked at. Attach again what matters of them."
    )


def nearest_pages(
    drafts: Sequence[Draft], opened: Sequence[Sequence[str | File]], count: int
) -> list[list[str | File]]:
    """The same files with only `count` pages of their PDFs, those nearest to the last words; every PDF keeps one."""
    question = "\n".join(item for item in drafts[-1].items if isinstance(item, str))
    documents = [item for items in opened for item in items if isinstance(item, File) and item.pages]
    texts = [text for file in documents for text in file.texts]
    chosen = set(choose_pages(question, texts, count))
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
    skeleton = engine.plan(_request(_write(drafts, opened, {}), sampling, options, conversation))
    answer = min(sampling.max_tokens, engine.context_length // ANSWER_SHARE)
    room = engine.context_length - skeleton.tokens - answer - LABEL_TOKENS * len(files)
    if files and room <= 0:
        raise TooLong(
            f"The text of this conversation and its files has {skeleton.tokens:,} tokens; the model reads "
            f"{engine.context_length:,}, {answer:,} of them kept for the answer. Choose fewer pages or start a "
            "new chat."
        )
    question = "\n".join(item for item in drafts[-1].items if isinstance(item, str))
    said, spoken = _fit_words(files, engine, options, room, question)
    visible = [file for file in files if file.kind != "Subtitles"]
    fitted, crowded = _fit(visible, engine, options, room - spoken, question)
    fitted = {file: _with_cues(file, fitted.get(file, ()), said.get(file, ())) for file in files}

    request = _request(_write(drafts, opened, fitted), sampling, options, conversation)
    budget = engine.plan(request)
    _refuse_what_does_not_fit(budget, bool(files))
    if strict and (crowded or budget.answer_tokens < min(answer, engine.context_length // LEAST_ANSWER_SHARE)):
        raise TooLong("This conversation fills the context. Start a new chat.")
    shown = tuple(
        replace(_shown(file, fitted[file], len(said.get(file, ()))), looked=_looked(file, options)) for file in files
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


Fitted = dict[File, tuple[Part, ...]]


def _fit_words(
    files: Sequence[File], engine: Engine, options: Options, room: int, question: str
) -> tuple[dict[File, tuple[Cue, ...]], int]:
    """Of each video and subtitle file the cues that are shown, and their cost. Where they are too many they are
    thinned evenly, but those nearest to the question stay."""
    speaking = [file for file in files if file.cues]
    usual = CUDA_WORDS_TOKENS if engine.model.device.startswith("cuda") else CPU_WORDS_TOKENS
    said: dict[File, tuple[Cue, ...]] = {}
    spoken = 0
    for file in speaking:
        share = min(usual, room // WORDS_SHARE) // len(speaking)
        said[file], asked = file.cues, None
        while said[file] and (cost := _cost(written(said[file]), engine, options)) > share:
            if asked is None:
                asked = [file.cues[index] for index in choose_lines(question, [cue.text for cue in file.cues])]
            fewer = thinned([cue for cue in said[file] if cue not in asked], min(0.9, 0.95 * share / cost))
            said[file] = tuple(sorted({*fewer, *(asked if fewer else ())}, key=lambda cue: (cue.start, cue.end)))
        spoken += cost if said[file] else 0
    return said, spoken


def _cost(text: str, engine: Engine, options: Options) -> int:
    return engine.plan(_request((Message("user", (text,)),), SamplingParams(), options, "")).tokens


def _with_cues(file: File, views: tuple[Part, ...], cues: tuple[Cue, ...]) -> tuple[Part, ...]:
    if not cues:
        return views
    if not views:
        return (written(cues),)
    plan = views[0]
    assert isinstance(plan, FramePlan)
    plan, after = woven(plan, cues)
    return (plan, after) if after else (plan,)


def _fit(
    files: Sequence[File], engine: Engine, options: Options, room: int, question: str
) -> tuple[Fitted, list[FramePlan]]:
    """Each file at the size the model will see it: pictures first, then pages, then videos with what is left.

    And the plans of videos that are crowded: beside evenly spread ones they have a moment where a line nearest to the
    question is said.
    """
    crowded: list[FramePlan] = []
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
            view = picture.at(*size)
            fitted[file] = (view,)
            room -= view.tokens
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
        share = min(room // left, by_hand or room // left)
        frame_pixels = engine.model.frame_pixels
        times = read_times(file.clip)
        if file.chosen:
            plan = plan_chosen(
                file.clip, times, file.chosen, budget=share, label_tokens=LABEL_TOKENS, frame_pixels=frame_pixels
            )
        else:
            planning = partial(
                plan_frames,
                file.clip,
                times,
                label_tokens=LABEL_TOKENS,
                frame_pixels=frame_pixels,
                fps=options.fps,
                most_moments=options.most_moments or (None if options.fps else engine.model.most_moments),
                storyboard=_storyboard(file.clip, options),
            )
            plan, moments = planning(budget=share), file.moments
            by_itself = len(planning(budget=by_hand or usual).patches) if share < (by_hand or usual) else 0
            is_crowded = len(plan.patches) < max(by_itself // CROWDED, min(by_itself, FEWEST_MOMENTS))
            if is_crowded:
                asked = choose_lines(question, [cue.text for cue in file.cues])[: len(plan.patches) // 2]
                moments = (*moments, *(file.cues[index].start for index in asked))
            plan = with_moments(plan, times, moments)
            crowded += [plan] if is_crowded else []
        fitted[file] = (plan,)
        room -= plan.tokens + LABEL_TOKENS * len(plan.patches)
    return fitted, crowded


def _storyboard(clip: Clip, options: Options) -> Storyboard | None:
    """What happens in a long clip whose moments nobody set by hand, where that is known by now.

    Otherwise it is looked for in the background, and this prompt waits for it as long as `options.patience` says.
    """
    if options.fps or options.most_moments or not storyboards.pays(clip):
        return None
    return storyboards.wait(clip, options.patience)


def _looked(file: File, options: Options) -> float | None:
    if file.clip is None or file.chosen or options.fps or options.most_moments or not storyboards.pays(file.clip):
        return None
    reading = storyboards.reading(file.clip)
    return reading.done if reading.state == "making" else None


def _write(drafts: Sequence[Draft], opened: Sequence[Sequence[str | File]], fitted: Fitted) -> tuple[Message, ...]:
    """The messages in layout. Files that are not fitted yet are written without their pictures."""
    videos: dict[str, int] = {}  # digest -> its number: shown again it keeps the one it has
    totals = Counter(kind for draft, items in zip(drafts, opened, strict=True) for kind in _kinds(draft, items, videos))
    numbers: Counter[str] = Counter()
    known: dict[str, int] = {}
    messages = []
    for draft, items in zip(drafts, opened, strict=True):
        if draft.parts is not None:
            numbers.update(_kinds(draft, items, known))
            if not draft.left_out:
                messages.append(Message(draft.role, draft.parts))
            continue
        parts: list[Part] = []
        for item in items:
            if isinstance(item, str):
                parts.append(item)
                continue
            numbers.update(_kinds(draft, [item], known))
            number = videos[item.clip.digest] if item.clip else numbers[item.kind]
            label = f"{item.kind} {number}" if totals[item.kind] > 1 else ""
            views = fitted.get(item, ())
            if item.kind == "Document":
                if item.of_pages:
                    shown = written_pages([page.page or 0 for page in item.pages])
                    parts.append(f"{label or 'Document'}: pages {shown} of {item.of_pages}.\n")
                for index, text in enumerate(item.texts):
                    parts.append(f"{label}, Page" if label else "Page")
                    parts.append(f" {item.pages[index].page}: ")
                    parts += views[index : index + 1]
                    parts.append(f"\n{text}\n" if text else "\n")
            else:
                parts += [f"{label}: "] if label and item.kind != "Subtitles" else []
                parts += [item.before] if item.before else []
                parts += views
        messages.append(Message(draft.role, _joined(parts)))
    return tuple(messages)


def _kinds(draft: Draft, items: Sequence[str | File], videos: dict[str, int]) -> list[str]:
    """The kinds of the files that are new in one message, in order; the pages of one PDF count once, and a video once
    in a conversation: `videos` has the number of each so far and gets those of the new ones."""
    kinds, documents = [], set()
    for part in items if draft.parts is None else draft.parts:
        match part:
            case File(clip=Clip(digest=digest)) | FramePlan(clip=Clip(digest=digest)):
                if digest not in videos:
                    videos[digest] = len(videos) + 1
                    kinds.append("Video")
            case File(kind=kind):
                kinds.append(kind)
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
