"""The stage that makes what a runtime loads. Each runtime is a choice; the work is its compiler's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeopt import compilers
from edgeopt.stages import Options, Produced, StageJob

VERSION = 1


def choices() -> Mapping[str, type[Options]]:
    return {name: compilers.find(name).CompileOptions for name in compilers.COMPILERS}


def tools(choice: str, options: Any) -> Sequence[str]:
    return compilers.find(choice).tools(options)


def sample_roles(choice: str, options: Any, precision: str) -> Sequence[str]:
    return compilers.find(choice).sample_roles(options, precision)


def objection(choice: str, options: Any, precision: str) -> str | None:
    return compilers.find(choice).objection(options, precision)


def precision(choice: str, options: Any, precision: str) -> str:
    asked = str(getattr(options, "precision", "auto"))
    return precision if asked == "auto" else asked


def run(job: StageJob) -> Produced:
    return compilers.find(job.choice).compile(job)
