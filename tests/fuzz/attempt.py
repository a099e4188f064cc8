"""One reader on one folder, in a fork of a worker of edgeopt's: what came of it, and what it reached for.

The fork has limits of its own (see `MEMORY_BYTES`, `SECONDS`), and an audit hook that Python calls (sys.addaudithook):
a file opened for writing outside of the folder, a process, a connection or a pickled class ends it.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import resource
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import readers

from edgeopt.errors import EdgeoptError
from edgeopt.worker import Channel

MEMORY_BYTES = 1 << 30  # of address space, above what the worker with its libraries has
SECONDS = 30.0
FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
NULL = "/dev/null"


def serve(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """A worker's job: loads `args["libraries"]`, then tries {"reader", "folder"} as they come, until {"end"}."""
    for name in args["libraries"]:
        importlib.import_module(name)
    channel.send({"ready": True})
    while "end" not in (asked := channel.receive()):
        channel.send(attempt(readers.READERS[asked["reader"]], Path(asked["folder"])))
    return {}


def attempt(reader: readers.Reader, folder: Path) -> dict[str, Any]:
    """{"outcome": "read", "refused", "raised", "reached", "memory", "hang" or "signal"}, with what belongs to it."""
    taken, given = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(taken)
        try:
            _limit()
            os.chdir(folder)
            told = _try(reader, folder)
            os.write(given, json.dumps(told).encode()[: 1 << 20])
        finally:
            os._exit(0)
    os.close(given)
    try:
        return _await(pid, taken)
    finally:
        os.close(taken)


def _await(pid: int, descriptor: int) -> dict[str, Any]:
    said, until = b"", time.monotonic() + SECONDS
    while select.select([descriptor], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            _, status = os.waitpid(pid, 0)
            if os.WIFSIGNALED(status):
                return {"outcome": "signal", "signal": os.WTERMSIG(status)}
            return dict(json.loads(said)) if said else {"outcome": "memory"}  # too little of it to tell
        said += piece
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return {"outcome": "hang"}


def _limit() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _try(reader: readers.Reader, folder: Path) -> dict[str, Any]:
    reached: list[str] = []
    inside = f"{folder.resolve()}/"

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event in FORBIDDEN:
            reached.append(f"{event} {args!r}"[:500])
        elif event == "open" and args[2] & WRITING and isinstance(args[0], (str, bytes)):
            name = os.path.realpath(os.fsdecode(args[0]))
            if name != NULL and not name.startswith(inside):
                reached.append(f"writes {name}")

    sys.addaudithook(watch)
    try:
        shown = reader.read(folder)
        told: dict[str, Any] = {"outcome": "read"}
        if odd := {c for c in shown or "" if not c.isprintable() and c != "\n"}:
            told = {"outcome": "raised", "traceback": f"it prints {sorted(odd)}"}
    except EdgeoptError as error:
        told = {
            "outcome": "refused",
            "code": error.exit_code,
            "lines": list(error.lines()),
            "type": type(error).__name__,
        }
    except MemoryError:
        told = {"outcome": "memory"}
    except Exception:
        text = io.StringIO()
        traceback.print_exc(limit=-12, file=text)
        told = {"outcome": "raised", "traceback": text.getvalue()[-6000:]}
    return {"outcome": "reached", "what": reached[:5]} if reached else told
