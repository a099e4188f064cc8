"""Text from outside made harmless for a terminal, and for Markdown."""

from __future__ import annotations


def plain(text: object) -> str:
    """Control characters and terminal escapes are shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def in_markdown(text: object) -> str:
    """Text that cannot break out of its cell, nor make markup, links or images."""
    return "".join(f"\\{c}" if c in "\\|`*<>[]&" else c for c in plain(text))
