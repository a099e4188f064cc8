"""What `edgeopt doctor` found, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgeopt.doctor import PROGRAMS
from edgeopt.text import plain
from edgeopt.units import format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from edgeopt.doctor import Report


def print_report(report: Report, console: Console) -> None:
    """The machine, the backends, the steps, programs on PATH."""
    machine = report.machine
    memory = format_size(machine.memory_bytes) if machine.memory_bytes else "unknown memory"
    isa = ", ".join(machine.isa) or "no extensions that matter"
    free = format_size(report.cache_free_bytes) if report.cache_free_bytes is not None else "unknown"
    told = f"{machine.cpu or 'unknown CPU'}, {machine.cores} cores, {memory}, Python {machine.python}; {isa}"
    console.print(plain(told), soft_wrap=True, markup=False)
    console.print(plain(f"cache {report.cache}, {free} free"), soft_wrap=True, markup=False)
    table = _table("backend", "version", "devices or what is missing")
    for name, backend in report.backends.items():
        if backend.usable:
            told = "; ".join(f"{d} ({', '.join(a)})" if a else d for d, a in backend.devices.items())
        else:
            told = backend.reason or f"no {backend.missing}: {backend.install}"
        table.add_row(_mark(backend.usable), name, backend.version or "", plain(told))
    console.print(table)
    table = _table("step", "", "needs")
    for name, step in report.steps.items():
        told = ", ".join(f"{tool} {version}" for tool, version in step.tools.items() if version)
        if not step.usable:
            told = step.reason or f"missing: pip install {' '.join(step.missing)}"
        table.add_row(_mark(step.usable), name, "", plain(told))
    console.print(table)
    table = _table("program", "", "")
    for name, path in report.programs.items():
        table.add_row(_mark(path is not None), name, "", path or f"not found; {PROGRAMS[name]}")
    console.print(table)


def _table(*titles: str) -> Table:
    from rich.table import Table

    table = Table("", *titles, box=None, pad_edge=False, padding=(0, 2, 0, 0), title_justify="left")
    table.columns[-1].overflow = "fold"
    return table


def _mark(good: bool) -> Text:
    from rich.text import Text

    return Text("✓", style="green") if good else Text("✗", style="red")
