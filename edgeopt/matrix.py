"""Every format that a model may come in, against every runtime that it may be made for: works, or why not.

Read off what formats, compilers and the stage `keep` say of themselves; nothing is opened or run. What this machine
lacks is told apart from it: it is another thing elsewhere. Whether one model's operators are all there, only compiling
it tells.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from edgeopt import backends, compilers, formats, stages

if TYPE_CHECKING:
    from rich.console import Console

PRECISIONS = ("fp32", "int8", "int8-weights", "int8-dynamic", "int4-weights", "int4-dynamic")  # what `quantize` makes
WITHOUT_SUFFIX: Mapping[str, str] = {"torch": "torch factory", "savedmodel": "SavedModel folder"}
THROUGH_ONNX, AS_IT_IS = "through ONNX", "as it is"


def matrix() -> dict[str, Any]:
    """{"sources": [format], "targets": {name: {"takes": precisions, "missing", "install"}}, "pairs": [...]}.

    A pair is {"source", "files", "target", "works", "route", "precisions", "why"}; `route` is how, `why` why not.
    """
    keep = stages.find("keep")
    targets = {name: _target(name) for name in compilers.names()}
    pairs = []
    for source in formats.FORMATS:
        runtime = getattr(formats.find(source), "RUNTIME", None)
        for target in targets:
            takes = targets[target]["takes"]
            why = None
            if runtime is None and not takes:
                why = targets[target]["refuses"]
            elif runtime not in (None, target):
                why = f"{files(source)} runs on {runtime} alone: there is no way from its format to ONNX"
            if runtime == target:
                takes = ["fp32", *cast(Any, keep).PRECISIONS[target]]
            pairs.append(
                {
                    "source": source,
                    "files": files(source),
                    "target": target,
                    "works": why is None,
                    "route": None if why else AS_IT_IS if runtime else THROUGH_ONNX,
                    "precisions": [] if why else takes,
                    "why": why,
                }
            )
    return {"schema": 1, "sources": list(formats.FORMATS), "targets": targets, "pairs": pairs}


def files(source: str) -> str:
    """What a person calls a format: the ends of its files' names."""
    ends = [suffix for suffix, name in formats.SUFFIXES.items() if name == source]
    return WITHOUT_SUFFIX.get(source) or ", ".join(ends)


def _target(name: str) -> dict[str, Any]:
    compiler, status = compilers.find(name), backends.status(name)
    options = compiler.CompileOptions()
    objections = {precision: compiler.objection(options, precision) for precision in PRECISIONS}
    return {
        "takes": [precision for precision, objection in objections.items() if objection is None],
        "refuses": next(filter(None, objections.values()), None),
        "missing": status.missing or next((p for p in getattr(compiler, "PROGRAMS", ()) if not shutil.which(p)), None),
        "install": status.install,
    }


def print_matrix(found: Mapping[str, Any], console: Console) -> None:
    """A row for each format, a column for each runtime, and a line for each reason."""
    from rich.table import Table
    from rich.text import Text

    targets = list(found["targets"])
    table = Table("model", *targets, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    reasons: dict[str, int] = {}
    cells = {(pair["source"], pair["target"]): pair for pair in found["pairs"]}
    for source in found["sources"]:
        row = []
        for target in targets:
            pair = cells[source, target]
            number = reasons.setdefault(pair["why"], len(reasons) + 1) if pair["why"] else 0
            row.append(f"no ({number})" if number else "yes" if pair["route"] == THROUGH_ONNX else AS_IT_IS)
        table.add_row(files(source), *row)
    console.print(table)
    for why, number in reasons.items():
        console.print(Text(f"({number}) {why}"), soft_wrap=True)
    for target in targets:
        console.print(Text(f"{target} takes {', '.join(found['targets'][target]['takes'])}"), soft_wrap=True)


def print_missing(found: Mapping[str, Any], console: Console) -> None:
    """What is not installed on this machine."""
    from rich.text import Text

    for target, told in found["targets"].items():
        if told["missing"]:
            install = f" {told['install']}" if told["install"] else ""
            line = f"not on this machine: {target}, because {told['missing']} is missing.{install}"
            console.print(Text(line), style="dim", soft_wrap=True)
