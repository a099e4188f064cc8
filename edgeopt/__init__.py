"""edgeopt makes trained neural networks small and fast enough for edge devices, and proves it.

From Python: `edgeopt.convert`, `edgeopt.bench` and `edgeopt.load`, see `edgeopt.api`. They are imported when they are
first used, so that `import edgeopt` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from edgeopt.api import Measured, Measurements, Model, Result, bench, convert, load
    from edgeopt.errors import EdgeoptError

__version__ = "0.1.0"
__all__ = [
    "EdgeoptError",
    "Measured",
    "Measurements",
    "Model",
    "Result",
    "__version__",
    "bench",
    "convert",
    "load",
]

_API = "edgeopt.api"
_PLACES = {name: _API for name in __all__ if name != "__version__"}
_PLACES["EdgeoptError"] = "edgeopt.errors"


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'edgeopt' has no attribute {name!r}")
    found = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
