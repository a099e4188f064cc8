"""Memory of this process as Linux tells it: the highest that was resident, and what is its own. None elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Optional

from edgeopt.worker import peak_memory_bytes, resident_bytes

_CLEAR_REFS, _ROLLUP = Path("/proc/self/clear_refs"), Path("/proc/self/smaps_rollup")


class Meter:
    """Bytes above what the process had when this was made: with the runtime imported and the inputs in memory."""

    def __init__(self) -> None:
        self._resident = resident_bytes(os.getpid())
        self._own = _rollup()

    def peak(self) -> Optional[int]:
        """The highest since `restart`, of VmHWM; None where that cannot be set back."""
        peak = peak_memory_bytes()
        return None if peak is None or self._resident is None or not self._can_restart else _above(peak, self._resident)

    def restart(self) -> None:
        """Let VmHWM be what is resident now (proc(5), clear_refs)."""
        try:
            _CLEAR_REFS.write_text("5")
            self._can_restart = True
        except OSError:
            self._can_restart = False

    def own(self) -> Dict[str, Optional[int]]:
        """uss_bytes, pages of this process alone, and pss_bytes, in which a page counts by how many share it."""
        now = _rollup()
        return {key: _above(now[key], self._own[key]) if key in now else None for key in ("uss_bytes", "pss_bytes")}


def _above(now: int, before: int) -> int:
    return max(0, now - before)


def _rollup() -> Dict[str, int]:
    try:
        lines = _ROLLUP.read_text().splitlines()[1:]
    except OSError:
        return {}
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"uss_bytes": found["Private_Clean"] + found["Private_Dirty"], "pss_bytes": found["Pss"]}
