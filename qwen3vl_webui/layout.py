"""How messages are written: the order of what a model is shown and the words around it.

Of a user's message, in order:

- a picture: its visual tokens; `Picture 2: ` stands before it when the conversation shows more than one;
- a video: its frames, each temporal patch behind its `<t seconds>` label; `Video 2: ` likewise. Where the question
  names spans of it (`the last ten minutes`), only those; a moment it names is among the frames;
- a video shown in an earlier turn, once more, when the question names a span of it or a moment that was not seen;
- what is said in a video: lines such as `[751.0-763.2] words` from its subtitles, each before the first label later
  than it begins; the container's chapters stand before the video. Of a subtitle file that comes later than its video:
  its lines by themselves;
- a PDF: for each page `Page 3: `, the page's picture, a line break, the page's text layer where it has one and a line
  break; `Document 2, ` likewise before each `Page`;
- the words; behind those that name moments of the only video of a conversation, their labels: ` (<367.6 seconds>)`.

A turn that was already shown to the model is repeated to the letter (`Turn.parts`), so that the engine's prefix holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qwen3vl_webui.draft import Draft, Options
from qwen3vl_webui.engine.contract import GenerationRequest, Message, SamplingParams
from qwen3vl_webui.focus import pointer
from qwen3vl_webui.media.values import Clip, FramePlan, Image, Part
from qwen3vl_webui.relevance import written_pages
from qwen3vl_webui.showing import File

Views = dict[File, tuple[Part, ...]]  # what the model sees of each file, at its size


def write(drafts: Sequence[Draft], opened: Sequence[Sequence[str | File]], fitted: Views) -> tuple[Message, ...]:
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
        if len(videos) == 1 and draft.role == "user" and items and isinstance(items[-1], str):
            parts.append(_pointer(draft.words, items, parts, messages))
        messages.append(Message(draft.role, _joined(parts)))
    return tuple(messages)


def _pointer(words: str, items: Sequence[str | File], parts: Sequence[Part], before: Sequence[Message]) -> str:
    """Behind the words of a message: what is shown of the video in it or else before it, at the moments they name."""
    clips = [item.clip for item in items if isinstance(item, File) and item.clip]
    plans = [part for part in parts if isinstance(part, FramePlan)]
    if not clips:
        plans = [part for message in before for part in message.parts if isinstance(part, FramePlan)]
        clips = [plan.clip for plan in plans]
    patches = sorted(patch for plan in plans for patch in plan.patches)
    return pointer(words, patches, max(clip.end for clip in clips)) if clips else ""


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


def request_of(
    messages: Sequence[Message], sampling: SamplingParams, options: Options, conversation: str
) -> GenerationRequest:
    system = [Message("system", (options.system,))] if options.system.strip() else []
    return GenerationRequest((*system, *messages), sampling, options.priority, conversation)
