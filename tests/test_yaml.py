"""YAML 1.2 scalars, the line of each place, and files that are refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeopt import yaml
from edgeopt.errors import InputError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2:4", "2:4"),
        ("190:20:30", "190:20:30"),
        ("on", "on"),
        ("no", "no"),
        ("Yes", "Yes"),
        ("n", "n"),
        ("012", 12),
        ("+12", 12),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("1E-2", 0.01),
        (".5", 0.5),
        ("5.", 5.0),
        ("-0", 0),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("2026-11-21", "2026-11-21"),
        ("=", "="),
        ("<<", "<<"),
        ("5 ms", "5 ms"),
        ("'5'", "5"),
        ('"null"', "null"),
        ('""', ""),
        ("|\n  5\n", "5\n"),
        ("5 # a comment", 5),
        ("1e999", "1e999"),
        (".inf", ".inf"),
        ("nan", "nan"),
        ("[1, a, null]", [1, "a", None]),
        ("{a: {b: 2:4}}", {"a": {"b": "2:4"}}),
        ("1: 2\non: off", {"1": 2, "on": "off"}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: object) -> None:
    found = yaml.parse(text, "a.yaml").value
    assert found == value
    assert type(found) is type(value)


RECIPE = """# a comment

model: a.onnx
steps:
  - quantize: [none, int8]
  -
    compile:
      openvino:
        precision: bf16
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("model",), 3),
        (("steps",), 4),
        (("steps", 0, "quantize", 1), 5),
        (("steps", 1, "compile", "openvino"), 8),
        (("steps", 1, "compile", "openvino", "precision"), 9),
        (("steps", 1, "compile", "openvino", "unknown"), 8),
        (("unknown", "too"), 3),
    ],
)
def test_each_place_has_its_line(place: yaml.Place, line: int) -> None:
    assert yaml.parse(RECIPE, "recipe.yaml").where(place) == f"recipe.yaml:{line}"


def test_a_document_without_lines_has_its_name() -> None:
    assert yaml.Document("command line", {}).where(("model",)) == "command line"


@pytest.mark.parametrize(
    ("text", "where", "message"),
    [
        ("a: &x [1]\nb: *x", "a.yaml:2", "aliases"),
        ("a: !!python/object/apply:os.system [ls]", "a.yaml:1", "tags"),
        ("a: 1\nb: !!str 5", "a.yaml:2", "tags"),
        ("a: 1\nb: 2\na: 3", "a.yaml:3", "'a' is there twice"),
        ("a: 1\n'a': 3", "a.yaml:2", "'a' is there twice"),
        ("a:\n  [b, c]: 3", "a.yaml:2", "plain text"),
        ("a: [1,\nb: 2", "a.yaml:2", "not YAML"),
        ("a: 1\n--- \nb: 2", "a.yaml:2", "not YAML"),
        ("a:\n\t- b", "a.yaml:2", "not YAML"),
        ('a: "\\ud800"', "a.yaml:1", "surrogate"),
        ("\n" + "[" * 41 + "]" * 41, "a.yaml:2", "nested too deep"),
        ("a: \x00", "a.yaml", "not YAML"),
    ],
)
def test_what_is_refused_is_told_with_its_line(text: str, where: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        yaml.parse(text, "a.yaml")
    assert caught.value.where == where
    assert len(caught.value.lines()) <= 5


def test_nesting_is_taken_up_to_its_limit() -> None:
    assert yaml.parse("[" * yaml.DEEPEST + "]" * yaml.DEEPEST, "a.yaml").value


def test_a_bomb_of_nesting_costs_nothing() -> None:
    with pytest.raises(InputError, match="nested too deep"):
        yaml.parse("[" * 1_000_000, "a.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: \xff\xfe", "not text in UTF-8"),
        ("a: ü".encode("utf-16"), "not text in UTF-8"),
        (b"#" * (yaml.LARGEST_FILE_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_files_that_are_not_taken(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        yaml.load(path)


@pytest.mark.parametrize("content", [b"a: \xc3\xbc", b"\xef\xbb\xbfa: \xc3\xbc", b"a: \xc3\xbc\r\n"])
def test_files_are_utf_8(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    assert yaml.load(path).value == {"a": "ü"}
    assert yaml.load(path).name == "a.yaml"


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        yaml.load(tmp_path / "missing.yaml")
    with pytest.raises(InputError, match="is a folder"):
        yaml.load(tmp_path)
    with pytest.raises(InputError, match="not the name of a file"):
        yaml.load(Path("a\0.yaml"))


marks = [*"[]{},:-?!&*#|>'\"%@`~ \n\t\\", "\n  ", "- ", ": ", "a", "1", "é", "---", "...", "%YAML 1.1\n"]
fragments = st.lists(st.sampled_from(marks), max_size=40).map("".join)


@given(st.text() | fragments)
@example("%YAML " + "9" * 5000 + ".1\n--- a")
@example('"\\UFFFFFFFF"')
@example("!<" + "%FF" * 3 + "> a")
@example("1" * 5000)
def test_any_text_is_a_document_or_an_input_error(text: str) -> None:
    try:
        document = yaml.parse(text, "a.yaml")
    except InputError as error:
        assert 1 <= len(error.lines()) <= 5
        return
    assert_plain(document.value)


def assert_plain(value: object) -> None:
    """What JSON can hold."""
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    elif isinstance(value, list):
        for item in value:
            assert_plain(item)
    elif isinstance(value, float):
        assert math.isfinite(value)
    else:
        assert value is None or type(value) in (str, int, bool)
