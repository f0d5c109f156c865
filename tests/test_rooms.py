"""Who may import whom: every arrow of the house, nested and lazy imports included. A new one is a design change."""

import ast
import sys
from pathlib import Path

import pytest

HOUSE = "qwen3vl_webui"
ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT / HOUSE).as_posix() for path in (ROOT / HOUSE).rglob("*.py"))

DEEP_LEARNING = ["torch", "transformers", "accelerate", "bitsandbytes", "safetensors", "triton"]
DECODERS = ["av", "PIL", "pymupdf", "fitz", "pysubs2"]
SERVERS = ["fastapi", "starlette", "uvicorn"]
SERVING = ["services", "web", "api"]
EVIDENCE = [file for file in FILES if file.startswith("evidence/") or file == "times.py"]


def ours(*rooms):
    return [f"{HOUSE}.{room}" for room in rooms]


LOCAL_ENGINE = ("engine/local.py", "engine/scheduler.py", "engine/running.py")

# A room (a file, or a folder with its slash) and what none of its files may import.
NEVER = {
    "settings.py": ours("media", "engine", "model", "page", "store", "prompt", "jobs", *SERVING),
    "errors.py": [HOUSE],
    "times.py": [HOUSE],
    "tasks.py": [*ours("media", "model", "page", "store", "jobs", *SERVING), *DECODERS],
    "media/": [
        *DEEP_LEARNING,
        *SERVERS,
        *("gradio", "openai", "httpx"),
        *ours("engine", "model", "page", "store", "jobs", "prompt", *SERVING),
    ],
    "media/sampling.py": DECODERS,
    "media/changes.py": DECODERS,
    "media/segments.py": DECODERS,
    "media/values.py": [*DECODERS, *ours("media")],
    "conversation.py": [
        *DECODERS,
        *ours("engine", "model", "page", "store", "jobs", "prompt", *SERVING),
    ],
    "prompt.py": [
        *DECODERS,
        *DEEP_LEARNING,
        *SERVERS,
        "gradio",
        *ours("page", "model", "engine.local", "engine.remote", "store", "jobs", *SERVING),
    ],
    **dict.fromkeys(
        ("focus.py", "draft.py", "showing.py", "fitting.py", "layout.py", "exchanges.py", "looks.py", "zoom.py"),
        [
            *DECODERS,
            *DEEP_LEARNING,
            *SERVERS,
            "gradio",
            *ours("page", "model", "engine.local", "engine.remote", "store", "jobs", "prompt", *SERVING),
        ],
    ),
    "store/": [*SERVERS, "gradio", *ours("engine", "model", "page", "prompt", "jobs", *SERVING)],
    "jobs.py": [*SERVERS, "gradio", *ours("engine.local", "engine.remote", "model", "page", *SERVING)],
    "engine/": [*SERVERS, "gradio", *ours("page", "store", "jobs", "prompt", *SERVING)],
    "engine/contract.py": ours("model", "media.video", "media.image", "engine.local", "engine.remote"),
    "engine/remote.py": [*DEEP_LEARNING, *ours("model", "engine.local")],
    "model/": [*SERVERS, "gradio", "openai", *ours("page", "store", "jobs", "prompt", *SERVING)],
    "api/": ["gradio", *DEEP_LEARNING, *ours("page", "model", "engine.local")],
    "web/": ["gradio", *DEEP_LEARNING, *ours("page", "api", "model", "engine.local")],
    "services.py": ["gradio", *DEEP_LEARNING, *ours("page", "web", "api", "model", "engine.local")],
    "page/": [*DEEP_LEARNING, *ours("api", "model", "engine.local", "engine.remote")],
}

# A library, and the only rooms that may import it.
HOME = {
    **dict.fromkeys(DEEP_LEARNING, ("model/", *LOCAL_ENGINE)),
    **dict.fromkeys(DECODERS, ("media/",)),
    **dict.fromkeys(("openai", "httpx"), ("engine/remote.py",)),
    **dict.fromkeys(("gradio", "gradio_client"), ("page/",)),
    "sqlite3": ("store/",),
    f"{HOUSE}.model": ("model/", *LOCAL_ENGINE),
}


