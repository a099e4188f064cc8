"""The first step of every plan: bring the source model into canonical form, or tell what it is.

`run` and `inspect` are jobs of a worker: a user's Python code and a stranger's file stay out of the command's process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeopt import formats
from edgeopt.formats import ModelRef
from edgeopt.worker import Channel, peak_memory_bytes

VERSION = 1


def tools(model: str) -> Sequence[str]:
    """The distributions whose versions change what a model of this format becomes."""
    return formats.find(formats.format_of(model)).tools()


def run(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Import {"model", "weights", "samples": a folder or None} into the folder "out".

    Returns {"produced": the fields of `Produced`, "sources": the files beside the model that it was made of,
    "peak_memory_bytes": of this process}.
    """
    imported = formats.bring_in(_ref(args), _folder(args.get("samples")), Path(args["out"]), channel.progress)
    return {
        "produced": imported.produced.to_json(),
        "sources": [str(path) for path in imported.sources],
        "peak_memory_bytes": peak_memory_bytes(),
    }


def inspect(args: Mapping[str, Any], channel: Channel) -> dict[str, Any]:
    """Describe {"model", "weights", "samples": a folder with an example, or None}: the fields of `Summary`."""
    channel.progress(None, "reading the model")
    kind = formats.format_of(args["model"])
    with contextlib.nullcontext() if kind == "torch" else formats.reading(args["model"]):  # a factory is no file
        return formats.find(kind).inspect(_ref(args), _folder(args.get("samples"))).to_json()


def _ref(args: Mapping[str, Any]) -> ModelRef:
    return ModelRef(args["model"], args.get("weights"))


def _folder(name: str | None) -> Path | None:
    return Path(name) if name else None
