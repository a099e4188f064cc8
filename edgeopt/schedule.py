"""Runs a graph of jobs, each as soon as what it needs is done, a few at a time. Knows nothing of what a job does.

A job that fails costs itself and what needs it, and nothing else. Ctrl-C stops what is running at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, Protocol

from edgeopt.errors import EdgeoptError, MissingDependency, StageError


class Observer(Protocol):
    """Told of everything that happens, from several threads."""

    def started(self, job: str) -> None: ...

    def progressed(self, job: str, fraction: float | None, text: str) -> None: ...

    def finished(self, job: str, *, reused: bool, seconds: float) -> None: ...

    def failed(self, job: str, error: EdgeoptError) -> None: ...


@dataclass(frozen=True)
class Done:
    """A job's value, whether it was there already, and the seconds it took now."""

    value: Any
    reused: bool
    seconds: float = 0.0


@dataclass(frozen=True)
class Job:
    """`run(values)` gets the values of `needs` by id, and of those of `hopes` that came about.

    `fatal` jobs end everything when they fail. Of the jobs that could begin, that of the lowest `rank` does.
    """

    id: str
    needs: tuple[str, ...]
    run: Callable[[Mapping[str, Any]], Done]
    fatal: bool = False
    hopes: tuple[str, ...] = ()
    rank: int = 0


def run_all(
    jobs: Sequence[Job], *, at_once: int, observer: Observer, stop: Callable[[], None]
) -> dict[str, Done | EdgeoptError]:
    """Run every job; the result of each is its `Done` or its error.

    `stop` is called when the run is broken off (a fatal job failed, or Ctrl-C): it must make running jobs return soon.
    Raises the error of a fatal job, any that is neither StageError nor MissingDependency, and KeyboardInterrupt;
    ValueError where jobs can never run, because what they need is no job, or needs them.
    """
    results: dict[str, Done | EdgeoptError] = {}
    waiting = {job.id: job for job in jobs}
    running: dict[Future[Done], Job] = {}
    pool = ThreadPoolExecutor(at_once)
    try:
        while waiting or running:
            ready = [job for job in waiting.values() if all(n in results for n in (*job.needs, *job.hopes))]
            if not ready and not running:
                raise ValueError(f"jobs that can never run: {', '.join(waiting)}")
            for job in sorted(ready, key=lambda job: job.rank):
                failed = next((r for need in job.needs if isinstance(r := results[need], EdgeoptError)), None)
                if failed is not None:
                    del waiting[job.id]
                    results[job.id] = failed
                    observer.failed(job.id, failed)
                    continue
                if len(running) == at_once:
                    continue
                del waiting[job.id]
                values = {n: done.value for n in (*job.needs, *job.hopes) if isinstance(done := results[n], Done)}
                running[pool.submit(_run, job, values, observer)] = job
            if not running:
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    done = future.result()
                except EdgeoptError as error:
                    observer.failed(job.id, error)
                    if job.fatal or not isinstance(error, (StageError, MissingDependency)):
                        raise
                    results[job.id] = error
                else:
                    results[job.id] = done
                    observer.finished(job.id, reused=done.reused, seconds=done.seconds)
    except BaseException:
        stop()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return results


def _run(job: Job, values: Mapping[str, Any], observer: Observer) -> Done:
    observer.started(job.id)
    started = time.monotonic()
    done = job.run(values)
    return Done(done.value, done.reused, 0.0 if done.reused else time.monotonic() - started)
