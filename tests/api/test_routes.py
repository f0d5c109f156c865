"""The API as the official client uses it, over a real server, a scripted engine and real files."""

import base64
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI

from qwen3vl_webui.api.routes import BODY_LIMIT, api_routes
from qwen3vl_webui.engine.contract import FinishEvent, ModelInfo, PrefillEvent, SamplingParams, TokenEvent
from qwen3vl_webui.engine.opening import OpeningEngine
from qwen3vl_webui.errors import EngineError, UserError
from qwen3vl_webui.jobs import Jobs
from qwen3vl_webui.media.values import FramePlan, Image
from qwen3vl_webui.services import Services
from qwen3vl_webui.settings import Settings
from qwen3vl_webui.store.store import Store
from qwen3vl_webui.web.protection import protect
from tests import clips
from tests.scripted_engine import Gate, ScriptedEngine
from tests.served import in_new_loop, served, wait_until


class Door:
    """A running API: its engine, its store, and the official client on it."""

    def __init__(self, address: str, engine: Any, store: Store) -> None:
        self.address, self.engine, self.store = address, engine, store
        self.openai = OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0, timeout=30)

    def ask(self, content: Any, **options: Any) -> Any:
        messages = content if isinstance(content, list) and "role" in content[0] else [user(content)]
        return self.openai.chat.completions.create(model="scripted", messages=messages, **options)

    def refusal(self, content: Any = "hello", **options: Any) -> dict[str, Any]:
        """The error object of a request that must be refused, checked for its shape."""
        with pytest.raises(openai.APIStatusError) as caught:
            self.ask(content, **options)
        error = caught.value.body
        assert isinstance(error, dict) and set(error) == {"message", "type", "param", "code"}
        assert error["message"].endswith(".")
        return {**error, "status": caught.value.status_code}


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def running(tmp_path: Path, engine: Any, **settings: Any) -> Iterator[Door]:
    chosen = Settings(data_dir=tmp_path / "data", **settings)
    store = Store(chosen.data_dir)
    app = FastAPI()
    app.include_router(api_routes(Services(chosen, engine, store, Jobs(engine, store))))
    with served(protect(app, chosen)) as address:
        yield Door(address, engine, store)
    store.close()


@pytest.fixture(scope="module")
def shared_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    yield from running(tmp_path_factory.mktemp("api"), ScriptedEngine())


@pytest.fixture
def door(shared_door: Door) -> Door:
    """One server for all tests, its engine as new."""
    shared_door.engine.__init__("Hello there.")
    return shared_door


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    clips.colour_clip(folder / "film.mp4", 4)
    clips.pdf(folder / "paper.pdf", ["The first page.", "The second page."])
    clips.png(folder / "picture.png", 320, 240)
    (folder / "cut.png").write_bytes((folder / "picture.png").read_bytes()[:60])
    return folder


def data_url(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# Text


def test_a_question_is_answered(door: Door) -> None:
    answer = door.ask("hello")
    assert answer.object == "chat.completion" and answer.model == "scripted" and answer.id.startswith("chatcmpl-")
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "Hello there.", "stop")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    [request] = door.engine.requests
    assert request.messages[-1].parts == ("hello",) and request.sampling == door.engine.model.sampling_text


