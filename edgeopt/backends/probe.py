"""Whether a backend really loads here, and what it can use: run in a worker, because an import may crash or hang.

Installed and usable are two things: a wheel for another processor, a driver too old or a lost shared library show only
when the runtime is imported. This module knows nothing of models.
"""

from __future__ import annotations

import importlib
from typing import Any, Callable, Dict, List, Mapping

from edgeopt import backends
from edgeopt.worker import Channel


def probe(args: Mapping[str, Any], channel: Channel) -> Dict[str, Any]:
    """Import the backend `args["backend"]`.

    What is known before the import is sent first, as a message: `version`, `missing`, `install`, as in
    `edgeopt.backends.Status`. The result is {"devices": {name: [capabilities]}}, empty for a runtime that does not tell
    (or whose modules are missing). Raises what the import raises.
    """
    backend = backends.find(args["backend"])
    status = backends.status(args["backend"])
    channel.send({"version": status.version, "missing": status.missing, "install": status.install})
    devices: Dict[str, List[str]] = {}
    if status.usable:
        for module in backend.IMPORTS:
            importlib.import_module(module)
            devices.update(DEVICES[module]() if module in DEVICES else {})
        tells = getattr(backend, "devices", None)
        devices.update(tells() if tells else {})
    return {"devices": devices}


def _openvino() -> Dict[str, List[str]]:
    import openvino

    core = openvino.Core()
    return {name: list(core.get_property(name, "OPTIMIZATION_CAPABILITIES")) for name in core.available_devices}


def _onnxruntime() -> Dict[str, List[str]]:
    import onnxruntime

    return {name: [] for name in onnxruntime.get_available_providers()}


DEVICES: Dict[str, Callable[[], Dict[str, List[str]]]] = {"openvino": _openvino, "onnxruntime": _onnxruntime}
