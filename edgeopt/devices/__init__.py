"""Where candidates are measured: this machine, and later others. One file for each way to reach a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from edgeopt.bench.session import Candidate, OnEvent, SessionOptions, SessionResult
from edgeopt.errors import TargetUnreachable
from edgeopt.measurement import Machine
from edgeopt.target import Target

Call = Callable[[str, Mapping[str, Any]], dict[str, Any]]


class Device(Protocol):
    """A machine that artifacts run on."""

    def machine(self) -> Machine:
        """What it is. Raises TargetUnreachable."""
        ...

    def isa(self) -> tuple[str, ...]:
        """The instruction set extensions that inference may use there."""
        ...

    def quality(self, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """The job `edgeopt.bench.quality:run` there. `call(function, args)` runs a job in a worker of the host."""
        ...

    def session(
        self,
        candidates: Sequence[Candidate],
        options: SessionOptions,
        logs: Path,
        on_event: OnEvent,
        stopping: Callable[[], bool],
    ) -> SessionResult:
        """The measurement of `edgeopt.bench.session` there."""
        ...


def find(target: Target) -> Device:
    """The device of a target. Raises TargetUnreachable where the target does not say how to reach it."""
    if target.is_local:
        from edgeopt.devices.local import LocalDevice

        return LocalDevice()
    raise TargetUnreachable(
        f"the target {target.name} is not this machine, and this version measures on this machine alone",
        remedy=f"Run edgeopt on the device itself, or see the plan with --dry-run --target {target.name}.",
    )
