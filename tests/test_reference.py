"""The reference of recipes: what the schema says, whole, and the committed file the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeopt import reference, schema
from edgeopt.__main__ import main

ROOT = Path(__file__).parents[1]
SHIPPED = schema.recipe(shipped_alone=True)


def keys(told: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every key of every mapping in a schema, by its place."""
    if isinstance(told, list):
        for one in told:
            yield from keys(one, place)
    elif isinstance(told, dict):
        for name, inner in told.get("properties", {}).items():
            yield f"{place}/{name}", inner
            yield from keys(inner, f"{place}/{name}")
        for inner in (told.get("anyOf"), told.get("items"), list(told.get("definitions", {}).values())):
            yield from keys(inner, place)


def test_the_committed_reference_is_that_of_the_code() -> None:
    """After a change: python -c "from edgeopt import reference; reference.write()"."""
    assert reference.FILE == ROOT / "recipes" / "REFERENCE.md"
    assert reference.FILE.read_text() == reference.render(SHIPPED)


def test_the_readme_links_to_it() -> None:
    assert "(recipes/REFERENCE.md)" in (ROOT / "README.md").read_text()


def test_every_key_is_explained() -> None:
    """Alternatives are explained as a whole, where their options are."""
    definitions = SHIPPED["definitions"]
    names = {*definitions, *(name for one in definitions.values() for name in one["anyOf"][1].get("properties", {}))}
    silent = [place for place, told in keys(SHIPPED) if not told.get("description")]
    assert not [place for place in silent if place.rpartition("/")[2] not in names]


@pytest.mark.parametrize(
    ("heading", "row"),
    [
        ("## measure", "| `rounds` | whole number from 3 |  | `16` |"),
        ("## budget", "| `peak memory` | size | B, KB, MB, GB, KiB, MiB, GiB | `180 MiB` | At most. |"),
        ("### prune", "| `channels` | text | % |  | `30 %`, `auto` | The share of the channels that leave;"),
        ("### prune", "| `latency` | text | ns, us, ms, s, min, h |  | `5 ms` |"),
        ("### quantize: int8", "| `smooth` | number from 0 to 1 |  |  | `0.9` | The alpha of SmoothQuant"),
        ("### compile: openvino", "| `precision` | `auto`, `fp16`, `bf16` |  | `auto` |"),
    ],
)
def test_a_key_stands_there_with_type_unit_default_and_example(heading: str, row: str) -> None:
    chapter = reference.render(SHIPPED).partition(f"\n{heading}\n")[2].partition("\n#")[0]
    assert f"\n{row}" in chapter


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "recipe", "--markdown"]) == 0
    assert capsys.readouterr().out == reference.render(schema.recipe())
    assert main(["schema", "check", "--markdown"]) == 2
    assert "of the recipe alone" in capsys.readouterr().err
