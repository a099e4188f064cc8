"""kill -9 at random moments, of the command, of a worker, of the SSH session: the same command then ends as if nothing
had been.

The moments are drawn from a seed, which EDGEOPT_SEED sets.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import command
import processes
import pytest
import sshd
import yaml
from aftermath import nothing_is_left, the_store_verifies
from command import ONE_CANDIDATE, convert, digests, finish, project, start, stored

MOMENTS = random.Random(int(os.environ.get("EDGEOPT_SEED", "0")))
GOES_ON = "the same command completes with the digests of an undisturbed run; the store verifies; nothing is left"


def killed(process: subprocess.Popen[str], within: float) -> bool:
    """Wait for a random moment, then kill; False where the process had ended before."""
    try:
        process.wait(MOMENTS.uniform(0, within))
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


@pytest.mark.fault(
    "kill -9 of the command",
    "SIGKILL at random moments of the whole pipeline (import, int8, two compilers, quality, session), one after the "
    "other in the same cache",
    GOES_ON + "; no finished step is built again",
)
def test_the_command_killed_at_any_moment_goes_on_to_the_same_result(tmp_path, temporary, injections):
    undisturbed = convert(project(tmp_path / "undisturbed"), tmp_path / "its cache")
    folder, cache = project(tmp_path / "project"), tmp_path / "cache"
    for _ in injections(3, 200):
        while True:
            before = stored(cache)
            process = start(folder, cache)
            was_killed = killed(process, undisturbed["seconds"]["total"])
            document = None if was_killed else finish(process)
            assert command.gone(cache, 5)
            assert {key: stored(cache).get(key) for key in before} == before, "a finished step was built again"
            if document is None:
                break
            assert digests(document) == digests(undisturbed)
            nothing_is_left(folder, cache, temporary)
            shutil.rmtree(cache)
        if (cache / "entries").exists():
            the_store_verifies(cache)
    assert digests(convert(folder, cache)) == digests(undisturbed)
    nothing_is_left(folder, cache, temporary)


@pytest.mark.fault(
    "kill -9 of a worker",
    "SIGKILL of one of the command's workers at a random moment of a run that starts with nothing",
    "the command says which process was killed and ends with its code; " + GOES_ON,
)
def test_a_worker_killed_at_any_moment_costs_its_step_alone(tmp_path, temporary, injections):
    folder, cache = project(tmp_path / "project", ONE_CANDIDATE), tmp_path / "cache"
    undisturbed = convert(folder, tmp_path / "its cache")
    for _ in injections(3, 60):
        while True:
            shutil.rmtree(cache, ignore_errors=True)
            process = start(folder, cache)
            was_killed = a_worker_killed(process, cache, undisturbed["seconds"]["total"])
            out, err = process.communicate(timeout=120)
            if was_killed:
                break
        assert process.returncode in (0, 4), err
        assert process.returncode == 0 or "was killed by SIGKILL" in out
        the_store_verifies(cache)
        assert digests(convert(folder, cache)) == digests(undisturbed)
        nothing_is_left(folder, cache, temporary)


def a_worker_killed(process: subprocess.Popen[str], cache: Path, within: float) -> bool:
    """Wait for a random moment, then for a worker, and kill it; False where the command had ended before."""
    command.wait_for(lambda: process.poll() is not None, MOMENTS.uniform(0, within))
    command.wait_for(lambda: process.poll() is not None or command.workers(cache))
    if process.poll() is None and (found := command.workers(cache)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(MOMENTS.choice(found), signal.SIGKILL)
            return True
    return False


@sshd.needed
@pytest.mark.fault(
    "kill -9 of the SSH session",
    "SIGKILL of every process of sshd that serves the connection, at a random moment of a run that measures on the "
    "other side",
    "the command says that the connection was lost (exit code 6); no process is left on the device, and files "
    "for a day at most; " + GOES_ON,
)
def test_an_ssh_session_killed_at_any_moment_is_taken_up_again(tmp_path, temporary, injections):
    folder, cache = project(tmp_path / "project", ONE_CANDIDATE), tmp_path / "cache"
    with sshd.serving(tmp_path) as device:
        (folder / "recipe.yaml").write_text(ONE_CANDIDATE + yaml.safe_dump({"target": device.target}))
        undisturbed = convert(folder, tmp_path / "its cache")
        for _ in injections(2, 60):
            while True:
                shutil.rmtree(cache, ignore_errors=True)
                process = start(folder, cache)
                was_killed = the_session_killed(process, device.pid, undisturbed["seconds"]["total"])
                _, err = process.communicate(timeout=120)
                if was_killed:
                    break
            assert process.returncode in (0, 6), err
            assert process.returncode == 0 or "Traceback" not in err
            assert command.wait_for(lambda: not sshd.on_device(device), 20)
            assert digests(convert(folder, cache)) == digests(undisturbed)
            assert not list((device.cache / "work").iterdir())
            for result in (device.cache / "results").iterdir():
                os.utime(result, (0, 0))  # what was not fetched is kept for a day
            the_store_verifies(cache)
            nothing_is_left(folder, cache, temporary)
        convert(folder, tmp_path / "last cache")
        assert not list((device.cache / "results").iterdir())


def the_session_killed(process: subprocess.Popen[str], server: int, within: float) -> bool:
    """Wait for a random moment, then for a session, and kill it; False where the command had ended before."""
    command.wait_for(lambda: process.poll() is not None, MOMENTS.uniform(0, within))
    command.wait_for(lambda: process.poll() is not None or processes.children(server))
    if process.poll() is not None:
        return False
    for pid in processes.children(server):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return True
