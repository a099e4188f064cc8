"""What a model is: for `edgeopt inspect`. Files are read in a worker: a stranger's may crash a parser."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt import backends, bundle, formats, worker
from edgeopt.edgetpu import compiled
from edgeopt.errors import InputError, MissingDependency, StageError
from edgeopt.measuring import machine
from edgeopt.nearby import nearby
from edgeopt.placement import Placement
from edgeopt.recipe import locate
from edgeopt.text import plain
from edgeopt.units import format_count, format_size

if TYPE_CHECKING:
    from rich.console import Console

EDGE_TPU = "edgeopt.edgetpu.telling:tell"
PLACING = "edgeopt.backends.placing:run"
RUNTIMES: Mapping[str, str] = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "tflite"}  # by format
SECONDS = 300.0
MEMORY_SHARE = 0.8  # of this machine's memory, what reading one file may take
UNSTATED = "the bundle does not tell"
LONGEST_METADATA = 120  # characters of one entry that are printed; --json has all
OPERATORS_SHOWN = 12
NAMES_SHOWN = 4
REASONS_SHOWN = 8


def inspect(
    model: str, *, weights: str | None, data: str | None, base: Path, placement: bool = False
) -> dict[str, Any]:
    """A model file, a torch factory, or the folder of a bundle, as plain JSON (see `formats.Summary`).

    `placement` asks the runtime of a model that is run as it is where its operators run: {"backend", and what
    `edgeopt.placement.Placement.told` gives}.
    """
    location = locate(model, base)
    if (Path(location) / bundle.MANIFEST).is_file():
        return _bundle(Path(location), placement)
    kind = formats.format_of(location)
    file = Path(location if kind != "torch" else location.rpartition(":")[0])
    if not file.exists() and (file.suffix or kind != "torch"):
        raise InputError(f"{model}: no such file", remedy=nearby(file))
    for tool in formats.find(kind).tools():
        if backends.version(tool) is None:
            raise MissingDependency(f"a {kind} model is read with {tool}", remedy=f"Install it: pip install {tool}")
    with tempfile.TemporaryDirectory(prefix="edgeopt-") as folder:
        scratch = Path(folder)
        limits = _limits()
        samples = None
        if data is not None:
            (scratch / "samples").mkdir()
            args = {"location": locate(data, base), "samples": 2, "seed": 0, "out": str(scratch / "samples")}
            args["preprocess"] = {"mean": [], "std": [], "transpose": []}
            worker.call("edgeopt.data:prepare", args, log=scratch / "data.log", limits=limits)
            samples = str(scratch / "samples")
        found = worker.call(
            "edgeopt.stages.import_model:inspect",
            {"model": location, "weights": locate(weights, base) if weights else None, "samples": samples},
            log=scratch / "inspect.log",
            limits=limits,
        )
        if kind == "tflite":
            args = {"model": location}
            found["edge_tpu"] = worker.call(EDGE_TPU, args, log=scratch / "edgetpu.log", limits=limits)
        if placement and kind in RUNTIMES:
            asked: dict[str, Any] = {"backend": RUNTIMES[kind], "main": location, "runtime": {}, "samples": samples}
            found["placement"] = _placement(asked, found, scratch)
        return found


def _limits() -> worker.Limits:
    memory = machine.fingerprint().memory_bytes
    return worker.Limits(SECONDS, None if memory is None else int(memory * MEMORY_SHARE))


def _placement(asked: Mapping[str, Any], found: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """Where the operators of a file run, as its runtime tells; of one compiled for the Edge TPU, as the file tells."""
    on_chip = found.get("edge_tpu", {})
    if on_chip.get("basis") == "compiled":
        made = compiled.Compiled(on_chip["partitions"], on_chip["cpu_operators"], on_chip["program_bytes"])
        return {"backend": "edgetpu", **Placement(made.placed()).told("int8")}
    try:
        told = worker.call(PLACING, asked, log=scratch / "placing.log", limits=_limits())
    except (MissingDependency, StageError) as error:
        told = Placement(reason=error.message).to_json()
    return {"backend": asked["backend"], **Placement.from_json(told).told(found["precision"] or "")}


def _bundle(folder: Path, placement: bool) -> dict[str, Any]:
    """A bundle: what its artifact's file is, with the provenance that the bundle tells. `placement` is that of the
    device that it was measured on."""
    read = bundle.read_bundle(folder)
    artifact = read.artifact
    found = inspect(str(read.main), weights=None, data=None, base=folder)
    if placement:
        stated = next((m["placement"] for m in read.measurements if m.get("placement")), None)
        found["placement"] = {"backend": read.backend, **(stated or Placement(reason=UNSTATED).told(""))}
    story = {"backend": read.backend, **read.provenance, "tools": dict(artifact.made_by.tools)}
    return {
        **found,
        "precision": artifact.precision,
        "size_bytes": artifact.size_bytes,
        "digest": artifact.digest,
        "provenance": {**found["provenance"], **story},
    }


def print_summary(found: Mapping[str, Any], console: Console) -> None:
    """The summary for a person. What is not known is said to be unknown."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: Any) -> None:
        from rich.text import Text

        told = "unknown" if value is None else "\n".join(map(plain, str(value).split("\n")))
        table.add_row(Text(plain(name)), Text(told))

    row("format", found["format"])
    for kind in ("inputs", "outputs"):
        specs = [plain(f"{s['name']}: {s['dtype']}[{', '.join(map(str, s['shape']))}]") for s in found[kind]]
        row(kind, "\n".join(specs) or "unknown without --data")
    row("parameters", f"{format_count(found['parameters'])}" if found["parameters"] is not None else None)
    row("MACs per sample", f"{format_count(found['macs'])}" if found["macs"] is not None else None)
    row("precision", found["precision"])
    row("size", format_size(found["size_bytes"]) if found["size_bytes"] is not None else None)
    operators = sorted(found["operators"].items(), key=lambda item: (-item[1], item[0]))
    told = ", ".join(f"{name} {count}" for name, count in operators[:OPERATORS_SHOWN])
    more = len(operators) - OPERATORS_SHOWN
    row("operators", told + (f", and {more} more kinds" if more > 0 else ""))
    if "placement" in found:
        row(f"runs in {found['placement']['backend']}", _placed(found["placement"]))
    if "edge_tpu" in found:
        row("Edge TPU", _edge_tpu(found["edge_tpu"]))
    for key, value in found["provenance"].items():
        pairs = ", ".join(f"{k}: {_brief(v)}" for k, v in value.items()) if isinstance(value, dict) else value
        row(str(key).replace("_", " "), pairs)
    console.print(table)


