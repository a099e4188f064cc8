"""Disks that are full, read-only or lack what others have: told to the user, and nothing is left half done."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import processes
import pytest
import refusal
import sshd
import yaml
from aftermath import nothing_is_left, the_store_verifies
from command import ONE_CANDIDATE, convert, digests, finish, leftovers, project, start


def test_an_output_below_a_file_is_refused_before_anything_is_built(tmp_path):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    process = start(folder, tmp_path / "cache", "--output", "recipe.yaml/run")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot be written: Not a directory" in told
    assert not (tmp_path / "cache").exists()


def test_a_cache_below_a_file_is_refused_and_nothing_is_left(tmp_path):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    process = start(folder, folder / "recipe.yaml" / "cache")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the cache cannot be written (Not a directory)" in told
    assert not (folder / "runs").exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here, so none can be full")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path, leave_bytes: int) -> None:
    (disk / "ballast").write_bytes(bytes(shutil.disk_usage(disk).free - leave_bytes))


FULL = ("a full disk", "a tmpfs of 1 MiB with 0 to 200 KiB free, under the cache or under the run's folder")
TOLD = "“no space left”, and what to do (exit code 2); nothing is left there"


@pytest.mark.fault(*FULL, TOLD)
@pytest.mark.parametrize("free_kib", [0, 60, 200])
def test_a_full_disk_under_the_cache_is_the_users_to_mend(tmp_path, small_disk, free_kib):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    (small_disk / "cache").mkdir()
    fill(small_disk, free_kib << 10)
    process = start(folder, small_disk / "cache")
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "no space left" in told.lower()
    assert not (folder / "runs").exists()
    assert not list(leftovers(folder, small_disk / "cache"))


@pytest.mark.fault(*FULL, TOLD)
@pytest.mark.parametrize("free_kib", [32, 72])
def test_a_full_disk_under_the_run_leaves_nothing_there(tmp_path, small_disk, free_kib):
    folder = project(tmp_path / "p", ONE_CANDIDATE.replace("rounds: 3", "rounds: 99"))  # tens of KiB of raw latencies
    fill(small_disk, free_kib << 10)
    process = start(folder, tmp_path / "cache", "--output", str(small_disk / "runs" / "one"))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "no space left for the run" in told
    assert os.listdir(small_disk) == ["ballast"]


@pytest.mark.fault(
    "files that may not grow",
    "RLIMIT_FSIZE of 0 to 128 KiB for the command and its workers",
    "it says what cannot be written (exit code 2); without the limit the same command completes; nothing is left",
)
def test_files_that_may_not_grow_are_told(tmp_path, temporary, injections):
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"
    for number in injections(2, 20):
        most = number * (128 << 10) // 20

        def limited(most: int = most) -> None:
            processes.as_usual()
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

        process = start(folder, cache, prepare=limited)
        _, told = process.communicate(timeout=120)
        assert process.returncode == 2, told
        assert "cannot be written" in told or "no space left" in told
        assert not (folder / "runs").exists()
    convert(folder, cache)
    nothing_is_left(folder, cache, temporary)


@pytest.mark.fault(
    "a read-only file system",
    "a tmpfs mounted read-only, under the cache and under the run's folder",
    "it says what cannot be written before anything is built (exit code 2)",
)
@pytest.mark.parametrize("what", ["cache", "run"])
def test_a_read_only_file_system_is_told_before_anything_is_built(tmp_path, small_disk, what):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    places = {"cache": (small_disk / "cache",), "run": (tmp_path / "cache", "--output", str(small_disk / "run"))}
    process = start(folder, *places[what])
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "cannot be written" in told
    assert "Read-only file system" in told
    assert not (folder / "runs").exists()
    assert not list((tmp_path / "cache").glob("entries/*"))


LINKLESS = ("a file system without hard links and symbolic links", "a seccomp filter: link(2) and symlink(2) fail")
AS_ELSEWHERE = "the run completes, with the digests of one that has them; on a device files are copied instead"
needs_filter = pytest.mark.skipif(not refusal.known(), reason="no filter of system calls for this machine")


def linkless() -> None:
    processes.as_usual()
    refusal.refusing("link", "linkat", "symlink", "symlinkat")()


@needs_filter
@pytest.mark.fault(*LINKLESS, AS_ELSEWHERE)
def test_a_store_needs_no_hard_links(tmp_path, temporary):
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"
    wanted = convert(folder, tmp_path / "its cache")
    assert digests(finish(start(folder, cache, prepare=linkless))) == digests(wanted)
    the_store_verifies(cache)
    nothing_is_left(folder, cache, temporary)


@needs_filter
@sshd.needed
@pytest.mark.fault(*LINKLESS, AS_ELSEWHERE)
def test_a_device_needs_no_hard_links(tmp_path):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    with sshd.serving(tmp_path, prepare=linkless) as device:
        (folder / "recipe.yaml").write_text(ONE_CANDIDATE + yaml.safe_dump({"target": device.target}))
        assert convert(folder, tmp_path / "cache")["winner"] == "onnxruntime"


@needs_filter
@pytest.mark.fault(
    "a disk that fails",
    "a seccomp filter: fsync(2) fails with EIO, as where a sector cannot be written",
    "it says that the cache cannot be written, and why (exit code 2); nothing is stored",
)
def test_a_disk_that_fails_is_told(tmp_path):
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"

    def failing() -> None:
        processes.as_usual()
        refusal.refusing("fsync", error=errno.EIO)()

    process = start(folder, cache, prepare=failing)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 2, told
    assert "Input/output error" in told
    assert not list((cache / "entries").iterdir())
    assert not list(leftovers(folder, cache))