def test_the_stream_is_the_answer_in_pieces(door: Door) -> None:
    chunks = list(door.ask("hello", stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello there."
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == [] and chunks[-1].usage.prompt_tokens > 0
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in door.ask("hello", stream=True))


def test_every_sampling_field_arrives(door: Door) -> None:
    door.ask(
        "hello",
        temperature=0.3,
        top_p=0.4,
        seed=7,
        stop=["END", "STOP"],
        max_completion_tokens=11,
        presence_penalty=0.5,
        user="me",
        n=1,
        frequency_penalty=0,
        logprobs=False,
        response_format={"type": "text"},
        extra_body={
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.1,
            "priority": "interactive",
            "loop_guard": False,
        },
    )
    [request] = door.engine.requests
    assert request.sampling == SamplingParams(
        0.3, 0.4, 0, 0.1, 0.5, 1.1, seed=7, stop=("END", "STOP"), max_tokens=11, loop_guard=False
    )
    assert request.priority == "interactive" and request.conversation == "api:local:me"


@pytest.mark.parametrize("stream", [False, True])
def test_what_should_be_known_of_an_answer_stands_beside_its_finish_reason(door: Door, stream: bool) -> None:
    def finish() -> Any:
        answer = door.ask("hello", stream=stream)
        choices = [choice for chunk in (answer if stream else [answer]) for choice in chunk.choices]
        return choices[-1]

    assert getattr(finish(), "note", None) is None
    door.engine.note = "The model began to repeat itself."
    last = finish()
    assert (last.finish_reason, last.note) == ("stop", "The model began to repeat itself.")


def test_stop_strings_and_lengths_end_the_answer(door: Door) -> None:
    door.engine.script = "one two three"
    assert door.ask("hello", stop=" three").choices[0].message.content == "one two"
    short = door.ask("hello", max_tokens=1)
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1


def test_a_conversation_is_read_again_from_its_start(door: Door) -> None:
    first = door.ask([{"role": "system", "content": "Be brief."}, user("one")])
    message = first.choices[0].message.model_dump(exclude_none=True)
    second = door.ask(
        [
            {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
            user("one"),
            message,
            user([{"type": "text", "text": "two"}]),
        ]
    )
    request = door.engine.requests[-1]
    assert [part.role for part in request.messages] == ["system", "user", "assistant", "user"]
    assert [part.parts for part in request.messages] == [("Be brief.",), ("one",), ("Hello there.",), ("two",)]
    assert second.usage.prompt_tokens_details.cached_tokens > 0


def test_system_messages_are_joined(door: Door) -> None:
    door.ask([{"role": "system", "content": "One."}, {"role": "developer", "content": "Two."}, user("hi")])
    assert door.engine.requests[-1].messages[0].parts == ("One.\n\nTwo.",)


def test_reasoning_comes_apart(door: Door) -> None:
    door.engine.thinking = "Let me see."
    door.engine.model = ModelInfo("scripted", "x", thinking=True)
    message = door.ask("hello", extra_body={"thinking_budget": 5}).choices[0].message
    assert (message.content, message.reasoning_content) == ("Hello there.", "Let me see.")
    assert door.engine.requests[-1].sampling.thinking_budget == 5
    deltas = [chunk.choices[0].delta for chunk in door.ask("hello", stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Let me see."
    door.ask([user("a"), message.model_dump(exclude_none=True), user("b")])
    assert door.engine.requests[-1].messages[1].parts == ("Hello there.",)


def test_control_tokens_in_text_arrive_as_text(door: Door) -> None:
    door.ask("<|im_start|>system <|vision_start|> 你好 \u2028 \x00")
    assert door.engine.requests[-1].messages[-1].parts == ("<|im_start|>system <|vision_start|> 你好 \u2028 \x00",)


# Files


def test_pictures_videos_and_pdfs_come_as_data(door: Door, made: Path) -> None:
    door.ask(
        [
            {"type": "image_url", "image_url": {"url": data_url(made / "picture.png", "image/png"), "detail": "high"}},
            {"type": "video_url", "video_url": {"url": data_url(made / "film.mp4", "video/mp4")}},
            {
                "type": "file",
                "file": {"filename": "a.pdf", "file_data": data_url(made / "paper.pdf", "application/pdf")},
            },
            {"type": "text", "text": "What is this?"},
        ]
    )
    [request] = door.engine.requests
    parts = request.messages[-1].parts
    [picture] = [part for part in parts if isinstance(part, Image) and part.page is None]
    [plan] = [part for part in parts if isinstance(part, FramePlan)]
    pages = [part.page for part in parts if isinstance(part, Image) and part.page]
    text = "".join(part for part in parts if isinstance(part, str))
    assert picture.seen == (320, 256) and pages == [1, 2] and len(plan.patches) > 1
    assert "The second page." in text and text.endswith("What is this?")
    assert request.sampling == door.engine.model.sampling


def test_a_span_in_words_and_subtitles_beside_the_video(door: Door, made: Path) -> None:
    words = base64.b64encode(clips.srt([(0.5, 1.0, "said")]).encode()).decode()
    video = {"type": "video_url", "video_url": {"url": data_url(made / "film.mp4", "video/mp4")}}
    subtitles = {"filename": "a.srt", "file_data": f"data:text/plain;base64,{words}"}
    door.ask(
        [video, {"type": "file", "file": subtitles}, {"type": "text", "text": "What is in the first two seconds?"}]
    )
    [plan] = [part for part in door.engine.requests[0].messages[-1].parts if isinstance(part, FramePlan)]
    assert plan.clip.end == 2.0
    assert "[0.5-1.0] said" in "".join(
        "".join(part.captions) if isinstance(part, FramePlan) else str(part)
        for part in door.engine.requests[0].messages[-1].parts
    )


def test_what_a_request_brings_goes_with_it(door: Door, made: Path) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(made / "picture.png", "image/png")}}
    door.engine.gate = Gate(after=1)
    with ThreadedAnswer(door, [part, {"type": "text", "text": "?"}]) as answer:
        assert door.engine.gate.reached.wait(10)
        [image] = [part for part in door.engine.requests[0].messages[-1].parts if isinstance(part, Image)]
        assert image.path.exists()
        door.engine.gate.release()
    assert answer.text == "Hello there."
    wait_until(lambda: not image.path.exists())
    assert door.store.files("local") == []


class ThreadedAnswer:
    def __init__(self, door: Door, content: Any) -> None:
        self.text = ""
        self._thread = threading.Thread(target=self._ask, args=(door, content))

    def _ask(self, door: Door, content: Any) -> None:
        self.text = door.ask(content).choices[0].message.content

    def __enter__(self) -> "ThreadedAnswer":
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._thread.join(20)


def test_a_file_is_uploaded_once_and_named_by_id(door: Door, made: Path) -> None:
    film = door.openai.files.create(file=(made / "film.mp4").open("rb"), purpose="user_data")
    picture = door.openai.files.create(file=("a.png", (made / "picture.png").read_bytes()), purpose="vision")
    paper = door.openai.files.create(file=made / "paper.pdf", purpose="assistants")
    assert film.id.startswith("file-") and film.filename == "film.mp4" and film.object == "file"
    assert film.bytes == (made / "film.mp4").stat().st_size
    for _ in range(2):
        door.ask(
            [
                {"type": "image_url", "image_url": {"url": picture.id}},
                {"type": "video_url", "video_url": {"file_id": film.id}},
                {"type": "file", "file": {"file_id": paper.id}},
                {"type": "text", "text": "?"},
            ]
        )
    first, second = door.engine.requests
    assert first == second
    assert [file.id for file in door.openai.files.list()] == [paper.id, picture.id, film.id]
    assert [file.id for file in door.openai.files.list(purpose="vision")] == [picture.id]
    assert [file.id for file in door.openai.files.list(limit=2, order="asc")] == [film.id, picture.id, paper.id]
    assert door.openai.files.retrieve(film.id) == film
    assert door.openai.files.content(paper.id).read() == (made / "paper.pdf").read_bytes()
    for file in (film, picture, paper):
        assert door.openai.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        door.openai.files.retrieve(film.id)
    assert door.store.files("local") == []


def test_the_pages_own_files_are_not_listed(door: Door, made: Path) -> None:
    stored = door.store.add_file("local", "a.png", made / "picture.png")
    assert list(door.openai.files.list()) == []
    with pytest.raises(openai.NotFoundError):
        door.openai.files.delete(f"file-{stored.id}")
    door.store.remove_file("local", stored.id)


def test_an_upload_is_streamed_to_disk_in_any_order_of_parts(door: Door, made: Path) -> None:
    """The purpose may come after the file, and a byte that looks like a boundary is content."""
    content = (made / "picture.png").read_bytes() + b"\r\n--edge-not\r\n" + bytes(3_000_000)
    body = (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="\xe5\x9b\xbe.png"\r\n\r\n'
        + content
        + b'\r\n--edge\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n--edge--\r\n'
    )
    headers = {"Content-Type": "multipart/form-data; boundary=edge"}
    response = httpx.post(f"{door.address}/v1/files", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert (response.json()["filename"], response.json()["bytes"]) == ("图.png", len(content))
    cut = httpx.post(f"{door.address}/v1/files", content=body[:-30], headers=headers)
    assert cut.status_code == 400 and "cut short" in cut.json()["error"]["message"]
    assert list((door.store.data_dir / "media" / "incoming").iterdir()) == []
    door.openai.files.delete(response.json()["id"])


@pytest.mark.parametrize(
    ("files", "data", "words"),
    [
        ({"file": ("a.png", b"")}, {"purpose": "vision"}, "empty"),
        ({"file": ("a.png", b"plain words")}, {"purpose": "vision"}, "text file"),
        ({"file": ("a.png", b"x")}, {}, "purpose"),
        ({"file": ("a.png", b"x")}, {"purpose": "fine-tune"}, "purpose"),
        ({"file": ("a.png", b"x")}, {"purpose": "vision", "expires_after": "1"}, "expires_after"),
        ({"document": ("a.png", b"x")}, {"purpose": "vision"}, "`file`"),
        ({"file": ("a.png", b"x")}, {"purpose": "v" * 20_000}, "too long"),
        ({"file": ("", bytes(20_000))}, {"purpose": "vision"}, "with a name"),
        (None, {"purpose": "vision"}, "multipart"),
    ],
)
def test_a_refused_upload_leaves_nothing(door: Door, files: Any, data: dict[str, str], words: str) -> None:
    response = httpx.post(f"{door.address}/v1/files", files=files, data=data)
    assert response.status_code == 400 and words in response.json()["error"]["message"]
    assert list((door.store.data_dir / "media" / "incoming").iterdir()) == [] and door.store.files("local") == []


# Refusals


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": []}, "tools"),
        ({"n": 2}, "n"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"store": True}, "store"),
        ({"metadata": {}}, "metadata"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"extra_body": {"mm_processor_kwargs": {}}}, "mm_processor_kwargs"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ],
)
def test_what_is_not_done_is_refused(door: Door, options: dict[str, Any], param: str) -> None:
    error = door.refusal(**options)
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported", param)
    assert door.engine.requests == []


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"seed": "seven"}, "seed"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"thinking_budget": 5}}, "thinking_budget"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"extra_body": {"messages": [user("a"), {"role": "assistant", "content": "b"}]}}, "messages"),
        ({"extra_body": {"messages": [{"role": "tool", "content": "a"}]}}, "messages[0]"),
        ({"extra_body": {"messages": [user("a"), {"role": "system", "content": "b"}, user("c")]}}, "messages[1].role"),
        ({"extra_body": {"messages": [user("")]}}, "messages[0].content"),
        ({"extra_body": {"messages": [user([])]}}, "messages[0].content"),
        ({"extra_body": {"messages": [user([{"type": "input_audio", "input_audio": {}}])]}}, "messages[0].content[0]"),
    ],
)
def test_wrong_values_are_named(door: Door, options: dict[str, Any], param: str) -> None:
    error = door.refusal(**options)
    assert (error["status"], error["code"], error["param"]) == (400, "invalid_request", param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.png",
        "https://example.com/a.png",
        "file:///etc/passwd",
        "ftp://x/a",
        "/etc/passwd",
        "HTTP://x",
        "data:image/png,abc",
        "",
    ],
)
@pytest.mark.parametrize("kind", ["image_url", "video_url"])
def test_nothing_is_fetched(door: Door, url: str, kind: str) -> None:
    error = door.refusal([{"type": kind, kind: {"url": url}}])
    assert (error["status"], error["code"], error["param"]) == (400, "unsupported_url", "messages[0].content[0]")
    assert "upload" in error["message"].lower() or "base64" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_corrupt_file_is_a_sentence(door: Door, made: Path, stream: bool) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(made / "cut.png", "image/png")}}
    error = door.refusal([{"type": "text", "text": "?"}, part], stream=stream)
    assert (error["status"], error["param"]) == (400, "messages[0].content[1]")
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}}
    assert "base64" in door.refusal([broken], stream=stream)["message"]
    assert door.store.files("local") == [] and door.engine.requests == []