def imports_of(source, package=HOUSE):
    """Every module a source text imports, wherever in it the import stands, by its full name."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                found.add(node.args[0].value)
    return found


def imports_of_file(file):
    package = ".".join([HOUSE, *Path(file).parts[:-1]])
    return imports_of((ROOT / HOUSE / file).read_text(encoding="utf-8"), package)


def within(name, forbidden):
    return name == forbidden or name.startswith(forbidden + ".")


def lives_in(file, room):
    return file.startswith(room) if room.endswith("/") else file == room


def reached_from(file):
    """Every file of ours that importing `file` brings in, itself included."""
    reached, waiting = set(), [file]
    while waiting:
        current = waiting.pop()
        if current in reached:
            continue
        reached.add(current)
        for module in imports_of_file(current):
            path = module.removeprefix(HOUSE + ".").replace(".", "/")
            waiting += [name for name in (f"{path}.py", f"{path}/__init__.py") if module != HOUSE and name in FILES]
    return reached


@pytest.mark.parametrize("file", FILES)
def test_no_file_imports_what_its_room_never_does(file):
    imported = imports_of_file(file)
    never = {name for room, names in NEVER.items() if lives_in(file, room) for name in names}
    assert [name for name in imported if any(within(name, forbidden) for forbidden in never)] == []


@pytest.mark.parametrize("file", FILES)
def test_every_large_library_lives_in_its_room(file):
    homeless = [
        name
        for name in imports_of_file(file)
        for library, rooms in HOME.items()
        if within(name, library) and not any(lives_in(file, room) for room in rooms)
    ]
    assert homeless == []


@pytest.mark.parametrize("file", EVIDENCE)
def test_the_text_of_an_answer_is_read_by_nothing_but_python(file):
    for reached in reached_from(file):
        foreign = {name.partition(".")[0] for name in imports_of_file(reached)} - sys.stdlib_module_names - {HOUSE}
        assert (reached in EVIDENCE, foreign) == (True, set())


@pytest.mark.parametrize(
    "door", [file for file in FILES if file.startswith(("page/", "api/", "web/", "store/"))] + ["prompt.py", "jobs.py"]
)
def test_no_door_brings_in_the_model_by_another_way(door):
    assert {file for file in reached_from(door) if lives_in(file, "model/") or file == "engine/local.py"} == set()


def test_nothing_in_the_house_imports_the_app_the_tests_or_the_benchmarks():
    outside = {"app", "tests", "benchmarks", "training"}
    assert [file for file in FILES if outside & {name.partition(".")[0] for name in imports_of_file(file)}] == []


def test_packages_export_nothing_and_every_file_has_a_name_of_its_own():
    packages = [file for file in FILES if Path(file).name == "__init__.py"]
    assert [file for file in packages if (ROOT / HOUSE / file).read_text(encoding="utf-8").strip()] == []
    vague = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc"}
    assert [file for file in FILES if Path(file).stem in vague] == []


@pytest.mark.parametrize(
    "source, module",
    [
        ("import torch.nn as nn", "torch.nn"),
        ("def lazy():\n    from torch import nn", "torch"),
        ("try:\n    import av\nexcept ImportError:\n    av = None", "av"),
        ("from qwen3vl_webui import page", "qwen3vl_webui.page"),
        ("from . import model", "qwen3vl_webui.model"),
        ("from .model.rope import plan", "qwen3vl_webui.model.rope"),
        ("from ..page import boot", "qwen3vl_webui.page.boot"),
        ("import importlib\nimportlib.import_module('gradio')", "gradio"),
        ("__import__('openai')", "openai"),
    ],
)
def test_an_import_is_seen_in_every_form(source, module):
    package = f"{HOUSE}.media" if ".." in source else HOUSE
    assert module in imports_of(source, package)
