"""Every runtime and precision of this machine, side by side: quality, latency, and what making each one takes.

    python tests/benchmarks/routes/run.py fashion-mnist|efficientnet-lite0

Runs `edgeopt convert` on the recipe beside this file with an empty cache. Seconds and peak memory are those of the
steps on a candidate's way, the import first: seconds add up, of memory the largest counts. Two steps run side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def way(steps: Mapping[str, Mapping[str, Any]], imported: Mapping[str, Any], step: str) -> list[Mapping[str, Any]]:
    """The entries of a step and of those before it: "import/quantize=int8/compile=tflite" has two before."""
    parts = step.split("/")
    return [imported, *(steps["/".join(parts[:count])] for count in range(2, len(parts) + 1))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sample", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    recipe = HERE / f"{parser.parse_args().sample}.yaml"
    with tempfile.TemporaryDirectory() as folder:
        cache, output = Path(folder) / "cache", Path(folder) / "run"
        command = [sys.executable, "-m", "edgeopt", "convert", str(recipe), "--output", str(output), "--json"]
        environment = {**os.environ, "EDGEOPT_CACHE": str(cache)}
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        found = json.loads(done.stdout)
        steps = {step["id"]: step for step in json.loads((output / "run.json").read_text())["steps"]}
        last = {step["artifact"]: name for name, step in steps.items()}
        entries = [json.loads(path.read_text()) for path in (cache / "entries").glob("*/entry.json")]
    imported = next(entry for entry in entries if entry["inputs"]["stage"] == "import")
    imported = {"seconds": imported["seconds"], "peak_memory_bytes": imported["meta"]["peak_memory_bytes"]}
    print(f"{'candidate':32} {'quality':>8} {'SNR dB':>7} {'p50 us':>8} {'speed-up':>9} {'made in':>8} {'peak MB':>8}")
    for candidate in found["candidates"]:
        if not candidate.get("latency_ns"):  # left out, skipped or failed: the report of the run says why
            continue
        quality, speedup = candidate["quality"], candidate["speedup"]
        p50 = candidate["latency_ns"]["p50"]["value"] / 1e3
        made = way(steps, imported, last[candidate["artifact"]["digest"]])
        snr = f"{quality['sqnr_db']:.1f}" if quality["sqnr_db"] is not None else ""
        ratio = f"{speedup['value']:.2f}x" if speedup else "1x"
        print(
            f"{candidate['id']:32} {quality['value']:8.2%} {snr:>7} {p50:8.0f} "
            f"{ratio:>9} {sum(step['seconds'] for step in made):7.1f}s "
            f"{max(step['peak_memory_bytes'] for step in made) / 1e6:8.0f}"
        )


if __name__ == "__main__":
    main()