def test_a_file_in_the_wrong_field_is_told_where_it_belongs(door: Door, made: Path) -> None:
    url = data_url(made / "film.mp4", "image/png")
    assert "`video_url`" in door.refusal([{"type": "image_url", "image_url": {"url": url}}])["message"]
    url = data_url(made / "paper.pdf", "video/mp4")
    assert "`file`" in door.refusal([{"type": "video_url", "video_url": {"url": url}}])["message"]
    assert door.store.files("local") == []


@pytest.mark.parametrize("source", [{}, {"url": "data:,", "file_id": "file-1"}, {"url": None}])
def test_a_file_is_given_once(door: Door, source: dict[str, Any]) -> None:
    assert "either" in door.refusal([{"type": "image_url", "image_url": source}])["message"]


def test_an_unknown_file_or_model_is_not_found(door: Door) -> None:
    error = door.refusal([{"type": "image_url", "image_url": {"url": "file-" + "0" * 32}}])
    assert (error["status"], error["code"]) == (404, "file_not_found")
    error = door.refusal(extra_body={"model": "gpt-5"})
    assert (error["status"], error["code"]) == (404, "model_not_found") and "scripted" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_too_long_a_prompt_is_a_clean_400(door: Door, stream: bool) -> None:
    door.engine.context_length = 100
    error = door.refusal("word " * 1000, stream=stream)
    assert (error["status"], error["code"]) == (400, "context_length_exceeded") and "100" in error["message"]


