"""What report.html says of how a run came about: operators and where they run, digests, versions, machine, recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from edgeopt import units
from edgeopt.report.markup import UNFOLDED, folded, name_cell, table, text

SHORT = 12  # characters of a digest


def placement(document: Mapping[str, Any]) -> str:
    """Where each candidate's operators run and in which precision, and what is not where it should be, where its
    runtime tells."""
    rows = [
        f'<tr>{name_cell(one["id"], "th")}<td class="words">{"<br>".join(told)}</td></tr>'
        for one in document["candidates"]
        if (told := list(_placed(one)))
    ]
    shown = table((("candidate", True), ("operators", True)), rows, kind="wrapped")
    if len(rows) > UNFOLDED:
        return folded(f"{len(rows)} candidates", shown)
    return shown if rows else ""


def _placed(candidate: Mapping[str, Any]) -> Iterator[str]:
    told = candidate.get("placement") or {}
    groups: dict[str, Counter[str]] = {}
    for kind in told.get("operators") or ():
        where = f"{kind['where']} {kind['precision'] or ''}".strip()
        groups.setdefault(where, Counter())[kind["operator"]] += kind["count"]
    if not groups and candidate.get("operators"):
        groups[candidate["backend"]] = Counter(candidate["operators"])
    for where, operators in groups.items():
        counted = ", ".join(f"{count} {operator}" for operator, count in operators.most_common())
        yield f"<strong>{text(where)}</strong> {text(counted)}"
    for exception in told.get("exceptions", ()):
        yield f"<em>{text(exception)}</em>"
    if told.get("reason"):
        yield f"<em>{text(told['reason'])}</em>"


def provenance(document: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Versions, digests, machine, and every step. An older run.json tells less."""
    pairs = [(about, told) for about, told in _facts(document, run) if told]
    facts = "".join(f"<div><dt>{about}</dt><dd>{text(told)}</dd></div>" for about, told in pairs)
    steps = [
        f"<tr>{name_cell(step['id'], 'th')}<td><code>{text(step['artifact'][:SHORT])}</code></td>"
        f"<td><code>{text(step['key'][:SHORT])}</code></td><td>{'reused' if step['reused'] else 'built'}</td></tr>"
        for step in run.get("steps", ())
    ]
    head = (("step", True), ("artifact", False), ("key", False), ("", False))
    return f'<dl class="facts">{facts}</dl>{folded("Every step", table(head, steps)) if steps else ""}'


def _facts(document: Mapping[str, Any], run: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "edgeopt", str(run.get("edgeopt", ""))
    yield "model", _named(run.get("model"), (run.get("import") or {}).get("model"))
    yield "weights", _named(run.get("weights"), (run.get("import") or {}).get("weights"))
    for role, source in (run.get("data") or {}).items():
        count = f", {source['count']} samples" if source.get("count") else ""
        yield f"{role} data", _named(source.get("location"), source.get("digest")) + count
    if machine := run.get("machine"):
        memory = units.format_size(machine["memory_bytes"]) if machine.get("memory_bytes") else ""
        told = [machine["cpu"] or "unknown CPU", machine["arch"], f"{machine['cores']} cores", memory, machine["os"]]
        yield "measured on", ", ".join(str(part) for part in (*told, f"Python {machine['python']}") if part)
        yield "instruction sets", ", ".join(machine.get("isa", ()))
    runtimes = {
        f"{one['backend']} {one['runtime_version']}, {one['threads']} thread{'s' if one['threads'] != 1 else ''}"
        for one in document["candidates"]
        if one.get("runtime_version")
    }
    yield "runtimes", "; ".join(sorted(runtimes))
    tools = {tool: str(version) for step in run.get("steps", ()) for tool, version in step["inputs"]["tools"].items()}
    yield "tools", ", ".join(f"{tool} {version}" for tool, version in sorted(tools.items()))
    if measure := run.get("measure"):
        yield "measured in", f"{measure['rounds']} rounds of {units.format_time(measure['block_ns'])} each, in turn"
    best = next((one for one in document["candidates"] if one["id"] == document["winner"]), None)
    yield "winner's digest", best["artifact"]["digest"] if best else ""


def _named(location: Any, digest: Any) -> str:
    """A file's name without its folder, which is this machine's own business, and the digest of its content."""
    file = PurePath(str(location)).name if location else ""
    return f"{file} ({str(digest)[:SHORT]})" if file and digest else file


def again(document: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The commands that do it again, and the recipe as resolved."""
    import yaml

    folder = PurePath(document["run"]).name
    commands = [
        ("builds everything anew, and compares every digest", f"edgeopt convert --reproduce {folder}/run.json"),
        ("judges the budgets again, from the raw samples", f"edgeopt check {folder}"),
    ]
    if document["winner"]:
        commands.append(("proves and measures the winner, on any machine", f"edgeopt bench {folder}/best"))
    told = "".join(f"<dt>{about}</dt><dd><code>{text(command)}</code></dd>" for about, command in commands)
    recipe = (run.get("recipe") or {}).get("document")
    if not recipe:
        return f"<dl>{told}</dl>"
    lines = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100).splitlines()
    shown = "<pre>" + "\n".join(text(line) for line in lines) + "</pre>"
    return f'<dl class="commands">{told}</dl>{folded("The recipe as resolved", shown, is_open=True)}'
