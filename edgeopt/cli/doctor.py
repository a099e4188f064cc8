"""edgeopt doctor: what is usable on this machine, and what installs the rest."""

from __future__ import annotations

from edgeopt.cli import Json, console, print_json


def doctor(as_json: Json = False) -> int:
    """Tell which backends are usable here, their versions, and what to install for the others.

    Example:  edgeopt doctor
    """
    from edgeopt import doctor as examiner
    from edgeopt.report.doctor import print_report

    report = examiner.examine()
    if as_json:
        print_json(report.to_json())
    else:
        print_report(report, console())
    return 0
