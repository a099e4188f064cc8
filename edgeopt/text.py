"""Text from outside made harmless for a terminal."""

from __future__ import annotations


def plain(text: object) -> str:
    """Control characters and terminal escapes are shown, not obeyed."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))
