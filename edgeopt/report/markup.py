"""The few pieces of HTML that the sections of report.html are made of. Text goes in through `text` alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from edgeopt.text import plain

UNFOLDED = 24  # lines of a list or a table, before it is folded


def text(value: object) -> str:
    """Text that can be no markup, its control characters shown."""
    return escape(plain(value))


def section(title: str, body: str) -> str:
    """A section; nothing without a body."""
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def items(lines: Iterable[str]) -> str:
    """A list; nothing without lines."""
    shown = "".join(f"<li>{text(line.strip())}</li>" for line in lines)
    return f"<ul>{shown}</ul>" if shown else ""


def folded_items(lines: Sequence[str]) -> str:
    """A list, folded where it is long."""
    return items(lines) if len(lines) <= UNFOLDED else folded(f"{len(lines)} lines", items(lines))


def folded(summary: str, body: str, *, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{text(summary)}</summary>{body}</details>"


def name_cell(value: object, tag: str = "td") -> str:
    """A cell with a name, which may be long: it is wrapped. A row's own name has the tag "th"."""
    return f'<{tag}{" scope=row" if tag == "th" else ""} class="words id">{text(value)}</{tag}>'


def table(head: Sequence[tuple[str, bool]], rows: Iterable[str], *, caption: str = "", kind: str = "") -> str:
    """A table that scrolls where it is too wide. `head` are titles, with whether words stand below: left."""
    titles = "".join(f'<th scope="col"{" class=words" if words else ""}>{text(title)}</th>' for title, words in head)
    return (
        f'{f"<p>{text(caption)}:</p>" if caption else ""}<div class="scroll"><table class="{kind}">'
        f"{f'<thead><tr>{titles}</tr></thead>' if titles else ''}<tbody>{''.join(rows)}</tbody></table></div>"
    )
