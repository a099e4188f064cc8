"""Limits of memory that the shell sets, and a clock that goes backwards."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys

import processes
import pytest
from aftermath import nothing_is_left, the_store_verifies
from command import ONE_CANDIDATE, built, convert, digests, project, start

MIB = 1 << 20
# Takes an hour from the time of day for each second that the machine has been up, and begins anew after 1000.
BACKWARDS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/time.h>
#include <time.h>

int clock_gettime(clockid_t id, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, now);
    if (!failed && id == CLOCK_REALTIME) {
        struct timespec up;
        real(CLOCK_MONOTONIC, &up);
        now->tv_sec -= 3600 * (up.tv_sec % 1000);
    }
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.mark.fault(
    "too little memory (ulimit -v)",
    "RLIMIT_AS of 150 MiB to 1.2 GiB for the command and its workers, which the workers of the pipeline run into",
    "what needs more fails and says so (exit code 4), or the run completes; without the limit the same command "
    "completes; the store verifies; nothing is left",
)
def test_too_little_memory_costs_what_needs_more(tmp_path, temporary, injections):
    folder, cache = project(tmp_path / "p", ONE_CANDIDATE), tmp_path / "cache"
    for number in injections(2, 20):
        most = (150 + number * 1050 // 19) * MIB

        def limited(most: int = most) -> None:
            processes.as_usual()
            resource.setrlimit(resource.RLIMIT_AS, (most, most))

        process = start(folder, cache, prepare=limited)
        _, told = process.communicate(timeout=120)
        assert process.returncode in (0, 4), (most // MIB, told)
        assert "Traceback" not in told
        the_store_verifies(cache)
    convert(folder, cache)
    nothing_is_left(folder, cache, temporary)


@pytest.fixture(scope="module")
def backwards(tmp_path_factory):
    """A library to preload, under which the time of day goes backwards."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler here to make a clock that goes backwards")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "backwards.c").write_text(BACKWARDS)
    library = folder / "backwards.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "backwards.c", "-ldl"], check=True)
    return library


@pytest.mark.fault(
    "a clock that goes backwards",
    "a library preloaded into the command and its workers, under which the time of day goes back an hour each second",
    "the run completes with the digests of an undisturbed one, and its rerun reuses all of it; times are of the "
    "monotonic clock",
)
def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, temporary, backwards, monkeypatch, injections):
    folder = project(tmp_path / "p", ONE_CANDIDATE)
    wanted = convert(folder, tmp_path / "its cache")
    monkeypatch.setenv("LD_PRELOAD", str(backwards))
    code = "import time; a = time.time(); time.sleep(1.1); print(time.time() - a)"
    assert float(subprocess.run(["python3", "-c", code], capture_output=True, check=True).stdout) < -3000
    for number in injections(1, 10):
        cache = tmp_path / f"cache {number}"
        found = convert(folder, cache)
        assert digests(found) == digests(wanted)
        assert all(seconds >= 0 for seconds in found["seconds"].values())
        again = convert(folder, cache)
        assert not built(again)
        assert again["reused"]["measurements"]
        the_store_verifies(cache)
        nothing_is_left(folder, cache, temporary)
