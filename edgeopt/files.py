"""Files that commands write beside a run: whole, or not there."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from edgeopt.errors import InputError


def write(path: Path, text: str) -> None:
    """Write a file aside, then move it into place; its folder is made. Raises InputError where that cannot be."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe
            path.write_text(text, encoding="utf-8")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {_reason(error)}") from None


def append(path: Path, text: str) -> None:
    """Add to a file that others add to as well. Raises InputError where that cannot be."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
