"""Findings at a file and line, as sites that show code take them: GitHub's workflow commands, GitLab's Code Quality.

GitHub: https://docs.github.com/actions/reference/workflow-commands-for-github-actions; data escapes %, CR and LF,
properties : and , too. GitLab: https://docs.gitlab.com/ci/testing/code_quality, an array of CodeClimate issues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgeopt.check import Checked, Rule
from edgeopt.text import plain

LEVELS: Mapping[str, str] = {"error": "major", "warning": "minor"}  # of GitHub, and GitLab's severity


@dataclass(frozen=True)
class Finding:
    """Something to look at. `level` is "error" or "warning", `check` what found it; `line` counts from 1."""

    level: str
    title: str
    message: str
    check: str
    file: str | None = None
    line: int | None = None


def findings_of(found: Checked, recipe: str | None = None, lines: Mapping[str, int] | None = None) -> list[Finding]:
    """What a check found broken or doubtful. `recipe` is the file of the recipe, `lines` where it limits a quantity.

    A broken budget is at its limit in the recipe, a regression at the baseline's candidate where that is a file.
    """

    def finding(rule: Rule, level: str) -> Finding:
        file, line = recipe, (lines or {}).get(rule.quantity, 1) if recipe else None
        if rule.kind == "regression" and found.baseline_line is not None:
            file, line = found.against, found.baseline_line
        title = f"{rule.name}: {rule.verdict}"
        return Finding(level, title, f"{rule.candidate}: {rule.told}", f"edgeopt-{rule.kind}", file, line)

    return [finding(rule, "error") for rule in found.broken()] + [finding(rule, "warning") for rule in found.doubtful()]


def github(findings: Sequence[Finding]) -> str:
    """A workflow command a line."""
    return "".join(_command(finding) + "\n" for finding in findings)


def gitlab(findings: Sequence[Finding], otherwise: str) -> str:
    """A Code Quality report. Each issue needs a file: `otherwise` is that of findings that have none."""
    issues = []
    for finding in findings:
        path = plain(finding.file or otherwise)
        identity = json.dumps([finding.check, finding.title, path, finding.message.partition(":")[0]])
        issues.append(
            {
                "description": plain(f"{finding.title}: {finding.message}"),
                "check_name": finding.check,
                "fingerprint": hashlib.sha256(identity.encode()).hexdigest(),
                "severity": LEVELS[finding.level],
                "location": {"path": path, "lines": {"begin": finding.line or 1}},
            }
        )
    return json.dumps(issues, indent=1, ensure_ascii=False) + "\n"


def _command(finding: Finding) -> str:
    properties = {"file": finding.file, "line": finding.line, "title": finding.title}
    told = ",".join(f"{name}={_property(str(value))}" for name, value in properties.items() if value is not None)
    return f"::{finding.level} {told}::{_data(finding.message)}"


def _data(text: str) -> str:
    return plain(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
