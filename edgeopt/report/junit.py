"""A check as JUnit XML, which CI systems show as tests: one case a rule, in a suite of budgets and one of regressions.

The elements and attributes are those on which the readers of Jenkins, GitLab and GitHub's reporters agree.
"""

from __future__ import annotations

from xml.etree import ElementTree

from edgeopt.check import Checked, Rule
from edgeopt.text import plain

SUITES = {"budgets": ("winner", "budget"), "regressions": ("regression",)}


def render(found: Checked) -> str:
    """The whole file. A rule that decides nothing is skipped where it is broken; so is what could not be told."""
    cases = {suite: [rule for rule in found.rules if rule.kind in kinds] for suite, kinds in SUITES.items()}
    failures = {suite: sum(_fails(rule) for rule in rules) for suite, rules in cases.items()}
    root = ElementTree.Element(
        "testsuites",
        name=_text(f"edgeopt check {found.recipe} on {found.target}"),
        tests=str(len(found.rules)),
        failures=str(sum(failures.values())),
        errors="0",
    )
    for suite, rules in cases.items():
        if not rules:
            continue
        element = ElementTree.SubElement(
            root,
            "testsuite",
            name=suite,
            tests=str(len(rules)),
            failures=str(failures[suite]),
            errors="0",
            skipped=str(sum(_skipped(rule) is not None for rule in rules)),
        )
        for rule in rules:
            _case(element, suite, rule)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _case(parent: ElementTree.Element, suite: str, rule: Rule) -> None:
    where = f"{suite}.{rule.candidate}" if rule.candidate else suite
    case = ElementTree.SubElement(parent, "testcase", classname=_text(where), name=_text(rule.name))
    if _fails(rule):
        told = ElementTree.SubElement(case, "failure", message=_text(rule.told), type=rule.verdict)
        told.text = _text(rule.told)
    elif (reason := _skipped(rule)) is not None:
        ElementTree.SubElement(case, "skipped", message=_text(reason))
    else:
        ElementTree.SubElement(case, "system-out").text = _text(rule.told)


def _fails(rule: Rule) -> bool:
    return rule.gates and not rule.passed


def _skipped(rule: Rule) -> str | None:
    if not rule.gates and not rule.passed:
        return f"{rule.told}; this candidate is not the one that is checked"
    return rule.told if rule.passed and rule.verdict in ("inconclusive", "new") else None


def _text(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold; those that it must escape are escaped by the writer."""
    return plain(text)
