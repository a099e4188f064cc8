"""Steps and backends as another package would bring them, each of which does its process harm in a way of its own.

The stage `trouble` does it while it builds; the backends do it when a model is loaded. Every one of these backends has
a compiler of its name, which copies the ONNX file.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from collections.abc import Callable

from edgeopt_test_backends import Backend

from edgeopt.errors import StageError
from edgeopt.stages import Options, Produced

VERSION = 1


def segfault() -> None:
    ctypes.string_at(0)


def hang() -> None:
    time.sleep(600)


def take_memory() -> None:
    kept = []
    for _ in range(64):
        kept.append(bytearray(b"\1") * (32 << 20))
        time.sleep(0.02)


def close_pipes() -> None:
    os.closerange(0, 64)
    time.sleep(600)


def shout() -> None:
    """A gigabyte to standard output and standard error together, then a failure."""
    piece = b"all work and no play\n" * 49932
    for _ in range(512):
        os.write(1, piece)
        os.write(2, piece)
    raise StageError("hoarse")


def write_garbage() -> None:
    """To every pipe there is, what is no message and what nearly is one."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'5\n"text"\n{"result": 5}\n{"progress": "x"}\n\xff\xfe' + b"[" * 100_000 + b"\n")
        except OSError:
            continue
    time.sleep(600)


def leave_an_orphan() -> None:
    """End without a word, and leave a child that holds the pipes."""
    if os.fork():
        os._exit(3)
    time.sleep(600)


TROUBLES: dict[str, Callable[[], None]] = {
    "segfault": segfault,
    "hang": hang,
    "glutton": take_memory,
    "closed": close_pipes,
    "loud": shout,
    "garbage": write_garbage,
    "orphan": leave_an_orphan,
}


def choices():
    return {"none": Options, **dict.fromkeys(TROUBLES, Options)}


def tools(choice, options):
    return ()


def sample_roles(choice, options, precision):
    return ()


def objection(choice, options, precision):
    return None


def precision(choice, options, precision):
    return precision


def run(job):
    TROUBLES[job.choice]()


class Copying:
    """A compiler that takes the ONNX file as it is."""

    VERSION = 1
    CompileOptions = Options

    def tools(self, options):
        return ("onnxruntime",)

    def sample_roles(self, options, precision):
        return ()

    def objection(self, options, precision):
        return None

    def compile(self, job):
        shutil.copyfile(job.parent_folder / job.parent.main, job.out / "model.onnx")
        return Produced("onnx", "model.onnx", job.parent.inputs, job.parent.outputs, job.parent.precision)


COPYING = Copying()
CLOSED = Backend(at_load=close_pipes)
LOUD = Backend(at_load=shout)
GARBAGE = Backend(at_load=write_garbage)
STUCK = Backend(before=lambda calls: hang() if calls == 24 else time.sleep(0.004))  # in the session, after the quality
ORPHAN = Backend(at_load=leave_an_orphan)
