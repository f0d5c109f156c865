"""Flags and variables become Settings, or a sentence."""

from pathlib import Path

import pytest

from qwen3vl_webui.settings import read_settings


def test_defaults_serve_this_machine_only() -> None:
    settings = read_settings([], {})
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 7860, "auto")
    assert settings.is_local
    assert settings.media_dir is None


def test_flags_win_over_variables() -> None:
    settings = read_settings(["--port", "8001"], {"QWEN3VL_PORT": "8000", "QWEN3VL_MODEL": "2b"})
    assert (settings.port, settings.model) == (8001, "2b")


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        (["--auth", "ann:secret"], {}),
        (["--api-key", "k"], {}),
        (["--open"], {}),
        ([], {"QWEN3VL_OPEN": "1"}),
        ([], {"QWEN3VL_AUTH": "ann:secret"}),
    ],
)
def test_other_hosts_need_a_key_or_an_open_door(flags: list[str], variables: dict[str, str]) -> None:
    assert not read_settings(["--host", "0.0.0.0", *flags], variables).is_local


def test_unprotected_host_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_settings(["--host", "0.0.0.0"], {"QWEN3VL_OPEN": "0"})
    assert "--auth user:password or --api-key" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--auth", "ann"],
        ["--auth", ":secret"],
        ["--context-length", "0"],
        ["--quantization", "3bit"],
        ["--kv-cache", "int2"],
        ["--decode", "fast"],
        ["--rope-scaling", "dynamic"],
        ["--vram", "0"],
        ["--media-dir", "/does/not/exist"],
    ],
)
def test_bad_values_exit_with_a_sentence(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        read_settings(flags, {})
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_every_flag_is_a_variable(tmp_path: Path) -> None:
    settings = read_settings(
        [],
        {
            "QWEN3VL_HOST": "localhost",
            "QWEN3VL_QUANTIZATION": "4bit",
            "QWEN3VL_CONTEXT_LENGTH": "32768",
            "QWEN3VL_ROPE_SCALING": "ntk",
            "QWEN3VL_KV_CACHE": "int8",
            "QWEN3VL_SNAPSHOTS": str(tmp_path / "snapshots"),
            "QWEN3VL_SNAPSHOTS_GB": "5",
            "QWEN3VL_PLAN": "1",
            "QWEN3VL_VRAM": "23.5",
            "QWEN3VL_DATA_DIR": str(tmp_path / "data"),
            "QWEN3VL_MEDIA_DIR": str(tmp_path),
            "QWEN3VL_HUB": "modelscope",
            "QWEN3VL_API_KEY": "k",
            "QWEN3VL_AUTH": "ann:se:cret",
        },
    )
    assert settings.auth == ("ann", "se:cret")
    assert settings.context_length == 32768
    assert settings.media_dir == tmp_path
    assert settings.hub == "modelscope"
    assert (settings.rope_scaling, settings.kv_cache) == ("ntk", "int8")
    assert (settings.snapshots, settings.snapshots_gb) == (tmp_path / "snapshots", 5)
    assert (settings.plan, settings.vram) == (True, 23.5)


def test_a_space_is_open_by_its_owners_choice() -> None:
    settings = read_settings([], {"SPACE_ID": "ann/chat"})
    assert (settings.host, settings.open) == ("0.0.0.0", True)