def _placed(found: Mapping[str, Any]) -> str:
    """A line for each kind of operator with what it computes in, after what is not where it should be."""
    lines = list(found["exceptions"])
    for one in found["operators"] or ():
        names, more = one["names"][:NAMES_SHOWN], len(one["names"]) - NAMES_SHOWN
        which = f" ({', '.join(names)}{f' and {more} more' if more > 0 else ''})" if names else ""
        told = ["converts" if one["converts"] else one["precision"], one["where"], one["kernel"], one["reason"]]
        lines.append(f"{one['count']} {one['operator']}: {', '.join(filter(None, told))}{which}")
    return "\n".join(lines) or f"unknown: {found['reason']}"


def _edge_tpu(found: Mapping[str, Any]) -> str:
    """What is compiled for it, or what its compiler would probably do."""
    if found["basis"] == "compiled":
        told = ", ".join(f"{name} {count}" for name, count in found["cpu_operators"].items())
        return (
            f"compiled: {found['partitions']} partition(s), {format_size(found['program_bytes'])} for the chip; "
            f"{found['on_cpu']} operators on the CPU" + (f": {told}" if told else "")
        )
    lines = [f"predicted, not compiled: {found['mapped']} of {found['operators']} operators mapped"]
    lines += [f"on the CPU: {k['operator']} {k['count']} ({k['reason']})" for k in found["kept_on_cpu"]]
    more = len(lines) - REASONS_SHOWN
    return "\n".join([*lines[:REASONS_SHOWN], *([f"and {more} more kinds"] if more > 0 else [])])


def _brief(value: Any) -> str:
    """On one line, and cut where it is long: some models carry a whole dictionary in their metadata."""
    text = " ".join(str(value).split())
    return text if len(text) <= LONGEST_METADATA else f"{text[:LONGEST_METADATA]}... ({len(text)} characters)"
