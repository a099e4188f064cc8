"""The model card of a bundle: README.md, for people, and for Hugging Face's hub, whose fields stand at its top.

Drawn from the document of the run, from run.json, and from the artifact: nothing is said that was not measured or
recorded, so neither a licence nor what the model is for.
Fields: https://github.com/huggingface/hub-docs/blob/main/modelcard.md
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgeopt import units
from edgeopt.artifact import Artifact, TensorSpec
from edgeopt.report.cells import budget_lines, drop_text, quality_text, smaller_text, speedup_text
from edgeopt.report.snippet import code_to_run
from edgeopt.samples import Preprocess
from edgeopt.text import in_markdown, plain

NAME = "README.md"
LIBRARIES = {"onnxruntime": "onnx", "openvino": "openvino", "tflite": "litert", "torch": "pytorch"}
METRICS = {"top1": "accuracy", "top5": "accuracy"}  # ours to Hugging Face's


def render(
    document: Mapping[str, Any],
    run: Mapping[str, Any],
    artifact: Artifact,
    preprocess: Preprocess,
    golden_inputs: Sequence[str],
    golden_samples: int,
    energy_uj: float | None = None,
) -> str:
    """The card of the run's winner. `document` is choice.json, `run` is run.json, `energy_uj` that of an inference."""
    by_id = {candidate["id"]: candidate for candidate in document["candidates"]}
    chosen, original = by_id[document["winner"]], by_id.get(document["baseline"])
    code = "\n".join(code_to_run(chosen["backend"], artifact, preprocess, golden_inputs, golden_samples))
    parts = [
        _front_matter(chosen, artifact),
        f"# {in_markdown(document['recipe'])}: {in_markdown(chosen['id'])}",
        in_markdown(f"Made by edgeopt {run['edgeopt']} for the target {document['target']}: {document['why']}."),
        "## What it is\n\n" + _pairs(_about(run, artifact, preprocess, chosen)),
        "## Steps\n\n" + "\n".join(f"{number}. {line}" for number, line in enumerate(_steps(run, chosen), 1)),
        "## Measured\n\n" + "\n".join(_measured(run, chosen, original, energy_uj)),
        *(["## Budgets\n\n" + "\n".join(f"- {line}" for line in kept)] if (kept := _budgets(document, chosen)) else []),
        "## Limits\n\n" + "\n".join(f"- {in_markdown(line)}" for line in _limits(document, run, chosen, energy_uj)),
        "## How to run it\n\n"
        f"In this folder, on its golden samples, with numpy and {in_markdown(chosen['backend'])} alone:\n\n"
        f"```python\n{code}\n```\n\n"
        "`edgeopt bench .` first proves that it computes here what it should, and then measures it; a device without "
        "edgeopt takes `edgeopt device-kit`.",
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(chosen: Mapping[str, Any], artifact: Artifact) -> str:
    """YAML. No licence: edgeopt does not know it. JSON strings are YAML's too."""
    tags = dict.fromkeys(["edgeopt", artifact.format, chosen["backend"], artifact.precision])
    lines = [f"library_name: {LIBRARIES.get(chosen['backend'], json.dumps(chosen['backend']))}", "tags:"]
    lines += [f"- {json.dumps(tag)}" for tag in tags]
    metric = METRICS.get(str((chosen["quality"] or {}).get("metric")))
    lines += ["metrics:", f"- {metric}"] if metric else []
    return "\n".join(["---", *lines, "---"])


def _about(
    run: Mapping[str, Any], artifact: Artifact, preprocess: Preprocess, chosen: Mapping[str, Any]
) -> Iterator[tuple[str, str]]:
    yield "files", ", ".join(f"{file.path} ({units.format_size(file.size_bytes)})" for file in artifact.files)
    yield "format", f"{artifact.format}, run by {chosen['backend']}"
    yield "computes in", artifact.precision
    for name, specs in (("inputs", artifact.inputs), ("outputs", artifact.outputs)):
        yield name, "; ".join(map(_signature, specs))
    yield "preprocessing", _preprocessing(preprocess)
    yield "parameters", "unknown" if chosen["parameters"] is None else units.format_count(chosen["parameters"])
    if chosen["macs"] is not None:
        yield "multiply-accumulates", f"{units.format_count(chosen['macs'])} a sample"
    yield "digest", artifact.digest
    yield "made from", _source(run)
    for role, source in run["data"].items():
        yield f"data: {role}", f"{source['count']} samples of {_file(source['location'])}, sha256 {source['digest']}"
    yield "made for", _target(run, artifact)


def _signature(spec: TensorSpec) -> str:
    layout = f", {spec.layout}" if spec.layout else ""
    scale = f", real = {spec.scale:g} * (integer - {spec.zero_point})" if spec.scale is not None else ""
    return f"{spec}{layout}{scale}"


def _preprocessing(preprocess: Preprocess) -> str:
    told = [f"axes of a sample in the order {list(preprocess.transpose)}"] if preprocess.transpose else []
    numbers = {name: values for name, values in (("mean", preprocess.mean), ("std", preprocess.std)) if values}
    if numbers:
        told.append("(x - mean) / std in float32 with " + ", ".join(f"{n} {_number(v)}" for n, v in numbers.items()))
    return ", then ".join(told) or "none"


def _source(run: Mapping[str, Any]) -> str:
    made = run["import"]
    told = [f"{_file(run['model'])}, sha256 {made['model']}"]
    if run["weights"] and made.get("weights"):
        told.append(f"weights {_file(run['weights'])}, sha256 {made['weights']}")
    return "; ".join(told)


def _target(run: Mapping[str, Any], artifact: Artifact) -> str:
    target, machine = run["target"], run["machine"] or {}
    isa = ", ".join(machine.get("isa") or target["isa"])
    bound = "; tied to it" if artifact.built_for else ""
    arch = machine.get("arch") or target["arch"] or "any processor"
    return f"{target['name']} ({arch}{f': {isa}' if isa else ''}){bound}"


def _steps(run: Mapping[str, Any], chosen: Mapping[str, Any]) -> Iterator[str]:
    """What was done, with the options that are set, and the tools."""
    tools = ", ".join(f"{name} {version}" for name, version in run["import"]["tools"].items())
    yield in_markdown(f"import: {_file(run['model'])} ({tools})")
    last = next((step for step in run["steps"] if step["artifact"] == chosen["artifact"]["digest"]), None)
    for step in run["steps"]:
        if last is None or not f"{last['id']}/".startswith(f"{step['id']}/"):
            continue
        set_ones = {name: value for name, value in step["options"].items() if value not in (None, "", [], False)}
        options = ", ".join(f"{name} {_told(value)}" for name, value in set_ones.items())
        name = f"{step['stage']}: {step['choice']}" if step["choice"] else step["stage"]
        yield in_markdown(f"{name}{f' ({options})' if options else ''}")


def _measured(
    run: Mapping[str, Any], chosen: Mapping[str, Any], original: Mapping[str, Any] | None, energy_uj: float | None
) -> Iterator[str]:
    rows: Sequence[tuple[str, Callable[[Mapping[str, Any]], str]]] = (
        ("runtime", lambda one: f"{one['backend']} {one['runtime_version'] or ''}".strip()),
        ("latency p50", lambda one: _percentile(one, "p50")),
        ("latency p95", lambda one: _percentile(one, "p95")),
        ("latency p99", lambda one: _percentile(one, "p99")),
        ("speed-up", lambda one: "" if one is original else _speedup(one)),
        ("load", lambda one: _known(one["load_ns"], units.format_time)),
        ("first inference", lambda one: _known(one["first_inference_ns"], units.format_time)),
        ("peak memory above the runtime's", lambda one: _known(one["peak_memory_bytes"], units.format_size)),
        ("size", lambda one: _size(one, original)),
        ("quality", _quality),
    )
    machine = run["machine"]
    if machine is not None:
        threads = f"{chosen['threads']} thread{'' if chosen['threads'] == 1 else 's'}"
        cores = f"{machine['cores']} cores, {machine['os']}"
        yield (
            in_markdown(f"On {machine['cpu'] or machine['arch']}, {cores}, {threads}; 95 % intervals in brackets.")
            + "\n"
        )
    columns = [chosen] if original is None or original["id"] == chosen["id"] else [original, chosen]
    yield f"| | {' | '.join(in_markdown(one['id']) for one in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for title, cell in rows:
        yield f"| {title} | {' | '.join(in_markdown(cell(one)) for one in columns)} |"
    if energy_uj is not None:
        yield f"\n{in_markdown(chosen['id'])} takes {energy_uj:,.0f} µJ an inference."


def _budgets(document: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    told = [in_markdown(one["told"]) for one in chosen["budget"]]
    return told or [in_markdown(line) for line in budget_lines(document)]


def _limits(
    document: Mapping[str, Any], run: Mapping[str, Any], chosen: Mapping[str, Any], energy_uj: float | None
) -> Iterator[str]:
    """What the numbers do not say."""
    yield (
        "Times and memory are those of the machine above. Another processor gives others, and other instruction sets "
        "may give other outputs in low precision: prove and measure it there."
    )
    quality, validation = chosen["quality"], run["data"].get("validation")
    if quality and validation:
        judged = f"Quality was judged on {quality['samples']} samples of {_file(validation['location'])} alone"
        yield f"{judged}, and by {quality['metric']} alone: other data, and groups within it, were not looked at."
    else:
        yield "Quality was not judged: there was no validation data."
    latency = chosen["latency_ns"] or {"reasons": {}}
    for name, reason in latency["reasons"].items():
        yield f"Latency {name}: {reason}."
    unmeasured = [*(["energy"] if energy_uj is None else []), "how it does over hours", "several streams at once"]
    yield f"Not measured: {', '.join(unmeasured)}."
    for warning in (*chosen["warnings"], *document["warnings"]):
        yield f"Warning: {warning}."
    yield "Licence and intended use are those of the source model and its data, which edgeopt does not know."


def _pairs(pairs: Iterator[tuple[str, str]]) -> str:
    rows = [f"| {in_markdown(name)} | {in_markdown(value)} |" for name, value in pairs]
    return "\n".join(["| | |", "|---|---|", *rows])


def _percentile(one: Mapping[str, Any], name: str) -> str:
    found = one["latency_ns"] and one["latency_ns"][name]
    if not found:
        return "not measured"
    bounds = [_known(found[bound], units.format_time) for bound in ("low", "high")]
    return f"{units.format_time(found['value'])} [{', '.join(bounds)}]"


def _speedup(one: Mapping[str, Any]) -> str:
    speedup = one["speedup"]
    if not speedup:
        return "not measured"
    interval = "" if speedup["low"] is None else f" [{speedup['low']:.2f}, {speedup['high']:.2f}]"
    return f"{speedup_text(speedup)}{interval}, {speedup['verdict']}"


def _size(one: Mapping[str, Any], original: Mapping[str, Any] | None) -> str:
    size = one["artifact"]["size_bytes"]
    before = original["artifact"]["size_bytes"] if original and original["artifact"] else None
    smaller = f", {smaller_text(before / size)}" if before and one is not original else ""
    return f"{units.format_size(size)}{smaller}"


def _quality(one: Mapping[str, Any]) -> str:
    if not one["quality"]:
        return "not judged"
    drop = drop_text(one["quality"])
    return f"{one['quality']['metric']} {quality_text(one['quality'])}" + (f", drop {drop} points" if drop else "")


def _known(value: float | None, tell: Callable[[float], str]) -> str:
    return "unknown" if value is None else tell(value)


def _number(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _told(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _file(location: str) -> str:
    """The name of a file or function, without the folders of the machine that it lay on."""
    return plain(location).replace("\\", "/").rpartition("/")[2]