def test_a_body_over_the_limit_is_refused_before_it_is_read(door: Door) -> None:
    def pieces() -> Iterator[bytes]:
        yield b'{"model": "'
        for _ in range(BODY_LIMIT // 1_000_000 + 3):
            yield b"x" * 1_000_000

    response = httpx.post(f"{door.address}/v1/chat/completions", content=pieces(), timeout=30)
    assert response.status_code == 400 and response.json()["error"]["code"] == "request_too_large"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": NaN}', b"\xff\xfe", b'{"model": "\\ud800"}'])
def test_a_broken_body_is_a_400(door: Door, body: bytes) -> None:
    response = httpx.post(f"{door.address}/v1/chat/completions", content=body)
    assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


def test_what_is_not_offered_is_said_in_json(door: Door) -> None:
    for method, path in (("POST", "/v1/embeddings"), ("GET", "/v1/chat/completions"), ("DELETE", "/v1/models/x")):
        response = httpx.request(method, door.address + path)
        assert response.status_code == 404 and response.json()["error"]["code"] == "unknown_url"


def test_a_missing_or_wrong_key_is_401(tmp_path: Path) -> None:
    for door in running(tmp_path, ScriptedEngine(), api_key="sesame"):
        with pytest.raises(openai.AuthenticationError) as caught:
            door.ask("hello")
        assert caught.value.code == "invalid_api_key"
        assert httpx.get(f"{door.address}/v1/models").status_code == 401
        assert httpx.get(f"{door.address}/healthz").status_code == 200
        door.openai.api_key = "sesame"
        assert door.ask("hello").choices[0].message.content == "Hello from the script."


def test_strangers_do_not_share_files(made: Path, tmp_path: Path) -> None:
    for door in running(tmp_path, ScriptedEngine(), open=True):
        mine = door.openai.files.create(file=made / "picture.png", purpose="vision")
        theirs = OpenAI(base_url=f"{door.address}/v1", api_key="other", max_retries=0)
        assert list(theirs.files.list()) == []
        with pytest.raises(openai.NotFoundError):
            theirs.files.content(mine.id)
        part = {"type": "image_url", "image_url": {"file_id": mine.id}}
        with pytest.raises(openai.NotFoundError):
            theirs.chat.completions.create(model="scripted", messages=[user([part])])  # type: ignore[list-item]
        assert door.ask([part, {"type": "text", "text": "?"}]).choices


# Stopping and failing


@pytest.mark.parametrize("gate", [Gate(prefill=True), Gate(after=2)], ids=["prefill", "decode"])
def test_a_client_that_leaves_a_stream_stops_the_engine(door: Door, gate: Gate) -> None:
    gate.hold_again()
    door.engine.gate, door.engine.endless = gate, True
    stream = door.ask("hello", stream=True)
    next(iter(stream))
    assert gate.reached.wait(10)
    stream.close()
    assert door.engine.wait_for(lambda: door.engine.running is None)
    assert len(door.engine.stopped) == 1


def test_a_client_that_leaves_a_whole_answer_stops_the_engine(door: Door) -> None:
    door.engine.endless = True
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{door.address}/v1/chat/completions",
            json={"model": "scripted", "messages": [user("hello")], "max_tokens": 10**9},
            timeout=0.5,
        )
    assert door.engine.wait_for(lambda: door.engine.running is None and door.engine.stopped)


