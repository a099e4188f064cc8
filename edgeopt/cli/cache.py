"""edgeopt cache: what is kept of earlier runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json

app = typer.Typer(
    help="List, explain, verify or shrink what is kept of earlier runs.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("list")
def list_entries(as_json: Json = False) -> int:
    """List every stored step, the last used first.

    Example:  edgeopt cache list
    """
    from edgeopt import explain
    from edgeopt.store import Store, default_root

    store = Store(default_root())
    found = explain.listing(store)
    if as_json:
        print_json({"schema": 1, "root": str(store.root), "entries": found})
    else:
        explain.print_listing(found, store, console())
    return 0


@app.command("explain")
def explain_recipe(
    recipe: Annotated[Path, typer.Argument(help="A recipe.")],
    as_json: Json = False,
) -> int:
    """Say of each step of a recipe whether it would be reused, and if not what differs from what is stored.

    Example:  edgeopt cache explain recipes/fashion-mnist.yaml
    """
    from edgeopt import explain
    from edgeopt.recipe import read
    from edgeopt.text import plain

    found = explain.explain(read(recipe))
    if as_json:
        print_json({"schema": 1, "steps": found})
    else:
        for step in found:
            console().print(plain(explain.sentence(step)), markup=False, soft_wrap=True)
    return 0


@app.command("verify")
def verify(as_json: Json = False) -> int:
    """Read every file of every stored step, and name what is damaged. Nothing is changed.

    A run drops what it finds damaged, and builds it again. Exit codes: 0 all is sound, 4 something is damaged.

    Example:  edgeopt cache verify
    """
    from dataclasses import asdict

    from edgeopt.errors import CorruptArtifact
    from edgeopt.store import Store, default_root
    from edgeopt.text import plain
    from edgeopt.units import format_size

    store = Store(default_root())
    sound, damaged = store.verify()
    size = sum(entry.size_bytes for entry in sound)
    if as_json:
        told = [asdict(one) for one in damaged]
        print_json({"schema": 1, "root": str(store.root), "sound": len(sound), "size_bytes": size, "damaged": told})
    else:
        for one in damaged:
            console().print(plain(f"{one.key[:12]} {one.step or '?'}: {one.what}"), markup=False, soft_wrap=True)
        found = f"{len(damaged)} damaged" if damaged else "none is damaged"
        console().print(f"{len(sound)} entries are sound ({format_size(size)}), {found}.")
    return CorruptArtifact.exit_code if damaged else 0


@app.command("gc")
def collect(
    limit: Annotated[str, typer.Option(help="The size to shrink to, such as '2 GiB' or '0 B'.")] = "5 GiB",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Remove what was unused for longest until the rest fits the limit.

    Example:  edgeopt cache gc --limit "2 GiB"
    """
    from edgeopt.errors import InputError
    from edgeopt.store import Store, default_root
    from edgeopt.units import format_size, parse_size

    try:
        limit_bytes = parse_size(limit)
    except ValueError as error:
        raise InputError(f"--limit: {error}") from None
    removed, kept = Store(default_root()).collect(limit_bytes, dry_run=dry_run)
    freed = sum(entry.size_bytes for entry in removed)
    if as_json:
        keys = [entry.key for entry in removed]
        print_json({"schema": 1, "removed": keys, "freed_bytes": freed, "kept_bytes": kept, "dry_run": dry_run})
    else:
        verb = "would be removed" if dry_run else "removed"
        console().print(f"{len(removed)} entries ({format_size(freed)}) {verb}, {format_size(kept)} kept.")
    return 0
