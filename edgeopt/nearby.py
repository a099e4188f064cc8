"""What a missing file was meant to be: the remedy that goes with "no such file"."""

from __future__ import annotations

import difflib
import os
from pathlib import Path


def nearby(path: Path, otherwise: str | None = None) -> str | None:
    """A file of nearly that name in the same folder, or the folder that is missing; `otherwise` where neither helps."""
    if not path.parent.is_dir():
        return f"The folder {path.parent} is not there either."
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
    except OSError:
        return otherwise
    return f"Did you mean {near[0]}?" if near else otherwise
