"""Each file at the size the model will see it, and what is said in it, within the tokens that are left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from qwen3vl_webui.draft import Options
from qwen3vl_webui.engine.contract import Engine, Message, SamplingParams
from qwen3vl_webui.errors import TooLong
from qwen3vl_webui.layout import Views, request_of
from qwen3vl_webui.media import storyboard as storyboards
from qwen3vl_webui.media.captions import thinned, woven, written
from qwen3vl_webui.media.moments import plan_chosen, with_moments
from qwen3vl_webui.media.sampling import FEWEST_MOMENTS, LABEL_TOKENS, fit_document, fit_image, plan_frames
from qwen3vl_webui.media.values import PATCH_SIDE, Cue, FramePlan, Image, Part
from qwen3vl_webui.media.video import read_times
from qwen3vl_webui.relevance import choose_lines
from qwen3vl_webui.showing import File

CPU_VIDEO_TOKENS = 8_192  # what a laptop reads in patience; notes: 64 moments at 448 x 256
CUDA_VIDEO_TOKENS = 32_768  # about 20 s of prefill for 4B on a 24 GB card; more can be set by hand
CPU_WORDS_TOKENS = 4_096  # of subtitles; 2 h of dense speech have about 36,000
CUDA_WORDS_TOKENS = 32_768
WORDS_SHARE = 4  # at most a quarter of what is left is given to subtitles
CROWDED = 4  # with fewer than a quarter of the moments it would have by itself a video is crowded


def fit_words(
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
    return engine.plan(request_of((Message("user", (text,)),), SamplingParams(), options, "")).tokens


def with_cues(file: File, views: tuple[Part, ...], cues: tuple[Cue, ...]) -> tuple[Part, ...]:
    if not cues:
        return views
    if not views:
        return (written(cues),)
    plan = views[0]
    assert isinstance(plan, FramePlan)
    plan, after = woven(plan, cues)
    return (plan, after) if after else (plan,)


def fit(
    files: Sequence[File], engine: Engine, options: Options, room: int, question: str
) -> tuple[Views, list[FramePlan]]:
    """Each file at the size the model will see it: pictures first, then pages, then videos with what is left.

    And the plans of videos that are crowded: beside evenly spread ones they have a moment where a line nearest to the
    question is said.
    """
    crowded: list[FramePlan] = []
    pictures = [file for file in files if file.picture]
    documents = [file for file in files if file.pages]
    clips = [file for file in files if file.clip]
    least, most = engine.model.image_pixels
    fitted: Views = {}
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
        plan, is_crowded = _fit_clip(file, engine, options, room // left, question)
        crowded += [plan] if is_crowded else []
        fitted[file] = (plan,)
        room -= plan.tokens + LABEL_TOKENS * len(plan.patches)
    return fitted, crowded


def _fit_clip(file: File, engine: Engine, options: Options, room: int, question: str) -> tuple[FramePlan, bool]:
    """The plan of a video, and whether it is crowded."""
    assert file.clip is not None
    times, frame_pixels = read_times(file.clip), engine.model.frame_pixels
    usual = CUDA_VIDEO_TOKENS if engine.model.device.startswith("cuda") else CPU_VIDEO_TOKENS
    by_hand = options.video_tokens or (None if options.fps or options.most_moments else usual)
    share = min(room, by_hand or room)
    if file.chosen:
        plan = plan_chosen(
            file.clip, times, file.chosen, budget=share, label_tokens=LABEL_TOKENS, frame_pixels=frame_pixels
        )
        return plan, False
    planning = partial(
        plan_frames,
        file.clip,
        times,
        label_tokens=LABEL_TOKENS,
        frame_pixels=frame_pixels,
        fps=options.fps,
        most_moments=options.most_moments or (None if options.fps else engine.model.most_moments),
        storyboard=storyboards.at_hand(file.clip, options.patience) if _left_alone(options) else None,
    )
    plan, moments = planning(budget=share), file.moments
    by_itself = len(planning(budget=by_hand or usual).patches) if share < (by_hand or usual) else 0
    is_crowded = len(plan.patches) < max(by_itself // CROWDED, min(by_itself, FEWEST_MOMENTS))
    if is_crowded:
        asked = choose_lines(question, [cue.text for cue in file.cues])[: len(plan.patches) // 2]
        moments = (*moments, *(file.cues[index].start for index in asked))
    return with_moments(plan, times, moments), is_crowded


def _left_alone(options: Options) -> bool:
    """Whether the moments of a clip follow what happens in it, once that is known: nobody set them."""
    return not options.fps and not options.most_moments


def looked(file: File, options: Options) -> float | None:
    """What share of a video is looked through by now, where its storyboard was not ready for its plan."""
    if file.clip is None or file.chosen or not (_left_alone(options) and storyboards.pays(file.clip)):
        return None
    reading = storyboards.reading(file.clip)
    return reading.done if reading.state == "making" else None
