"""Finding, fetching and checking checkpoints: against a hub on this machine, and with everything that can be wrong."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from qwen3vl_webui.errors import EngineError, NotFound, Unsupported
from qwen3vl_webui.model import checkpoint
from qwen3vl_webui.model.checkpoint import Progress, check, missing_files, resolve, resolve_auto
from qwen3vl_webui.settings import MODELS
from tests.tiny import tiny_checkpoint, write_json

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The few routes of a Hugging Face hub that a snapshot needs, for one model `Qwen/tiny`."""

    def __init__(self, folder: Path) -> None:
        self.files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
        self.files["pytorch_model.bin"] = b"a pickle nobody must fetch"
        self.asked: list[str] = []
        self.broken = False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer(body=False)

            def do_GET(self) -> None:
                self.answer(body=True)

            def send(self, status: int, content: bytes, body: bool, **headers: str) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

            def answer(self, body: bool) -> None:
                path = self.path.partition("?")[0]
                hub.asked.append(path)
                if hub.broken and body and "/resolve/" in path:
                    self.send(400, b"", body)
                elif "Qwen/gated" in path:
                    self.send(403, b"{}", body, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
                elif "Qwen/tiny" not in path:
                    self.send(404, b"{}", body, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                elif "/tree/" in path:
                    entries = [
                        {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                        for name, content in hub.files.items()
                    ]
                    self.send(200, json.dumps(entries).encode(), body, Content_Type="application/json")
                elif "/resolve/" in path:
                    content = hub.files[path.rpartition("/")[2]]
                    tag = f'"{hashlib.sha1(content).hexdigest()}"'
                    self.send(200, content, body, ETag=tag, X_Repo_Commit=SHA)
                else:
                    about = {"id": "Qwen/tiny", "sha": SHA, "siblings": [{"rfilename": name} for name in hub.files]}
                    self.send(200, json.dumps(about).encode(), body, Content_Type="application/json")

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub = Hub(tiny_checkpoint())
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    yield hub
    hub.close()


def test_a_mirror_is_asked_once_with_progress_and_never_for_pickles(hub: Hub) -> None:
    told: list[Progress] = []
    name, folder = resolve("Qwen/tiny", progress=told.append)
    assert name == "Qwen/tiny"
    assert missing_files(folder) == []
    wanted = {name: content for name, content in hub.files.items() if not name.endswith(".bin")}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == wanted
    assert [progress.stage for progress in told[:2]] == ["finding", "downloading"]
    assert (told[-1].done, told[-1].total) == (sum(map(len, wanted.values())),) * 2
    assert all(before.done <= after.done for before, after in zip(told[1:], told[2:], strict=False))

    hub.asked.clear()
    assert resolve("Qwen/tiny") == (name, folder)
    assert hub.asked == []


def test_short_names_are_fetched_under_their_hub_id(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "2b", "Qwen/tiny")
    name, folder = resolve("2b")
    assert name == "2b" and missing_files(folder) == []


def test_a_half_fetched_snapshot_is_completed(hub: Hub) -> None:
    _, folder = resolve("Qwen/tiny")
    (folder / "model.safetensors").unlink()
    assert resolve("Qwen/tiny")[1] == folder
    assert missing_files(folder) == []


def test_what_the_listener_raises_stops_a_download_and_comes_out(hub: Hub) -> None:
    class Closed(Exception):
        pass

    def listener(progress: Progress) -> None:
        if progress.done:
            raise Closed

    with pytest.raises(Closed):
        resolve("Qwen/tiny", progress=listener)


def test_models_that_are_not_there_or_ask_for_consent_are_named(hub: Hub) -> None:
    with pytest.raises(NotFound, match="no model Qwen/none"):
        resolve("Qwen/none")
    with pytest.raises(EngineError, match="accept its terms"):
        resolve("Qwen/gated")


def test_a_hub_that_refuses_in_the_middle_says_to_start_again(hub: Hub) -> None:
    hub.broken = True
    with pytest.raises(EngineError, match="Start again"):
        resolve("Qwen/tiny")


def test_no_network_says_what_helps(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.server.shutdown()
    hub.server.server_close()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(EngineError, match="HF_ENDPOINT.*modelscope.*demo"):
        resolve("Qwen/tiny")


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert resolve(str(tmp_path)) == (tmp_path.name, tmp_path)


@pytest.mark.parametrize("name", ["5b", "", "/no/such/folder", "a b/c", "https://example.org/x"])
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(NotFound, match="demo, 2b, 4b"):
        resolve(name)


@pytest.mark.parametrize("name", ["../nothing", "a/b..c", "~nobody/x"])
def test_a_folder_that_is_not_there_is_a_sentence(name: str) -> None:
    with pytest.raises(NotFound):
        resolve(name)


def test_modelscope_is_used_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    class ProgressCallback:
        def __init__(self, filename: str, file_size: int) -> None:
            self.filename, self.file_size = filename, file_size

    def snapshot_download(
        model_id: str,
        *,
        allow_patterns: list[str],
        local_files_only: bool = False,
        progress_callbacks: list[Callable[[str, int], Any]] | None = None,
    ) -> str:
        asked.append((model_id, local_files_only))
        if local_files_only:
            raise ValueError("not in the cache")
        assert "*.safetensors" in allow_patterns and progress_callbacks is not None
        for file, size in (("config.json", 10), ("model.safetensors", 90)):
            callback = progress_callbacks[0](file, size)
            callback.update(size)
            callback.end()
        return str(tmp_path)

    fake = types.ModuleType("modelscope")
    fake.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    callback = types.ModuleType("modelscope.hub.callback")
    callback.ProgressCallback = ProgressCallback  # type: ignore[attr-defined]
    for name, module in (
        ("modelscope", fake),
        ("modelscope.hub", types.ModuleType("modelscope.hub")),
        (callback.__name__, callback),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    told: list[Progress] = []
    assert resolve("Qwen/tiny", "modelscope", told.append) == ("Qwen/tiny", tmp_path)
    assert asked == [("Qwen/tiny", True), ("Qwen/tiny", False)]
    assert told[-1] == Progress("downloading", 100, 100)


def test_modelscope_without_its_client_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope", None)
    with pytest.raises(Unsupported, match="pip install modelscope"):
        resolve("Qwen/tiny", "modelscope")


# auto


def test_auto_is_the_demo_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(checkpoint, "DEMO_MODEL", tmp_path)
    assert resolve_auto() == ("demo", tmp_path)
    monkeypatch.setattr(checkpoint, "DEMO_MODEL", tmp_path / "none")
    with pytest.raises(NotFound, match="--model"):
        resolve_auto()


def test_auto_is_the_4b_with_cuda_when_it_can_be_had(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(checkpoint, "DEMO_MODEL", tmp_path)
    monkeypatch.setitem(MODELS, "4b", "Qwen/tiny")
    assert resolve_auto()[0] == "4b"
    monkeypatch.setitem(MODELS, "4b", "Qwen/none")
    assert resolve_auto() == ("demo", tmp_path)


def test_a_missing_demo_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "demo", str(tmp_path / "none"))
    with pytest.raises(NotFound, match="bundled demo model is missing"):
        resolve("demo")


# Checking


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


def change_config(folder: Path, part: str, **changes: Any) -> None:
    content = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", **{part: content[part] | changes})


def test_a_whole_checkpoint_passes(folder: Path) -> None:
    assert check(folder)["model_type"] == "qwen3_vl"
    assert check(tiny_checkpoint(experts=4))["model_type"] == "qwen3_vl_moe"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_missing_files_are_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(NotFound, match="merges.txt" if name == "tokenizer.json" else name):
        check(folder)


def test_missing_shards_are_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_json(folder / "model.safetensors.index.json", weight_map=shards)
    with pytest.raises(NotFound, match="model-00002-of-00002.safetensors"):
        check(folder)


def test_pickled_weights_are_not_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match="model.safetensors"):
        check(folder)


def test_another_model_is_refused(folder: Path) -> None:
    write_json(folder / "config.json", model_type="qwen2_5_vl")
    with pytest.raises(Unsupported, match="qwen2_5_vl"):
        check(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_damaged_config_is_a_sentence(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(Unsupported, match="damaged"):
        check(folder)


def test_a_lost_rope_theta_is_noticed(folder: Path) -> None:
    change_config(folder, "text_config", rope_parameters={"rope_type": "default", "mrope_section": [6, 5, 5]})
    with pytest.raises(Unsupported, match="rope_theta"):
        check(folder)
    change_config(folder, "text_config", rope_parameters=None, rope_theta=5e6)  # as transformers 4 wrote it
    check(folder)


@pytest.mark.parametrize("name, value", [("patch_size", 14), ("temporal_patch_size", 4), ("spatial_merge_size", 1)])
def test_another_vision_geometry_is_refused(folder: Path, name: str, value: int) -> None:
    change_config(folder, "vision_config", **{name: value})
    with pytest.raises(Unsupported, match=name):
        check(folder)


def test_another_normalisation_is_refused(folder: Path) -> None:
    write_json(folder / "preprocessor_config.json", image_mean=[0.48, 0.45, 0.4])
    with pytest.raises(Unsupported, match="image_mean"):
        check(folder)


def test_a_checkpoint_quantized_in_another_way_is_refused(folder: Path) -> None:
    for other in ({"quant_method": "awq"}, {"quant_method": "fp8", "weight_block_size": [1, 32]}, [8]):
        write_json(folder / "config.json", quantization_config=other)
        with pytest.raises(Unsupported, match="not done here"):
            check(folder)


def test_progress_is_told_in_sentences() -> None:
    assert Progress("finding").sentence == "Looking for the weights."
    assert Progress("downloading", 1_500_000_000, 8_900_000_000).sentence == "Downloading the weights: 1.5 of 8.9 GB."
    assert Progress("loading", 10, 700).sentence == "Loading the weights: 10 of 700 tensors."
