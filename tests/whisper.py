"""Recognisers of speech for tests: a stand-in for faster-whisper that hears tones, and a model of random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np

# What `import faster_whisper` finds in the recogniser's process where a test puts its folder on the path. The text says
# how loud it is, so that a test proves which samples came, and when.
STAND_IN = """
import os, time
import numpy as np
from collections import namedtuple

Segment, Told = namedtuple("Segment", "start end text"), namedtuple("Told", "language language_probability")

class WhisperModel:
    def __init__(self, model, device, compute_type, cpu_threads):
        print("libraries print")
        if model == "absent":
            raise OSError("the network is down")
        if model == "odd":
            raise ValueError("Invalid model size 'odd', expected one of: tiny")
        if model == "huge":
            raise MemoryError
        if os.path.isdir(model) and not os.path.exists(os.path.join(model, "model.bin")):
            raise RuntimeError("Unable to open file 'model.bin' in model")
        self.model = model

    def transcribe(self, samples, language, vad_filter, condition_on_previous_text):
        assert samples.dtype == np.float32 and samples.ndim == 1
        return self.segments(samples), Told(language or "de", 0.9)

    def segments(self, samples):
        if self.model == "crash":
            os._exit(3)
        for second in range(len(samples) // 16000):
            if self.model == "slow":
                time.sleep(0.2)
            loud = float(np.abs(samples[second * 16000 : (second + 1) * 16000]).max())
            if loud > 0.05:
                yield Segment(second, second + 1.0, f" tone {loud:.1f}")
"""
STAND_IN_MODELS = """
def download_model(model, local_files_only):
    assert local_files_only
    if model != "small":
        raise OSError("not here")
"""


def spoken_clip(path: Path, sound: np.ndarray, rate: int = 48_000, codec: str = "aac") -> Path:
    """A film of one grey picture a second with that sound, float samples between -1 and 1 at `rate`."""
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("libx264", rate=1)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio: Any = container.add_stream(codec, rate=rate, layout="mono")
        resampler = av.AudioResampler(format=audio.format, layout=audio.layout, rate=rate)
        for _ in range(math.ceil(len(sound) / rate)):
            picture = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
        whole = (sound * 32767).astype(np.int16)
        for start in range(0, len(whole), 1024):
            frame = av.AudioFrame.from_ndarray(whole[None, start : start + 1024], format="s16", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            for ready in resampler.resample(frame):
                container.mux(audio.encode(ready))
        container.mux(audio.encode(None))
    return path


def tones(seconds: int, loudness: dict[int, float], rate: int = 48_000) -> np.ndarray:
    """Silence but for the seconds that `loudness` names: a tone of that height."""
    sound = np.zeros(seconds * rate)
    wave = np.sin(np.arange(rate) * 2 * np.pi * 440 / rate)
    for second, height in loudness.items():
        sound[second * rate : (second + 1) * rate] = height * wave
    return sound


def vowels(seconds: float, rate: int = 16_000) -> np.ndarray:
    """Four vowels a second, which a detector of voices takes for a voice."""
    random = np.random.default_rng(3)
    formants = [(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410)]
    sound = np.zeros(int(seconds * rate))
    step = int(0.22 * rate)
    for start in range(0, len(sound), step):
        count = min(step, len(sound) - start)
        pitch, chosen = 110 + 30 * random.random(), formants[random.integers(5)]
        at, vowel = np.arange(count) / rate, np.zeros(count)
        for harmonic in range(1, 40):
            heard = sum(
                np.exp(-(((harmonic * pitch - peak) / (90 + 40 * n)) ** 2)) / (1 + n) for n, peak in enumerate(chosen)
            )
            vowel += (heard + 0.02 / harmonic) * np.sin(2 * np.pi * harmonic * pitch * at)
        sound[start : start + count] = vowel * np.sqrt(np.sin(np.pi * np.arange(count) / count))
    sound += 0.005 * random.standard_normal(len(sound))
    return sound / np.abs(sound).max() / 2


def stand_in(folder: Path) -> Path:
    """A folder that holds a package of the name faster_whisper."""
    package = folder / "faster_whisper"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STAND_IN)
    (package / "utils.py").write_text(STAND_IN_MODELS)
    return folder


def tiny_whisper(folder: Path) -> Path:
    """A Whisper model of random weights for CTranslate2: what it hears is nonsense, all else is the real library."""
    import torch
    from ctranslate2.converters import TransformersConverter
    from faster_whisper.tokenizer import _LANGUAGE_CODES
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperForConditionalGeneration

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    languages = [f"<|{code}|>" for code in _LANGUAGE_CODES]
    tasks = ["translate", "transcribe", "startoflm", "startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens(
        ["<|endoftext|>", "<|startoftranscript|>", *languages, *(f"<|{task}|>" for task in tasks)]
    )
    size = tokenizer.get_vocab_size()
    known = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("endoftext", "startoftranscript")}
    torch.manual_seed(5)
    config = WhisperConfig(
        vocab_size=size + 1501,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        decoder_start_token_id=known["startoftranscript"],
        eos_token_id=known["endoftext"],
        bos_token_id=known["endoftext"],
        pad_token_id=known["endoftext"],
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        suppress_tokens=[],
        begin_suppress_tokens=[],
        alignment_heads=[[0, 0]],
        lang_to_id={language: tokenizer.token_to_id(language) for language in languages},
    )
    source = folder / "source"
    model.save_pretrained(source)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", bos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ).save_pretrained(source)
    (source / "preprocessor_config.json").write_text(
        json.dumps({"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400})
    )
    files = ["tokenizer.json", "preprocessor_config.json"]
    target = folder / "model"
    TransformersConverter(str(source), copy_files=files).convert(str(target), quantization="int8")
    return target
