"""This machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt import backends
from edgeopt.conditions import Machine
from edgeopt.devices import Call
from edgeopt.isa import instruction_sets
from edgeopt.kit import measure
from edgeopt.measuring import machine, session


class LocalDevice:
    """Measures on the machine that runs edgeopt."""

    def check(self, backends_used: Iterable[str]) -> None:
        """Plans are checked for their tools already."""

    def machine(self) -> Machine:
        return machine.fingerprint()

    def isa(self) -> tuple[str, ...]:
        return instruction_sets()

    def runtime_version(self, backend: str) -> str | None:
        return backends.version(backends.find(backend).DISTRIBUTION)

    def quality(self, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        return call("edgeopt.measuring.quality:run", args)

    def session(
        self,
        candidates: Sequence[session.Candidate],
        options: session.SessionOptions,
        logs: Path,
        on_event: session.OnEvent,
        stopping: Callable[[], bool],
    ) -> session.SessionResult:
        return session.run_session(
            candidates, options, logs, on_event, machine=self.machine(), observe=machine.state, stopping=stopping
        )

    def alone(self, function: str, args: Mapping[str, Any], call: Call) -> dict[str, Any]:
        return call(function, args)

    def bench(self, request: measure.Request, tell: measure.Tell) -> dict[str, Any]:
        return measure.bench(request, tell)
