"""Text from outside made harmless for a terminal, and for Markdown; and the one line of an error that is told."""

from __future__ import annotations

LONGEST_LINE = 300


def first_line(said: object) -> str:
    """What an error says first, cut where it is long; the name of its class where it says nothing."""
    lines = str(said).strip().splitlines()
    return lines[0][:LONGEST_LINE] if lines else type(said).__name__


def named_line(error: BaseException) -> str:
    """The first line of an error, behind its class."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"


def plain(text: object) -> str:
    """Control characters and terminal escapes are shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def in_markdown(text: object) -> str:
    """Text that cannot break out of its cell, nor make markup, links or images."""
    return "".join(f"\\{c}" if c in "\\|`*<>[]&" else c for c in plain(text))
