"""The README's table of reliability, made of the tests' own record: `python -m tests.faults.table`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("record.json")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row a fault, in the order of the record."""
    lines = ["| fault | how it was injected | times | outcome |", "|---|---|---|---|"]
    lines += [f"| {row['fault']} | {row['how']} | {row['times']} | {_outcome(row)} |" for row in rows]
    return "\n".join(lines)


def read() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.exists() else []
    return rows


def _outcome(row: Mapping[str, Any]) -> str:
    if row["failed"]:
        return f"**failed**: {', '.join(row['failed'])}"
    return row["outcome"] if row["times"] else f"not tried: {'; '.join(row['skipped'])}"


if __name__ == "__main__":
    print(table(read()))
