"""The device that a model is made for: what it has, and how to reach it.

`Target` is the specification, from a file; the machine as found is the fingerprint in `edgeopt.measuring.machine`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Dict, Mapping, Optional, Tuple


@dataclass(frozen=True)
class Target:
    """A device.

    `arch` is "x86_64", "aarch64" or None where it is that of the host. `threads` is what inference may use. `backends`
    are those that run there, `precisions` what it computes fast in. `reach` says how: {"local": true}, or
    {"ssh": "user@host"} with "port", "key" and "known_hosts" (two files) where they differ from the user's own
    configuration. `python` is the interpreter that measures, there; None for the one that runs edgeopt, or "python3" of
    another machine. `isa` are instruction set extensions that matter to quantization ("avx512_vnni", "amx_int8"), empty
    where they are read off the machine. `runtimes` are options of compile steps, by runtime ({"openvino": {"hint":
    "throughput"}}), for recipes that say nothing of them.

    `batches` are the sizes of the winner's batch curve, empty for the usual ones.
    """

    name: str
    description: str = ""
    arch: Optional[str] = None
    cores: Optional[int] = None
    memory_bytes: Optional[int] = None
    storage_bytes: Optional[int] = None
    accelerators: Tuple[str, ...] = ()
    precisions: Tuple[str, ...] = ("fp32", "int8")
    backends: Tuple[str, ...] = ("onnxruntime", "openvino", "tflite")
    isa: Tuple[str, ...] = ()
    power_watts: Optional[float] = None
    tier: str = "cpu"
    reach: Mapping[str, Any] = field(default_factory=lambda: {"local": True})
    python: Optional[str] = None
    threads: int = 1
    batches: Tuple[int, ...] = ()
    runtimes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_local(self) -> bool:
        return bool(self.reach.get("local"))

    def to_json(self) -> Dict[str, Any]:
        return {**asdict(self), "reach": dict(self.reach)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Target:
        lists = ("accelerators", "precisions", "backends", "isa", "batches")
        fields: Dict[str, Any] = {key: tuple(item) if key in lists else item for key, item in value.items()}
        return Target(**fields)
