"""edgeopt device-kit: the device half as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, print_json


def device_kit(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("kit.pyz"),
    as_json: Json = False,
) -> int:
    """Write the part of edgeopt that measures on a device: one file that needs Python 3.9, numpy and one runtime.

    \b
    Example:
      edgeopt device-kit -o kit.pyz
      scp -r kit.pyz runs/fashion-mnist-1/best user@device:
      ssh user@device python3 kit.pyz bench best/
    """
    from edgeopt import device_kit as kit
    from edgeopt.units import format_size

    found = kit.write(output)
    if as_json:
        print_json(found)
    else:
        typer.echo(
            f"{output}: {format_size(found['size_bytes'])}, {len(found['modules'])} modules, Python 3.9 or newer"
        )
        typer.echo(f"sha256 {found['sha256']}")
        typer.echo(f"On the device:  python3 {output.name} bench best/")
    return 0
