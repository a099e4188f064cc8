"""A check for people: the terminal's lines, and the Markdown that a pull request shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgeopt.check import Checked, Rule
from edgeopt.text import in_markdown, plain

if TYPE_CHECKING:
    from rich.console import Console

_SIGNS = {True: "✓", False: "✗"}


def print_check(found: Checked, console: Console) -> None:
    """A line a rule that decides, then the verdict."""
    from rich.text import Text

    for rule in _deciding(found):
        style = "red" if not rule.passed else "yellow" if rule.verdict == "inconclusive" else ""
        console.print(Text(f"{_sign(rule)} {plain(rule.told)}", style=style), soft_wrap=True)
    for line in _about(found):
        console.print(Text(plain(line), style="dim"), soft_wrap=True)
    console.print(Text(plain(verdict(found)), style="green" if found.passed else "bold red"), soft_wrap=True)


def verdict(found: Checked) -> str:
    """The result in one sentence."""
    name = found.candidate or "the run"
    if broken := found.broken():
        many = f"{len(broken)} of {len(_deciding(found))} rules are broken"
        return f"Failed: {name}: {many} (exit code {found.exit_code})."
    doubts = f", {len(found.doubtful())} of them inconclusive" if found.doubtful() else ""
    against = f" against {found.against}" if found.against else ""
    return f"Passed: {name}{against}: {len(_deciding(found))} rules kept{doubts}."


def markdown(found: Checked) -> str:
    """A heading with the verdict, and the rules as a table."""
    lines = [f"### edgeopt check: {in_markdown(found.recipe)} on {in_markdown(found.target)}", ""]
    lines += [in_markdown(verdict(found)), "", "| | rule | verdict | what was found |", "|---|---|---|---|"]
    for rule in _deciding(found):
        cells = (_sign(rule), rule.name, rule.verdict, rule.told)
        lines.append("| " + " | ".join(in_markdown(cell) for cell in cells) + " |")
    lines += ["", *(f"- {in_markdown(line)}" for line in _about(found))]
    return "\n".join(lines).rstrip("\n") + "\n"


def _deciding(found: Checked) -> list[Rule]:
    return [rule for rule in found.rules if rule.gates]


def _sign(rule: Rule) -> str:
    return "?" if rule.passed and rule.verdict == "inconclusive" else _SIGNS[rule.passed]


def _about(found: Checked) -> Iterator[str]:
    """What is unlike between the run and its baseline."""
    if found.differences:
        refused = any(rule.verdict == "refused" for rule in found.rules)
        told = "so times are not compared: --unlike compares them" if refused else "compared nonetheless"
        yield f"Unlike machines ({'; '.join(found.differences)}), {told}."
    yield from found.notes
