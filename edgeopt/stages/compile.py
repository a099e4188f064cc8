"""The stage that makes what a runtime loads. Each runtime is a choice; the work is its compiler's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edgeopt import compilers
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1


class _Choices(Mapping[str, type[Options]]):
    """Every compiler's options, each compiler loaded when it is asked for: one that cannot be costs nobody else."""

    def __init__(self) -> None:
        self._names = compilers.names()

    def __getitem__(self, name: str) -> type[Options]:
        if name not in self._names:
            raise KeyError(name)
        return compilers.find(name).CompileOptions

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def choices() -> Mapping[str, type[Options]]:
    return _Choices()


def tools(choice: str, options: Any) -> Sequence[str]:
    return compilers.find(choice).tools(options)


def programs(choice: str) -> Sequence[str]:
    """The programs that a compiler calls, and that no package registry has."""
    return tuple(getattr(compilers.find(choice), "PROGRAMS", ()))


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    return compilers.find(choice).sample_roles(options, precision)


def objection(choice: str, options: Any, precision: str) -> str | None:
    return compilers.find(choice).objection(options, precision)


def precision(choice: str, options: Any, precision: str) -> str:
    asked = str(getattr(options, "precision", "auto"))
    return precision if asked == "auto" else asked


def run(job: StageJob) -> Produced:
    return compilers.find(job.choice).compile(job)
