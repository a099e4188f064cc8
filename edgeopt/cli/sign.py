"""edgeopt sign: says by whom a bundle is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, print_json


def sign(
    bundle: Annotated[Path, typer.Argument(help="A bundle (best/), or a run directory.")],
    key: Annotated[Path, typer.Option(help="A private SSH key, or the .pub of one in an agent.")],
    as_json: Json = False,
) -> int:
    """Sign a bundle with an SSH key, after checking it: `edgeopt verify --key` then tells that it is still the same.

    \b
    Examples:
      ssh-keygen -t ed25519 -f release
      edgeopt sign runs/fashion-mnist-1/best --key release
    """
    from edgeopt import verify as verification
    from edgeopt.text import plain

    found = verification.sign(bundle, key)
    if as_json:
        print_json(found.to_json())
    else:
        for line in found.lines():
            typer.echo(plain(line))
    return 0
