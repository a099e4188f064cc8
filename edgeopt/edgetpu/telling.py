"""What the Edge TPU makes of a .tflite file: read from a compiled one, predicted of any other. A job for a worker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeopt import formats
from edgeopt.edgetpu import compiled, operators, partition
from edgeopt.worker import Channel


def tell(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Of the file {"model"}: {"basis": "compiled" or "predicted", ...}, as `compiled` and `partition` tell it."""
    channel.progress(None, "looking at the operators")
    path = Path(args["model"])
    with formats.reading(args["model"]):
        found = compiled.read(path)
        return found.to_json() if found else partition.predict(operators.describe(path)).to_json()