def test_cancelling_an_async_client_stops_the_engine(door: Door) -> None:
    door.engine.endless = True

    async def scene() -> None:
        async with openai.AsyncOpenAI(base_url=f"{door.address}/v1", api_key="any") as client:
            stream = await client.chat.completions.create(model="scripted", messages=[user("x")], stream=True)  # type: ignore[list-item]
            async for _ in stream:
                break
            await stream.close()

    in_new_loop(scene())
    assert door.engine.wait_for(lambda: door.engine.running is None and door.engine.stopped)


def test_many_left_streams_leave_nothing(door: Door) -> None:
    door.engine.endless = True
    threads = threading.active_count()
    for _ in range(30):
        stream = door.ask("hello", stream=True)
        next(iter(stream))
        stream.close()
    assert door.engine.wait_for(lambda: door.engine.running is None and len(door.engine.stopped) == 30)
    door.engine.endless = False
    assert door.ask("hello").choices[0].message.content == "Hello there."
    assert threading.active_count() <= threads + 12


def test_many_streams_at_once_lose_nothing(door: Door) -> None:
    door.engine.script = " ".join(f"word{number}" for number in range(60))
    answers: list[str] = []

    def read() -> None:
        stream = door.ask("hello", stream=True)
        answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))

    threads = [threading.Thread(target=read) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [door.engine.script] * 32


def test_a_failure_in_the_stream_is_an_error_object(door: Door) -> None:
    door.engine.fail, door.engine.fail_after = EngineError("The engine failed. Try again."), 1
    with pytest.raises(openai.APIError, match="The engine failed"):
        list(door.ask("hello", stream=True))
    with pytest.raises(openai.InternalServerError, match="The engine failed"):
        door.ask("hello")
    body = {"model": "scripted", "messages": [user("x")], "stream": True}
    lines = httpx.post(f"{door.address}/v1/chat/completions", json=body).text.split("\n\n")
    assert json.loads(lines[-3].removeprefix("data: "))["error"]["code"] == "engine_error"
    assert lines[-2:] == ["data: [DONE]", ""]


def test_a_bug_in_the_engine_is_no_broken_stream(door: Door) -> None:
    door.engine.script = lambda request: 1 / 0
    with pytest.raises(openai.APIError, match="log has the cause"):
        list(door.ask("hello", stream=True))


def test_too_many_requests_of_one_visitor_are_429(tmp_path: Path) -> None:
    for door in running(tmp_path, ScriptedEngine(gate=Gate(prefill=True)), open=True):
        streams = [door.ask("hello", stream=True) for _ in range(8)]
        with pytest.raises(openai.RateLimitError, match="running or waiting"):
            door.ask("hello")
        door.engine.gate.release()
        for stream in streams:
            assert list(stream)
        assert door.ask("hello").choices


def test_a_silent_stream_is_kept_alive(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3vl_webui.api.answering.KEEP_ALIVE_SECONDS", 0.05)
    door.engine.gate = Gate(prefill=True)
    body = {"model": "scripted", "messages": [user("x")], "stream": True}
    with httpx.stream("POST", f"{door.address}/v1/chat/completions", json=body, timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        seen = ""
        for piece in response.iter_text():
            seen += piece
            if ": keep-alive" in seen:
                door.engine.gate.release()
        assert seen.endswith("data: [DONE]\n\n") and seen.count('"content"') > 1


# Models and health


def test_models(door: Door) -> None:
    [model] = door.openai.models.list()
    assert model.id == "scripted" and model.context_length == door.engine.model.context_length
    assert door.openai.models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError):
        door.openai.models.retrieve("gpt-5")


def test_health(door: Door) -> None:
    response = httpx.get(f"{door.address}/healthz")
    assert response.json() == {"status": "ok", "model": "scripted", "device": "cpu"}


def test_a_model_that_loads_or_failed_is_said(tmp_path: Path) -> None:
    may_open, fails = threading.Event(), threading.Event()

    def open_engine(progress: Any) -> ScriptedEngine:
        may_open.wait(20)
        if fails.is_set():
            raise UserError("There is no such model.")
        return ScriptedEngine()

    for folder, failing in (("a", False), ("b", True)):
        may_open.clear()
        if failing:
            fails.set()
        engine = OpeningEngine(open_engine)
        for door in running(tmp_path / folder, engine):
            health = httpx.get(f"{door.address}/healthz")
            assert health.status_code == 200 and health.json() == {"status": "loading", "model": None, "device": None}
            error = door.refusal()
            assert (error["status"], error["code"], error["type"]) == (503, "model_not_ready", "server_error")
            may_open.set()
            assert engine.wait(10)
            health = httpx.get(f"{door.address}/healthz")
            assert (health.status_code, health.json()["status"]) == ((503, "failed") if failing else (200, "ok"))
            if not failing:
                assert door.ask("hello").choices


def test_chunks_and_the_whole_answer_are_the_same() -> None:
    from qwen3vl_webui.api.completions import chunks_of, fold

    events = [
        PrefillEvent(0, 5),
        PrefillEvent(5, 5),
        TokenEvent("hm", thinking=True),
        TokenEvent("a"),
        TokenEvent(""),
        TokenEvent("b"),
        FinishEvent("length", 5, 2, 3),
    ]
    whole = fold(chunk for chunk in chunks_of(events, "m") if chunk is not None)
    message = {"role": "assistant", "content": "ab", "reasoning_content": "hm"}
    assert whole["choices"] == [{"index": 0, "message": message, "logprobs": None, "finish_reason": "length"}]
    assert whole["usage"]["prompt_tokens_details"] == {"cached_tokens": 2} and whole["object"] == "chat.completion"
