"""A new user's way with a model of somebody else's: from its file to a report, with what each command takes.

    python tests/benchmarks/new_user.py [--folder FOLDER]

The text direction classifier of `foreign/run.py` is taken out of its package, and the commands are run as a user would
run them: first with the model alone, then with samples (`foreign/lines.py`). The cache is a new one, so that nothing is
reused that the user would not have.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOREIGN = Path(__file__).with_name("foreign")
COMMANDS = (
    "init direction.onnx",
    "convert direction.yaml -q",
    "init direction.onnx --data lines.py:validation -o with-samples.yaml",
    "convert with-samples.yaml",
)


def foreign() -> Any:
    """The benchmark that knows where the model is."""
    spec = importlib.util.spec_from_file_location("foreign_run", FOREIGN / "run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where all is put; by default a temporary one")
    folder = parser.parse_args().folder or Path(tempfile.mkdtemp(prefix="edgeopt-new-user-"))
    foreign().fetch(folder)
    shutil.copyfile(FOREIGN / "lines.py", folder / "lines.py")
    environment = {**os.environ, "EDGEOPT_CACHE": str(folder / "cache")}
    rows = []
    for command in COMMANDS:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        print(f"$ edgeopt {command}", flush=True)
        words = [sys.executable, "-m", "edgeopt", *command.split()]
        code = subprocess.run(words, cwd=folder, env=environment, check=False).returncode
        took, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        rows.append((command, took, cpu, code))
        if code not in (0, 3):
            break
    print(f"\n{'command':<76}{'wall s':>8}{'CPU s':>8}  exit code")
    for command, took, cpu, code in rows:
        print(f"{'edgeopt ' + command:<76}{took:>8.1f}{cpu:>8.1f}  {code}")
    reports = sorted(path.relative_to(folder).as_posix() for path in folder.glob("runs/*/report.html"))
    print(f"{sum(row[1] for row in rows):.1f} s from the model's file to {' and '.join(reports) or 'no report'}")


if __name__ == "__main__":
    main()
