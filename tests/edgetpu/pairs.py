"""Makes pairs.json: models beside what the real Edge TPU compiler made of them, as operators without weights.

    git clone --depth 1 https://github.com/google-coral/test_data
    git clone --depth 1 https://github.com/google-coral/edgetpu
    git clone --depth 1 https://github.com/fredriktegnell/edgetpu-tcn
    git clone --depth 1 https://github.com/ricardodeazambuja/LibrEdgeTPU
    git clone --depth 1 https://github.com/edward62740/EdgeTPU-MOT
    git clone --depth 1 https://github.com/inSam/SR-GAN-Edge-TPU
    python tests/edgetpu/pairs.py test_data edgetpu edgetpu-tcn LibrEdgeTPU EdgeTPU-MOT SR-GAN-Edge-TPU

For each x.tflite with an x_edgetpu.tflite beside it: the operators of the first, and from the second how many there are
on the CPU, by type. The compiled files were made by their authors with several versions of Google's compiler. Files
above 4 MB were not at hand.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from edgeopt.edgetpu import compiled, operators


def pair(model: Path, made: Path, name: str) -> dict[str, Any] | None:
    found = compiled.read(made)
    if found is None:
        return None
    graph = operators.describe(model).to_json()
    for number, (dtype, shape, constant, value) in graph["tensors"].items():
        if constant and value is None and len(shape) != 4:  # of kernels alone a rule looks at the shape
            graph["tensors"][number] = [dtype, [], True, None]
    return {
        "model": name,
        "operators": len(graph["operators"]),
        "partitions": found.partitions,
        "on_cpu": dict(found.cpu_operators),
        "graph": graph,
    }


def main(folders: list[str]) -> None:
    found = []
    for folder in map(Path, folders):
        for made in sorted(folder.rglob("*_edgetpu.tflite")):
            model = made.with_name(made.name.replace("_edgetpu.tflite", ".tflite"))
            if model.is_file() and (one := pair(model, made, f"{folder.name}/{model.relative_to(folder)}")):
                found.append(one)
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in found)
    Path(__file__).with_name("pairs.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1:])
