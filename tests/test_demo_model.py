"""The bundled checkpoint through the whole house: real files, sandbox, prompt, engine. What it is good at is true."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3vl_webui.draft import Attached, Draft
from qwen3vl_webui.engine.contract import TokenEvent
from qwen3vl_webui.engine.local import LocalEngine
from qwen3vl_webui.media.upload import open_upload
from qwen3vl_webui.model.loading import load
from qwen3vl_webui.prompt import lay_out

SAMPLES = Path(__file__).parent.parent / "assets" / "samples"


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(load("demo"))
    yield engine
    engine.close()


def ask(engine: LocalEngine, file: str, question: str) -> str:
    attached = Attached(open_upload(SAMPLES / file), name=file)
    prompt = lay_out([Draft("user", (attached, question))], engine)
    return "".join(event.text for event in engine.generate(prompt.request) if isinstance(event, TokenEvent))


def test_it_is_the_demo_model_and_tells_its_skills(engine: LocalEngine) -> None:
    assert engine.model.demo and engine.model.trained
    assert dict(engine.model.skills).keys() >= {"name", "when", "page"}


def test_it_names_what_is_in_the_sample_picture(engine: LocalEngine) -> None:
    english = ask(engine, "sample.png", "What is in the picture?")
    assert all(thing in english for thing in ("red circle", "blue square", "green star"))
    chinese = ask(engine, "sample.png", "图里有什么？")
    assert all(thing in chinese for thing in ("红色圆形", "蓝色方形", "绿色星形"))


@pytest.mark.parametrize("question", ["When does the red circle appear?", "红色圆形什么时候出现？"])
def test_the_second_it_gives_shows_the_red_circle(engine: LocalEngine, question: str) -> None:
    stamp = re.search(r"\d+\.\d", ask(engine, "sample.mp4", question))
    assert stamp
    assert 47.0 <= float(stamp[0]) < 53.0  # when training/samples.py draws it


@pytest.mark.parametrize("question, page", [("Which page says 7342?", "page 4"), ("哪一页写着7342？", "第4页")])
def test_the_page_it_names_says_the_number(engine: LocalEngine, question: str, page: str) -> None:
    assert page in ask(engine, "sample.pdf", question)  # as training/samples.py prints it
