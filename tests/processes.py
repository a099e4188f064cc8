"""Commands that tests start, watch and stop, as a user at a terminal would."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def as_usual() -> None:
    """Signals do what they do at a terminal: behind nohup, or in a background job, some are ignored from the start."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_DFL)


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command under way, its output piped. Nothing of it runs on when a test fails in between."""
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, preexec_fn=as_usual, **{**piped, **options})
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in (*children(process.pid), process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()


def children(pid: int) -> list[int]:
    """The processes that one has started and that still run."""
    try:
        tasks = [task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for text in tasks for child in text.split()]


def wait_for_children(process: subprocess.Popen[str], count: int) -> list[int]:
    until = time.monotonic() + 60
    while len(children(process.pid)) < count and time.monotonic() < until and process.poll() is None:
        time.sleep(0.05)
    return children(process.pid)


def gone(pids: Sequence[int]) -> bool:
    """Whether all have ended, within seconds: one that has just been started dies when it finds its parent gone."""
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.02)
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)
