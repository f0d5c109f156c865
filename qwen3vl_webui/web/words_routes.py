"""What is said in a video, for the player: tracks in the file, subtitle files beside it, and speech written down."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from qwen3vl_webui.errors import MediaError, NotFound
from qwen3vl_webui.media import speech
from qwen3vl_webui.media.sound import NO_SOUND
from qwen3vl_webui.media.subtitles import as_vtt, read_beside, read_inside
from qwen3vl_webui.media.values import Clip, Cue, Subtitles
from qwen3vl_webui.services import Services
from qwen3vl_webui.web.refusals import RefusingRoute
from qwen3vl_webui.web.requested import requested_file, requested_video

OFFERS = 2  # looked for at the same time, each by a process of its own


def words_routes(services: Services) -> APIRouter:
    store, settings = services.store, services.settings
    offers = CapacityLimiter(OFFERS)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(speech.hearings.close)

    router = APIRouter(route_class=RefusingRoute, lifespan=lifespan)

    @router.get("/media/{file_id}/tracks")
    async def tracks(request: Request, file_id: str) -> dict[str, Any]:
        _, clip = await requested_video(store, request, file_id)
        inside = await to_thread.run_sync(read_inside, clip)
        return {
            "tracks": [
                {"language": track.language, "title": track.title, "default": track.default, "lines": len(track.cues)}
                for track in inside.tracks
            ],
            "chapters": [{"t": each.start, "e": each.end, "title": each.title} for each in inside.chapters],
            "pictures": inside.pictures,
            "speech": described_hearing(clip) if clip.audio and not inside.tracks and speech.installed() else None,
        }

    async def find_spoken(request: Request, file_id: str) -> Clip:
        _, clip = await requested_video(store, request, file_id)
        if not clip.audio:
            raise MediaError(NO_SOUND)
        return clip

    @router.get("/media/{file_id}/speech")
    async def how_speech(request: Request, file_id: str) -> dict[str, Any]:
        """How far the writing down of what is said is; `none` where nobody has asked for it."""
        return described_hearing(await find_spoken(request, file_id))

    @router.get("/media/{file_id}/speech/offer")
    async def offer_speech(request: Request, file_id: str) -> dict[str, Any]:
        """What writing it down would take; nothing begins."""
        clip = await find_spoken(request, file_id)
        offer = await to_thread.run_sync(speech.offer, clip, settings.speech_model, limiter=offers)
        return {"model": Path(offer.model).name, "megabytes": offer.megabytes, "seconds": offer.seconds}

    @router.post("/media/{file_id}/speech")
    async def begin_speech(request: Request, file_id: str) -> dict[str, Any]:
        clip = await find_spoken(request, file_id)
        await to_thread.run_sync(speech.begin, clip, settings.speech_model)
        return described_hearing(clip)

    @router.delete("/media/{file_id}/speech")
    async def cancel_speech(request: Request, file_id: str) -> dict[str, Any]:
        clip = await find_spoken(request, file_id)
        await to_thread.run_sync(speech.cancel, clip)
        return described_hearing(clip)

    @router.get("/media/{file_id}/speech.vtt")
    async def spoken(request: Request, file_id: str) -> Response:
        track = speech.heard(await find_spoken(request, file_id))
        if track is None:
            raise NotFound("There are no such subtitles.")
        return vtt(track.cues)

    @router.get("/media/{file_id}/tracks/{number}.vtt")
    async def track(request: Request, file_id: str, number: int) -> Response:
        _, clip = await requested_video(store, request, file_id)
        inside = await to_thread.run_sync(read_inside, clip)
        if not 0 <= number < len(inside.tracks):
            raise NotFound("There are no such subtitles.")
        return vtt(inside.tracks[number].cues)

    @router.get("/media/{file_id}/beside/{subtitles_id}.vtt")
    async def beside(request: Request, file_id: str, subtitles_id: str) -> Response:
        """A subtitle file as the player of the video `file_id` shows it."""
        _, clip = await requested_video(store, request, file_id)
        subtitles = (await requested_file(store, request, subtitles_id)).media
        if not isinstance(subtitles, Subtitles):
            raise NotFound("There are no such subtitles.")
        return vtt(await to_thread.run_sync(read_beside, subtitles, clip.fps))

    return router


def vtt(cues: tuple[Cue, ...]) -> Response:
    return Response(as_vtt(cues), media_type="text/vtt")


def described_hearing(clip: Clip) -> dict[str, Any]:
    now = speech.hearing(clip)
    return {
        "state": now.state,
        "stage": now.stage,
        "progress": now.done,
        "left": now.left,
        "lines": len(now.track.cues) if now.track else 0,
        "language": now.track.language if now.track else "",
        "sentence": now.sentence,
    }
