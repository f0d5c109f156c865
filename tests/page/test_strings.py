"""The page's words."""

import re

import pytest

from qwen3vl_webui.page.boot import ASSETS, script_json
from qwen3vl_webui.page.strings import WORDS, table

MODULES = sorted((ASSETS / "page").glob("*.js"))


def placeholders(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


@pytest.mark.parametrize("key", [key for key in WORDS if not key.startswith("code_")])
def test_both_languages_say_it_with_the_same_blanks(key: str) -> None:
    english, chinese = WORDS[key]
    assert english and chinese
    assert placeholders(english) == placeholders(chinese)


def test_every_word_the_modules_name_exists() -> None:
    source = "\n".join(path.read_text() for path in MODULES)
    named = set(re.findall(r'\bt\("(\w+)"', source)) | set(re.findall(r'\b(?:\w+_)?t: "(\w+)"', source))
    assert len(named) > 60
    assert named - set(WORDS) == set()


def test_every_word_is_used() -> None:
    source = "\n".join(path.read_text() for path in MODULES)
    built = re.findall(r"`(\w+_)\$\{", source)  # `card_${kind}`: named by their beginning
    unused = [key for key in WORDS if f'"{key}"' not in source and not any(key.startswith(start) for start in built)]
    assert [key for key in unused if not key.startswith("code_")] == []


def test_json_inside_a_script_cannot_end_it() -> None:
    text = script_json({"a": "</script><!--\u2028"})
    assert "<" not in text
    assert "\u2028" not in text


def test_the_table_has_both_languages() -> None:
    words = table()
    assert words["en"]["send"] == "Send"
    assert words["zh"]["send"] == "发送"
