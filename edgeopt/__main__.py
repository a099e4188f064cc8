"""The entry point: `edgeopt` and `python -m edgeopt`. Nothing is imported before a Ctrl-C would be told as one.

The verbs are in `edgeopt.commands`.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    try:
        signal.signal(signal.SIGTERM, _terminated)
        from edgeopt import commands

        return commands.run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted. The same command goes on from the steps that are finished.\n")
        return INTERRUPTED


def _terminated(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
