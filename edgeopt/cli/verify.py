"""edgeopt verify: is a bundle whole, unchanged, and from whom it should be?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, print_json


def verify(
    bundle: Annotated[Path, typer.Argument(help="A bundle (best/), or a run directory.")],
    key: Annotated[Path | None, typer.Option(help="The public key that must have signed it.")] = None,
    signers: Annotated[Path | None, typer.Option(help="OpenSSH's file of allowed signers.")] = None,
    as_json: Json = False,
) -> int:
    """Check every file of a bundle against its manifest, and with --key or --signers who signed it.

    \b
    Exit codes: 0 as it should be, 2 wrong input, 4 a file or the signature is not,
    5 there is no ssh-keygen.

    \b
    Examples:
      edgeopt verify runs/fashion-mnist-1/best
      edgeopt verify best/ --key release.pub
    """
    from edgeopt import verify as verification
    from edgeopt.text import plain

    found = verification.verify(bundle, key=key, signers=signers)
    if as_json:
        print_json(found.to_json())
    else:
        for line in found.lines():
            typer.echo(plain(line))
    return 0
