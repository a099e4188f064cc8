"""The device half as one zipapp: `python kit.pyz bench best/` on a device that has numpy and one runtime.

What is in it are the two lowest layers, `VALUES` and `DEVICE`, and nothing that they do not need. The same edgeopt
gives the same bytes, whenever and wherever it is written with the same zlib.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt import __version__
from edgeopt.artifact import sha256_of_file
from edgeopt.errors import InputError

SCHEMA = 1
# A name covers all below it; edgeopt itself is its __init__.py alone.
VALUES = (
    "edgeopt", "errors", "units", "text", "jsontext", "fields", "artifact", "target", "statistics", "conditions",
    "measurement", "budget", "placement", "profile", "caveats",
)  # fmt: skip
DEVICE = (
    "backends", "measuring", "isa", "samples", "worker", "bundle", "signing", "verify", "nearby", "source", "data",
    "environment", "kit",
)  # fmt: skip
# Any Python reads it, to be told that it is too old.
MAIN = """\
import sys

if sys.version_info < (3, 9):
    sys.exit("Error: Python 3.9 or newer is needed, this is %d.%d" % sys.version_info[:2])

from edgeopt.kit.command import main

sys.exit(main())
"""
SHEBANG = b"#!/usr/bin/env python3\n"
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip file can say
PACKAGE = Path(__file__).parent


def write(path: Path) -> dict[str, Any]:
    """Write the kit; returns what is in it. A kit that is there is replaced. Raises InputError where it cannot be."""
    if path.is_dir():
        raise InputError("is a folder", where=str(path), remedy="Give the file to write: -o kit.pyz")
    members = {name: file.read_bytes() for name, file in files()} | {"__main__.py": MAIN.encode()}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            stream.write(SHEBANG)
            with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
                for name in sorted(members):
                    info = zipfile.ZipInfo(name, FIRST_DAY)
                    info.compress_type = zipfile.ZIP_DEFLATED
                    info.create_system = 3
                    info.external_attr = 0o644 << 16
                    archive.writestr(info, members[name])
        partial.chmod(0o755)
        partial.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot be written: {error.strerror}", where=str(path), remedy="Give -o a file in a folder that can be."
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return {
        "schema": SCHEMA,
        "edgeopt": __version__,
        "path": str(path),
        "sha256": sha256_of_file(path),
        "size_bytes": path.stat().st_size,
        "modules": sorted(_module(name) for name in members if name != "__main__.py"),
    }


def files() -> Iterator[tuple[str, Path]]:
    """The names in the archive, with the files that they are made of."""
    for name in (*VALUES, *DEVICE):
        place = PACKAGE if name == "edgeopt" else PACKAGE / name
        found = [place / "__init__.py"] if name == "edgeopt" else sorted(place.rglob("*.py"))
        for file in found or [place.with_suffix(".py")]:
            yield f"edgeopt/{file.relative_to(PACKAGE).as_posix()}", file


def _module(name: str) -> str:
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
