"""Where the time of a first run goes: imports, building, taking quality, measuring.

    python tests/benchmarks/where_time_goes.py [recipes/fashion-mnist.yaml]

Runs `edgeopt convert` with an empty cache and CPython's import timer on in every worker, whose logs hold what each
import took. Steps run side by side, so that their seconds add up to more than the wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

IMPORT_LINE = re.compile(r"^import time:\s+(\d+) \|", re.MULTILINE)


def import_seconds(log: Path) -> float:
    """The sum of what every import took by itself."""
    return sum(map(int, IMPORT_LINE.findall(log.read_text(errors="replace")))) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="recipes/fashion-mnist.yaml")
    recipe = parser.parse_args().recipe
    with tempfile.TemporaryDirectory() as folder:
        cache, output = Path(folder) / "cache", Path(folder) / "run"
        environment = {**os.environ, "EDGEOPT_CACHE": str(cache), "PYTHONPROFILEIMPORTTIME": "1"}
        started = time.monotonic()
        command = [sys.executable, "-m", "edgeopt", "convert", recipe, "--output", str(output), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        wall = time.monotonic() - started
        found = json.loads(done.stdout)
        own = sum(map(int, IMPORT_LINE.findall(done.stderr))) / 1e6
        seconds: dict[str, float] = defaultdict(float)
        for path in (cache / "entries").glob("*/entry.json"):
            entry = json.loads(path.read_text())
            seconds[f"{entry['inputs']['stage']} {entry['inputs']['choice']}".strip()] += entry["seconds"]
        imports: dict[str, float] = defaultdict(float)
        for log in sorted((cache / "logs").rglob("*.log")):
            imports[_step(log.name)] += import_seconds(log)
    print(f"{wall:.1f} s in all: {found['seconds']['build']:.1f} s building and quality, two steps side by side,")
    print(f"{found['seconds']['measure']:.1f} s measuring; the command's own imports {own:.2f} s")
    print(f"{'imports in workers':28} {sum(imports.values()):6.1f} s")
    for step, spent in sorted(imports.items(), key=lambda item: -item[1]):
        print(f"  {step:26} {spent:6.1f} s")
    print("steps, their imports included")
    for step, spent in sorted(seconds.items(), key=lambda item: -item[1]):
        if step != "measure":
            print(f"  {step:26} {spent:6.1f} s")


def _step(log: str) -> str:
    name = log.split("-", 1)[-1].removesuffix(".log")
    for kind in ("data", "quality", "compile", "quantize"):
        if kind in name:
            return kind
    return "import" if name.startswith("import") else "measuring"


if __name__ == "__main__":
    main()
