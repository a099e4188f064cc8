"""One bench on several devices at once: an `edgeopt bench --target` for each, all told in one document.

Each device measures alone, as sessions take turns there. What cannot be measured on one device costs that device's
result, and the others go on. Ctrl-C is passed on, so that nothing is left running anywhere.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edgeopt.errors import WorkerCrashed
from edgeopt.text import plain

STOP_SECONDS = 20.0


def bench(targets: Sequence[str], arguments: Sequence[Sequence[str]], *, told: bool) -> dict[str, Any]:
    """Run `edgeopt bench` with the arguments of each target; `told` is whether progress goes to standard error.

    Returns {"devices": [...]}, in the order of the targets: what `edgeopt bench --json` prints, with its "target" and
    "exit_code". An error stands in "error".
    """
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "edgeopt", "bench", *given, "--target", target, "--json", *(["-v"] if told else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for target, given in zip(targets, arguments, strict=True)
    ]
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(2 * len(processes)))
        for process in processes:
            stack.enter_context(process)
        try:
            for target, process in zip(targets, processes, strict=True):
                pool.submit(_relay, target, process, told)
            found = list(pool.map(_document, targets, processes))
        except KeyboardInterrupt:
            _stop(processes)
            raise
    return {"schema": 1, "devices": found}


def exit_code(document: dict[str, Any]) -> int:
    """That of the first device that has another than 0."""
    return next((int(code) for device in document["devices"] if (code := device["exit_code"])), 0)


def _relay(target: str, process: subprocess.Popen[str], told: bool) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if told:
            sys.stderr.write(f"{target}: {plain(line.rstrip())}\n")


def _document(target: str, process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    text = process.stdout.read()
    code = process.wait()
    try:
        return {"target": target, "exit_code": code, **json.loads(text)}
    except ValueError:
        crash = WorkerCrashed(f"its bench ended with {code} and told nothing")
        return {"target": target, "exit_code": code or crash.exit_code, "error": crash.to_json()}


def _stop(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        process.kill()
