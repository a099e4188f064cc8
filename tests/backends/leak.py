"""How much memory a process has gained after 1,000 inferences by `run` and 1,000 by `bind`, in bytes.

A JSON object is its argument: backend, main, runtime, feeds (a .npz). With "keep" every output is kept, which is what a
leak looks like. Only numpy and the backend's runtime are imported.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np

from edgeopt import backends

WARM_UP, COUNT = 100, 1000


def resident() -> int:
    """Bytes of this process in memory (proc(5), VmRSS)."""
    gc.collect()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def main(told: dict) -> int:
    session = backends.find(told["backend"]).load(Path(told["main"]), told["runtime"], 1)
    with np.load(told["feeds"]) as stored:
        feeds = dict(stored)
    kept = []

    def infer(count: int) -> None:
        for _ in range(count):
            found = session.run(feeds)
            if told.get("keep"):
                kept.append(found)
        bound = session.bind(feeds)
        for _ in range(count):
            bound()

    infer(WARM_UP)
    before = resident()
    infer(COUNT)
    return resident() - before


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
