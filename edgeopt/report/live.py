"""What a person sees while a run goes on: a tree of candidates with their state, the running step's bar and time left.

Written to standard error, and only to a terminal; piped, nothing is written unless lines are asked for.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from edgeopt.errors import EdgeoptError, NoTimeLeft
from edgeopt.plan import IMPORT, Plan, PlanStep
from edgeopt.text import first_line, plain

if TYPE_CHECKING:
    from rich.console import RenderableType

BAR_WIDTH = 16


class Display(Protocol):
    """An observer of a whole run, used as a context manager."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def planned(self, plan: Plan, title: str) -> None: ...

    def started(self, job: str) -> None: ...

    def progressed(self, job: str, fraction: float | None, text: str) -> None: ...

    def finished(self, job: str, *, reused: bool, seconds: float) -> None: ...

    def failed(self, job: str, error: EdgeoptError) -> None: ...


def display(*, quiet: bool, verbose: bool = False) -> Display:
    """A live tree where standard error is a terminal that can draw one. Lines where `verbose` is asked for, or the
    terminal is a dumb one. Nothing otherwise."""
    is_terminal = sys.stderr.isatty()
    if quiet or not (verbose or is_terminal):
        return Silent()
    return Lines() if verbose or os.environ.get("TERM") == "dumb" else Tree()


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def planned(self, plan: Plan, title: str) -> None:
        pass

    def started(self, job: str) -> None:
        pass

    def progressed(self, job: str, fraction: float | None, text: str) -> None:
        pass

    def finished(self, job: str, *, reused: bool, seconds: float) -> None:
        pass

    def failed(self, job: str, error: EdgeoptError) -> None:
        pass


class Lines(Silent):
    """Writes a line for each thing that is done, as a log has it."""

    def planned(self, plan: Plan, title: str) -> None:
        self._write(f"{title}: {len(plan.candidates)} candidates")

    def finished(self, job: str, *, reused: bool, seconds: float) -> None:
        self._write(f"{job}: {'reused' if reused else f'{seconds:.1f} s'}")

    def failed(self, job: str, error: EdgeoptError) -> None:
        self._write(f"{job}: {'skipped' if isinstance(error, NoTimeLeft) else 'failed'}: {first_line(error)}")

    def _write(self, line: str) -> None:
        sys.stderr.write(f"{plain(line)}\n")
        sys.stderr.flush()


class Telling(Silent):
    """Tells a function what is being done, and how far it is: a fraction of one, None where that is unknown."""

    def __init__(self, tell: Callable[[str, float | None], None]) -> None:
        self._tell = tell

    def planned(self, plan: Plan, title: str) -> None:
        self._tell(f"{title}: {len(plan.candidates)} candidates", None)

    def progressed(self, job: str, fraction: float | None, text: str) -> None:
        self._tell(f"{job}: {text}", fraction)


@dataclass
class State:
    """Where one job stands."""

    state: str = "waiting"
    fraction: float | None = None
    text: str = ""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0


class Tree:
    """The live tree. Job ids are those of `pipeline`, `evaluation` ("quality:<candidate>") and "measure"."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._plan: Plan | None = None
        self._title = ""
        self._states: dict[str, State] = {}
        self._lock = threading.Lock()
        console = Console(stderr=True)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=8, transient=True)

    def __enter__(self) -> Tree:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def planned(self, plan: Plan, title: str) -> None:
        with self._lock:
            self._plan, self._title, self._states = plan, title, {}

    def started(self, job: str) -> None:
        with self._lock:
            self._states[job] = State("running")

    def progressed(self, job: str, fraction: float | None, text: str) -> None:
        with self._lock:
            state = self._states.setdefault(job, State("running"))
            state.fraction, state.text = fraction, text

    def finished(self, job: str, *, reused: bool, seconds: float) -> None:
        with self._lock:
            self._states[job] = State("reused" if reused else "done", seconds=seconds)

    def failed(self, job: str, error: EdgeoptError) -> None:
        with self._lock:
            state = "skipped" if isinstance(error, NoTimeLeft) else "failed"
            self._states[job] = State(state, text=error.message.splitlines()[0])

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text
        from rich.tree import Tree as RichTree

        if self._plan is None:
            return Text("planning")
        with self._lock:
            states = dict(self._states)
        root = RichTree(_line(self._title, states.get(IMPORT)), guide_style="dim")
        for role in self._plan.data:
            if (state := states.get(f"data:{role}")) and state.state == "running":
                root.add(_line(f"data: {role}", state))
        self._grow(root, IMPORT, states)
        measuring = states.get("measure")
        return Group(root, _line("measuring", measuring)) if measuring else root

    def _grow(self, branch: Any, parent: str, states: Mapping[str, State]) -> None:
        assert self._plan is not None
        for step in self._plan.steps:
            if step.parent == parent:
                self._grow(branch.add(_line(step.label, self._state_of(step, states))), step.id, states)

    def _state_of(self, step: PlanStep, states: Mapping[str, State]) -> State | None:
        """A step's own state, or that of its candidate's accuracy once it is built."""
        assert self._plan is not None
        candidate = next((c.id for c in self._plan.candidates if c.step == step.id), None)
        quality = states.get(f"quality:{candidate}")
        return quality if quality and quality.state in ("running", "failed", "skipped") else states.get(step.id)


def _line(name: str, state: State | None) -> RenderableType:
    from rich.text import Text

    line = Text(no_wrap=True, overflow="ellipsis")
    mark, style = {
        None: ("·", "dim"),
        "waiting": ("·", "dim"),
        "running": ("▸", "cyan"),
        "reused": ("✓", "green"),
        "done": ("✓", "green"),
        "failed": ("✗", "red"),
        "skipped": ("–", "dim"),
    }[state.state if state else None]
    line.append(f"{mark} ", style=style)
    line.append(name, style="" if state else "dim")
    if state is None:
        return line
    if state.state == "running":
        line.append(f"  {_bar(state)}", style="cyan")
    elif state.state == "reused":
        line.append("  reused", style="dim")
    elif state.state == "done":
        line.append(f"  {state.seconds:.1f} s", style="dim")
    elif state.state in ("failed", "skipped"):
        line.append(f"  {state.text}", style=style)
    return line


def _bar(state: State) -> str:
    elapsed = time.monotonic() - state.started
    if not state.fraction:
        return f"{state.text}  {elapsed:.0f} s"
    done = round(BAR_WIDTH * min(1.0, state.fraction))
    left = elapsed * (1 - state.fraction) / state.fraction
    return f"{'━' * done}{'╌' * (BAR_WIDTH - done)} {state.text}  {max(0.0, left):.0f} s left"
