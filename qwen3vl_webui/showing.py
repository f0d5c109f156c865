"""What of each file a message shows: pages, spans and moments, chosen by hand or named in the words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from qwen3vl_webui.draft import Attached, Draft, Options, Pair
from qwen3vl_webui.errors import MediaError
from qwen3vl_webui.focus import around, find_focus, named_videos, video_of
from qwen3vl_webui.media.captions import within
from qwen3vl_webui.media.document import page_as_image, read_texts
from qwen3vl_webui.media.moments import shows
from qwen3vl_webui.media.speech import heard
from qwen3vl_webui.media.subtitles import Chapter, Track, read_beside, read_inside
from qwen3vl_webui.media.values import Clip, Cue, Document, FramePlan, Image, Subtitles
from qwen3vl_webui.times import format_clock

SPARSE = 120.0  # seconds: in a longer video a moment may lie between those shown
CLOSE = 2.0  # seconds before and after a moment that is looked at again


@dataclass(frozen=True)
class Named:
    """A span of a video that the question names; `used`: the model is shown that span, not the whole video."""

    id: str
    name: str
    start: float
    end: float
    used: bool


@dataclass(frozen=True, eq=False)
class File:
    """A file of a new message: a picture, a clip, or the chosen pages of a PDF with their texts."""

    attached: Attached
    clip: Clip | None = None
    picture: Image | None = None
    pages: tuple[Image, ...] = ()
    points: tuple[tuple[float, float], ...] = ()  # (width, height) of each page
    texts: tuple[str, ...] = ()
    of_pages: int = 0  # how many the PDF has, where not all are shown for want of room
    moments: tuple[float, ...] = ()  # seconds of a clip that are asked about
    chosen: tuple[Pair, ...] = ()  # of a clip, by hand
    span: tuple[float, float] | None = None
    cues: tuple[Cue, ...] = ()  # of a clip, or of a subtitle file on its own
    before: str = ""  # what is written before it

    @property
    def kind(self) -> str:
        return "Video" if self.clip else "Picture" if self.picture else "Document" if self.pages else "Subtitles"


def open_all(drafts: Sequence[Draft], options: Options) -> tuple[list[list[str | File]], tuple[Named, ...]]:
    """The items of each message opened, and the spans the last one's words name. A question without a video of its own
    may show one of the videos before it again: those of the latest message that had some, or the ones it names."""
    opened: list[list[str | File]] = []
    named: list[Named] = []
    videos: list[Attached] = []  # of the conversation so far
    newest: list[Attached] = []
    plans: list[FramePlan] = []
    sidecars: list[Attached] = []  # subtitle files of earlier messages, and of this one beside its video
    for draft in drafts:
        new_sidecars = [file for file in draft.files if isinstance(file.media, Subtitles)]
        own = [file for file in draft.files if isinstance(file.media, Clip)]
        newest = own or newest
        videos += own
        items: list[str | File] = []
        if draft.parts is None:
            named.clear()
            words = draft.words
            called = [videos[index] for index in named_videos(words, [video.name for video in videos])]
            asked = [video for video in newest if video in called] or called or newest
            beside = [item for item in new_sidecars if own and video_of(item.name, names_of(own)) is not None]
            sidecars += beside
            if not own and draft.role == "user":
                for video in asked:
                    again = _show_again(video, words, options, plans, named)
                    items += [_with_words(file, _sidecar_of(video, videos, sidecars), words, options) for file in again]
            for item in draft.items:
                if isinstance(item, Attached) and isinstance(item.media, Clip):
                    files = _open_clip(item, item.media, words if item in asked else "", options, named)
                    items += [_with_words(file, _sidecar_of(item, own, sidecars), words, options) for file in files]
                elif item in beside:
                    continue
                else:
                    items.append(item if isinstance(item, str) else _open(item, options))
            sidecars += [item for item in new_sidecars if item not in beside]
        else:
            sidecars += new_sidecars
        opened.append(items)
        plans += [part for part in draft.parts or () if isinstance(part, FramePlan) and not draft.left_out]
    return opened, tuple(named)


def _open_clip(item: Attached, clip: Clip, words: str, options: Options, named: list[Named]) -> list[File]:
    """A video as it is shown: whole, a span set by hand, or every span that the words name."""
    if chosen := (options.moments or {}).get(item.id):
        return [File(item, clip=clip, chosen=chosen)]
    if options.start is not None or options.end is not None:
        return [_span_by_hand(item, clip, options)]
    focus = find_focus(words, clip.duration)
    if focus.spans:
        named += [Named(item.id, item.name, start, end, not options.whole) for start, end in focus.spans]
    if focus.spans and not options.whole:
        return [File(item, clip=clip.between(*span), moments=focus.moments, span=span) for span in focus.spans]
    return [File(item, clip=clip, moments=focus.moments)]


def _show_again(
    item: Attached, words: str, options: Options, plans: Sequence[FramePlan], named: list[Named]
) -> list[File]:
    """What a question without a video of its own has to see of one before it, in new parts of its own message."""
    clip = item.media
    assert isinstance(clip, Clip)
    focus = find_focus(words, clip.duration)
    by_hand = options.start is not None or options.end is not None or item.id in (options.moments or {})
    if by_hand or focus.spans:
        files = _open_clip(item, clip, words, options, named)
        return files if by_hand or not options.whole else []
    seen = [plan for plan in plans if plan.clip.digest == clip.digest]
    missed = [second for second in focus.moments if not any(shows(plan, second) for plan in seen)]
    if options.whole or (not seen and clip.duration <= SPARSE):
        return []
    spans = around(missed, CLOSE, clip.duration)
    return [File(item, clip=clip.between(*span), moments=tuple(missed), span=span) for span in spans]


def names_of(files: Sequence[Attached]) -> list[str]:
    return [file.name for file in files]


def _sidecar_of(video: Attached, videos: Sequence[Attached], sidecars: Sequence[Attached]) -> Attached | None:
    """The newest subtitle file that belongs to a video."""
    for sidecar in reversed(sidecars):
        index = video_of(sidecar.name, names_of(videos))
        if index is not None and videos[index] == video:
            return sidecar
    return None


def _with_words(file: File, sidecar: Attached | None, question: str, options: Options) -> File:
    """A clip with its chapters and with what is said in it."""
    assert file.clip is not None
    if not options.subtitles:
        return file
    before = written_chapters(read_inside(file.clip).chapters, file.clip)
    return replace(file, cues=_lines(file.clip, sidecar, question), before=before)


def _lines(clip: Clip, sidecar: Attached | None, question: str) -> tuple[Cue, ...]:
    cues: Sequence[Cue] = ()
    if sidecar is not None and isinstance(sidecar.media, Subtitles):
        cues = read_beside(sidecar.media, clip.fps)
    elif (inside := read_inside(clip)).tracks:
        cues = track_for(question, inside.tracks).cues
    elif (written_down := heard(clip)) is not None:
        cues = written_down.cues
    return within(cues, clip.start, clip.end)


def lines_of(clip: Clip, drafts: Sequence[Draft], options: Options) -> tuple[Cue, ...]:
    """What is said in a video of the conversation, all of it, whatever of it had room; nothing where subtitles are
    off."""
    files = [file for draft in drafts for file in draft.files]
    videos = [file for file in files if isinstance(file.media, Clip)]
    sidecars = [file for file in files if isinstance(file.media, Subtitles)]
    video = next((file for file in reversed(videos) if file.media.digest == clip.digest), None)
    if video is None or not options.subtitles:
        return ()
    return _lines(clip, _sidecar_of(video, videos, sidecars), drafts[-1].words)


def track_for(question: str, tracks: Sequence[Track]) -> Track:
    """The track in the language of the question; else the container's default, else its first."""
    chinese = any("\u4e00" <= letter <= "\u9fff" for letter in question)
    wanted = ("zh", "chi", "zho", "cmn", "yue") if chinese else ("en",)
    fitting = [track for track in tracks if track.language.lower().startswith(wanted)]
    return next(iter(fitting or [track for track in tracks if track.default] or tracks))


