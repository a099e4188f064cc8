"""The entry point: `edgeopt` and `python -m edgeopt`. Heavy libraries are imported by the verbs that use them."""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgeopt import __version__
from edgeopt.cli import (
    baseline,
    bench,
    cache,
    check,
    convert,
    device_kit,
    doctor,
    inspect,
    print_json,
    recipe,
    recipes,
    schema,
    sensitivity,
    targets,
)
from edgeopt.errors import EdgeoptError, InputError, Interrupted
from edgeopt.text import plain

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="edgeopt",
    help="Makes trained neural networks small and fast enough for edge devices, and proves it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeopt {__version__}")
        raise typer.Exit


@app.callback(epilog="Start here:  edgeopt convert recipes/fashion-mnist.yaml")
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes trained neural networks small and fast enough for edge devices, and proves it."""


app.command(short_help="Find the best artifact of a model.")(convert.convert)
app.command(short_help="Prove and measure bundles and models here.")(bench.bench)
app.command(short_help="Check a run: budgets, regressions.")(check.check)
app.command(short_help="Keep a run's numbers to check others.")(baseline.baseline)
app.command(short_help="Tell what a model is.")(inspect.inspect)
app.command(short_help="Tell which layers lose most in 8 bits.")(sensitivity.sensitivity)
app.command(short_help="Tell what is usable on this machine.")(doctor.doctor)
app.command("device-kit", short_help="Write the part that measures on a device.")(device_kit.device_kit)
app.command(short_help="Print a JSON Schema.")(schema.schema)
app.add_typer(cache.app, name="cache")
recipes.app.command("check")(recipe.check)
app.add_typer(recipes.app, name="recipes")
app.add_typer(recipe.app, name="recipe", hidden=True)  # as one says it of one file
app.add_typer(targets.app, name="targets")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(arguments, prog_name="edgeopt", standalone_mode=False)
        if code == Interrupted.exit_code:  # typer makes a return of KeyboardInterrupt
            return _interrupted()
        return code if isinstance(code, int) else 0
    except EdgeoptError as error:
        return _fail(error, as_json="--json" in arguments)
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (usage := _usage_error(error, arguments)) is not None:
            return _fail(usage, as_json="--json" in arguments)
        if (code := _exit_code(error)) is not None:
            return code
        return _bug(arguments)


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(error: EdgeoptError, *, as_json: bool) -> int:
    lines = [plain(line) for line in error.lines()]
    with contextlib.suppress(OSError):  # the current folder may be gone
        here = f"{Path.cwd()}/"
        lines = [line.replace(here, "") for line in lines]  # what lies below is told as the user would write it
    sys.stderr.write("\n".join(["Error: " + lines[0], *lines[1:]]) + "\n")
    if as_json:
        print_json({"error": {**error.to_json(), "exit_code": error.exit_code}})
    return error.exit_code


def _usage_error(error: Exception, arguments: Sequence[str]) -> InputError | None:
    """What typer itself finds wrong with the command line: an unknown verb or option, a missing argument."""
    tell: Any = getattr(error, "format_message", None)
    if not callable(tell) or type(error).__name__ == "NoArgsIsHelpError":
        return None
    command = getattr(getattr(error, "ctx", None), "command_path", f"edgeopt {arguments[0]}")
    near = difflib.get_close_matches(
        getattr(error, "option_name", None) or "", getattr(error, "possibilities", None) or (), n=1
    )
    remedy = f"Did you mean {near[0]}? " if near else ""
    told = str(tell()).partition(" (Possible options")[0].rstrip(".")
    return InputError(
        told[:1].lower() + told[1:],
        remedy=f"{remedy}{command} -h tells what may be written here.",
    )


def _exit_code(error: Exception) -> int | None:
    """The code of an exception by which typer ends a command: --help, a group without a verb, Abort."""
    if type(error).__name__ == "Abort":
        return _interrupted()
    show: Any = getattr(error, "show", None)
    if callable(show):
        show()
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else None


def _interrupted() -> int:
    sys.stderr.write("Interrupted. The same command goes on from the steps that are finished.\n")
    return Interrupted.exit_code


def _bug(arguments: Sequence[str]) -> int:
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="edgeopt-bug-", suffix=".log", delete=False) as log:
        log.write(f"edgeopt {__version__}\nedgeopt {' '.join(arguments)}\nPython {sys.version}\n\n")
        traceback.print_exc(file=log)
    told = f"this is a bug of edgeopt: {traceback.format_exc().splitlines()[-1]}"
    return _fail(EdgeoptError(told, remedy=f"Please report it with {log.name}"), as_json="--json" in arguments)


if __name__ == "__main__":
    sys.exit(main())
