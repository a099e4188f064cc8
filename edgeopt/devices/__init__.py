"""Where candidates are measured: this machine, or another by SSH. One file for each way to reach a device.

A further way (Android's adb) is a further file, a key of `reach` in `edgeopt.catalog`, and a line in `find`: what runs
on a device, `edgeopt.kit.remote`, needs Python there and a pipe, and knows nothing of what the pipe goes through.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from edgeopt.conditions import Machine
from edgeopt.errors import InputError, TargetUnreachable
from edgeopt.kit.measure import Request, Tell
from edgeopt.measuring.session import Candidate, OnEvent, SessionOptions, SessionResult
from edgeopt.target import Target

Call = Callable[[str, Mapping[str, Any]], dict[str, Any]]


class Device(Protocol):
    """A machine that artifacts run on."""

    def check(self, backends_used: Iterable[str]) -> None:
        """That these backends can be measured there. Raises TargetUnreachable, MissingDependency."""
        ...

    def machine(self) -> Machine:
        """What it is. Raises TargetUnreachable."""
        ...

    def isa(self) -> tuple[str, ...]:
        """The instruction set extensions that inference may use there."""
        ...

    def runtime_version(self, backend: str) -> str | None:
        """The version of a backend's runtime there, None where it has none."""
        ...

    def quality(self, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """The job `edgeopt.measuring.quality:run` there. `call(function, args)` runs a job in a worker of the host."""
        ...

    def session(
        self,
        candidates: Sequence[Candidate],
        options: SessionOptions,
        logs: Path,
        on_event: OnEvent,
        stopping: Callable[[], bool],
    ) -> SessionResult:
        """The measurement of `edgeopt.measuring.session` there."""
        ...

    def alone(self, function: str, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        """A job of `edgeopt.measuring.alone` there, beside which nothing is measured. `call` is as for `quality`."""
        ...

    def bench(self, request: Request, tell: Tell) -> dict[str, Any]:
        """`edgeopt.kit.measure.bench` there."""
        ...


def find(target: Target) -> Device:
    """The device of a target. Raises TargetUnreachable where the target does not say how to reach it."""
    if target.is_local:
        from edgeopt.devices.local import LocalDevice

        return LocalDevice()
    if "ssh" in target.reach:
        from edgeopt.devices.ssh import SshDevice

        return SshDevice(target)
    raise TargetUnreachable(
        f"the target {target.name} is not this machine, and it does not say how it is reached",
        remedy=f"Say it in the recipe: target: {{base: {target.name}, ssh: user@host}}; --dry-run shows the plan.",
    )


def as_found(target: Target, device: Device) -> Target:
    """The target with what decides how artifacts are built for it, read off the device.

    A device elsewhere is what it says it is; of this machine the target may say less than it can. Raises InputError
    where the device is of another architecture than the target, TargetUnreachable.
    """
    if target.is_local:
        return target if target.isa else replace(target, isa=device.isa())
    found = device.machine()
    if target.arch not in (None, found.arch):
        raise InputError(
            f"the target {target.name} is {target.arch}, and {found.cpu or 'what answers'} is {found.arch}",
            remedy="Name the base that the device is like, or none: target: {ssh: user@host}",
        )
    return replace(
        target,
        arch=found.arch,
        isa=found.isa,
        cores=found.cores,
        memory_bytes=found.memory_bytes or target.memory_bytes,
    )
