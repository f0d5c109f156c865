"""Conversations as the browser is shown them: JSON, derived from the store's values and never read back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qwen3vl_webui.conversation import Attachment, Conversation, Turn
from qwen3vl_webui.engine.contract import Engine, ModelInfo, SamplingParams
from qwen3vl_webui.errors import UserError
from qwen3vl_webui.focus import video_of
from qwen3vl_webui.jobs import Progress
from qwen3vl_webui.media.values import Clip, Document, FramePlan, Image, Media, Subtitles
from qwen3vl_webui.prompt import Prompt
from qwen3vl_webui.settings import DEMO_MODEL, Settings

MediaOf = Callable[[Attachment], Media]
REAL_MODEL = "python app.py --model 4b"


def view_thread(conversation: Conversation, media: MediaOf) -> dict[str, Any]:
    """The branch shown and every file of it."""
    path = conversation.path
    files = view_files(path, media)
    return {
        "conversation": conversation.id if conversation.turns else None,
        "title": conversation.title,
        "files": files,
        "turns": [view_turn(turn, conversation, files) for turn in path],
    }


EMPTY_THREAD: dict[str, Any] = {"conversation": None, "title": "", "files": {}, "turns": []}


def view_turn(turn: Turn, conversation: Conversation, files: dict[str, Any]) -> dict[str, Any]:
    versions = [sibling.id for sibling in conversation.siblings(turn.id)]
    return {
        "id": turn.id,
        "role": turn.role,
        "versions": {"index": versions.index(turn.id), "ids": versions},
        "files": [files[attachment.id] for attachment in turn.attachments],
        "task": turn.task,
        "text": turn.text,
        "thinking": turn.thinking,
        "thinking_seconds": round(turn.thinking_seconds, 1),
        "state": turn.state,
        "note": turn.note,
        "statistics": turn.statistics,
    }


def view_files(path: tuple[Turn, ...], media: MediaOf) -> dict[str, Any]:
    """Attachment id -> what a viewer needs. A video has `plans`: what the model was shown of it, question by question,
    each moment as the seconds of its two frames."""
    files: dict[str, Any] = {}
    by_digest: dict[str, str] = {}
    for turn in path:
        for attachment in turn.attachments:
            files.setdefault(attachment.id, view_file(attachment, media))
            by_digest[attachment.digest] = attachment.id
        for part in turn.parts or ():
            match part:
                case FramePlan(clip=Clip(digest=digest)) if digest in by_digest:
                    add_plan(files[by_digest[digest]], turn, part)
                case Image(digest=digest, page=int(page)) if digest in by_digest:
                    files[by_digest[digest]].setdefault("read", []).append(page)
    videos = [file for file in files.values() if file["kind"] == "video"]
    for file in files.values():
        index = video_of(file["name"], [video["name"] for video in videos]) if file["kind"] == "subtitles" else None
        if index is not None:
            videos[index].setdefault("subtitles", []).append({"id": file["id"], "name": file["name"]})
    return files


def add_plan(file: dict[str, Any], turn: Turn, plan: FramePlan) -> None:
    """Spans read in one question stand together as one plan."""
    pairs = [[round(first, 3), round(second, 3)] for first, second in plan.patches]
    plans = file.setdefault("plans", [])
    span = [plan.clip.start, plan.clip.end]
    if plans and plans[-1]["turn"] == turn.id:
        plans[-1]["pairs"] += pairs
        plans[-1]["spans"].append(span)
    else:
        plans.append({"turn": turn.id, "pairs": pairs, "spans": [span], "frame": [plan.width, plan.height]})


def view_file(attachment: Attachment, media: MediaOf) -> dict[str, Any]:
    view: dict[str, Any] = {"id": attachment.id, "name": attachment.name, "kind": attachment.kind}
    try:
        found = media(attachment)
    except UserError:
        return {**view, "missing": True, "duration": 0, "start": 0, "pages": 0}
    match found:
        case Clip():
            size = {"width": found.width, "height": found.height}
            return {**view, **size, "start": found.start, "duration": round(found.duration, 3)}
        case Document():
            return {**view, "pages": found.pages, "sizes": [[round(w), round(h)] for w, h in found.page_sizes[:2000]]}
        case Image():
            return {**view, "width": found.width, "height": found.height}
        case Subtitles():
            return {**view, "lines": found.cues}


def view_progress(progress: Progress) -> dict[str, Any]:
    """The part of a running answer that changes; the text is linked by the caller."""
    return {
        "thinking": progress.thinking,
        "thinking_seconds": round(progress.thinking_seconds, 1),
        "prefill": {
            "done": progress.prefill.done,
            "total": progress.prefill.total,
            "waiting": progress.prefill.waiting,
            "seconds_left": None if progress.prefill.seconds_left is None else round(progress.prefill.seconds_left, 1),
        },
        "closer": [look.record for look in progress.closer],
        "note": progress.note,
        "statistics": progress.statistics,
    }


def view_price(prompt: Prompt) -> dict[str, Any]:
    budget = prompt.budget
    return {
        "tokens": budget.tokens,
        "positions": budget.positions,
        "most_positions": budget.most_positions,
        "context": budget.context_length,
        "answer_tokens": budget.answer_tokens,
        "memory_bytes": budget.memory_bytes,
        "memory_free": budget.memory_free,
        "fits": budget.fits,
        "shown": [
            {
                "id": file.id,
                "name": file.name,
                "kind": file.kind,
                "tokens": file.tokens,
                "width": file.width,
                "height": file.height,
                "moments": len(file.moments),
                "pages": len(file.pages),
                "of_pages": file.of_pages,
                "looked": None if file.looked is None else round(file.looked, 2),
                "span": file.span,
                "lines": file.lines,
            }
            for file in prompt.shown
        ],
        "left_out": list(prompt.left_out),
        "named": [
            {"id": span.id, "name": span.name, "start": span.start, "end": span.end, "used": span.used}
            for span in prompt.named
        ],
    }


RELIABLE = 0.9  # share of right answers from which a skill is called reliable


def view_model(model: ModelInfo) -> dict[str, Any]:
    return {
        "name": model.name,
        "checkpoint": model.checkpoint if model.checkpoint != str(DEMO_MODEL) else "assets/demo-model",
        "device": model.device,
        "quantization": model.quantization,
        "kv_cache": model.kv_cache,
        "context_length": model.context_length,
        "thinking": model.thinking,
        "demo": model.demo,
        "trained": model.trained,
        "skills": {
            "good": [name for name, share in model.skills if share >= RELIABLE],
            "weak": [name for name, share in model.skills if share < RELIABLE],
        },
        "sampling": view_sampling(model.sampling),
    }


def view_sampling(sampling: SamplingParams) -> dict[str, Any]:
    return {
        name: getattr(sampling, name)
        for name in (
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "repetition_penalty",
            "max_tokens",
        )
    }


def view_status(engine: Engine, settings: Settings) -> dict[str, Any]:
    """Which model answers and, while it is being opened, how far that is."""
    opening = getattr(engine, "status", None)
    model: dict[str, Any] | None
    try:
        model = view_model(engine.model)
    except UserError:
        model = {"name": settings.model, "checkpoint": settings.model} if settings.model != "auto" else None
    return {
        "state": opening.state if opening else "ready",
        "stage": opening.stage if opening else "",
        "done": opening.done if opening else 0,
        "total": opening.total if opening else 0,
        "sentence": opening.sentence if opening else "",
        "model": model,
        "command": REAL_MODEL,
    }
