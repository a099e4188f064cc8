"""A limit on the wall time of a run: what may still be begun, and for how long it may go on.

How long work takes is known from work of the same kind earlier in the run. What was never done is begun while any time
is left. It knows nothing of models, and decides nothing about results: only whether they come about.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from edgeopt.errors import NoTimeLeft


@dataclass(frozen=True)
class Work:
    """Something that takes long. `kind` is "distill" or "quality openvino": its like takes as long.

    `then` are the ways on from here, each with the kinds of what has to be done before anything comes of it.
    `candidates` is how many will have to be measured when this one is.
    """

    kind: str
    then: tuple[tuple[str, ...], ...] = ()
    candidates: int = 1


class Clock:
    """The time of one run. `seconds` from now on is the limit, None is no limit; `told` is how the user wrote it.

    `measuring_seconds` is what one candidate takes in a session.
    """

    def __init__(self, seconds: float | None, told: str, measuring_seconds: float) -> None:
        self._started = time.monotonic()
        self._seconds = seconds
        self._share = 1.0
        self._told = told
        self._measuring_seconds = measuring_seconds
        self._took: dict[str, float] = {}

    @property
    def limited(self) -> bool:
        return self._seconds is not None

    def begin(self, work: Work) -> float | None:
        """The seconds that it may take, None for as many as it likes.

        Raises NoTimeLeft where it and what comes after it would not be done in time.
        """
        if self._seconds is None:
            return None
        passed = time.monotonic() - self._started
        rest = min((sum(self._took.get(kind, 0.0) for kind in way) for way in work.then), default=0.0)
        left = self._seconds * self._share - passed - self._measuring_seconds * work.candidates - rest
        if left <= self._took.get(work.kind, 0.0):
            raise NoTimeLeft(f"no time left: {self._told}")
        return left

    def ended(self, work: Work, seconds: float) -> None:
        """What it took, for those of its kind that come later."""
        self._took[work.kind] = max(seconds, self._took.get(work.kind, 0.0))

    def stopped(self, work: Work) -> NoTimeLeft:
        """The error of work that took more time than it was allowed."""
        return NoTimeLeft(f"no time left: {self._told}: {work.kind} was stopped on the way")

    @contextlib.contextmanager
    def part(self, share: float) -> Iterator[None]:
        """While this is held, only a share of the whole time may be used."""
        self._share = share
        try:
            yield
        finally:
            self._share = 1.0
