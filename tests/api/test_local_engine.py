"""The whole way through the API with a model that computes: a tiny random one, real files, the official client."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from fastapi import FastAPI
from openai import OpenAI

from qwen3vl_webui.api.routes import api_routes
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from qwen3vl_webui.web.protection import protect
from tests import clips
from tests.served import served
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    torch.set_num_threads(1)
    checkpoint = tiny_checkpoint()
    settings = Settings(data_dir=tmp_path_factory.mktemp("data"))
    engine, store = LocalEngine(load(str(checkpoint), device="cpu"), 4096), Store(settings.data_dir)
    app = FastAPI()
    app.include_router(api_routes(Services(settings, engine, store, Jobs(engine, store))))
    with served(protect(app, settings)) as address:
        yield OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=60)
    engine.close()
    store.close()


@pytest.fixture(scope="module")
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A content part of each kind."""
    folder = tmp_path_factory.mktemp("files")
    clips.png(folder / "a.png", 128, 96)
    clips.colour_clip(folder / "b.mp4", 3)
    clips.pdf(folder / "c.pdf", ["One page."])

    def data(name: str, kind: str) -> str:
        return f"data:{kind};base64,{base64.b64encode((folder / name).read_bytes()).decode()}"

    return {
        "picture": {"type": "image_url", "image_url": {"url": data("a.png", "image/png")}},
        "video": {"type": "video_url", "video_url": {"url": data("b.mp4", "video/mp4")}},
        "pdf": {"type": "file", "file": {"file_data": data("c.pdf", "application/pdf")}},
        "folder": folder,
    }


def ask(client: OpenAI, model: str, messages: list[Any], **options: Any) -> Any:
    options = {"temperature": 0, "presence_penalty": 0, "max_tokens": 12, **options}
    return client.chat.completions.create(model=model, messages=messages, **options)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*parts]}


TEXT = {"type": "text", "text": "What is this?"}


@pytest.mark.parametrize("kinds", [[], ["picture"], ["video"], ["pdf"], ["picture", "video", "pdf"]])
def test_each_kind_is_answered_alike_whole_and_streamed(
    client: OpenAI, model: str, files: dict[str, Any], kinds: list[str]
) -> None:
    messages = [user(*(files[kind] for kind in kinds), TEXT)]
    whole = ask(client, model, messages)
    assert whole.usage.completion_tokens > 0 and whole.choices[0].finish_reason in {"stop", "length"}
    chunks = list(ask(client, model, messages, stream=True))
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert streamed == whole.choices[0].message.content


def test_the_second_turn_reuses_the_first(client: OpenAI, model: str, files: dict[str, Any]) -> None:
    first = ask(client, model, [user(files["picture"], TEXT)])
    message = {"role": "assistant", "content": first.choices[0].message.content}
    second = ask(client, model, [user(files["picture"], TEXT), message, user({"type": "text", "text": "And now?"})])
    assert second.usage.prompt_tokens > first.usage.prompt_tokens
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_a_stream_that_is_left_frees_the_engine(client: OpenAI, model: str) -> None:
    for _ in range(3):
        stream = ask(client, model, [user(TEXT)], stream=True, max_tokens=3000)
        next(iter(stream))
        stream.close()
    assert ask(client, model, [user(TEXT)]).usage.completion_tokens > 0


def test_uploaded_files_and_refusals(client: OpenAI, model: str, files: dict[str, Any]) -> None:
    uploaded = client.files.create(file=Path(files["folder"]) / "b.mp4", purpose="user_data")
    by_id = ask(client, model, [user({"type": "video_url", "video_url": {"url": uploaded.id}}, TEXT)])
    by_data = ask(client, model, [user(files["video"], TEXT)])
    assert by_id.choices[0].message.content == by_data.choices[0].message.content
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model, [user({"type": "text", "text": "word " * 9000})])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        ask(client, model, [user({"type": "image_url", "image_url": {"url": "https://example.com/a.png"}})])