def written_chapters(chapters: Sequence[Chapter], clip: Clip) -> str:
    inside = [each for each in chapters if each.title and each.start < clip.end and each.end > clip.start]
    if not inside:
        return ""
    return "Chapters: " + "; ".join(f"{format_clock(each.start)} {each.title}" for each in inside) + "\n"


def _span_by_hand(item: Attached, clip: Clip, options: Options) -> File:
    try:
        span = clip.between(options.start or clip.start, clip.end if options.end is None else options.end)
    except ValueError:
        raise MediaError(
            f"Nothing is left of {item.name or 'the video'} between these times; it is {clip.duration:.1f} "
            "seconds long."
        ) from None
    return File(item, clip=span, span=(span.start, span.end))


def _open(item: Attached, options: Options) -> File:
    match item.media:
        case Image() as picture:
            return File(item, picture=picture)
        case Document() as document:
            chosen = read_pages(options.pages, document.pages)
            texts = read_texts(document)
            return File(
                item,
                pages=tuple(page_as_image(document, page) for page in chosen),
                points=tuple(document.page_sizes[page - 1] for page in chosen),
                texts=tuple(texts[page - 1].strip() for page in chosen),
            )
        case Subtitles() as subtitles:
            name = item.name or "subtitles"
            return File(item, cues=read_beside(subtitles), before=f"Subtitles ({name}):\n")
        case Clip() as clip:
            return File(item, clip=clip)


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
