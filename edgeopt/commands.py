"""The verbs by what they are for, and how the command ends: its exit codes, its errors. Verbs import what they need.

A new verb is a file in `edgeopt.cli` and a line in `VERBS`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from edgeopt import __version__
from edgeopt.cli import (
    baseline,
    bench,
    cache,
    check,
    compare,
    convert,
    device_kit,
    doctor,
    init,
    inspect,
    print_json,
    recipe,
    recipes,
    report,
    schema,
    sensitivity,
    sign,
    targets,
    verify,
)
from edgeopt.errors import EdgeoptError, InputError, Interrupted
from edgeopt.text import plain

Verb = Callable[..., Any] | typer.Typer
VERBS: dict[str, dict[str, tuple[Verb, str]]] = {
    "Make": {
        "init": (init.init, "Write a first recipe for a model."),
        "convert": (convert.convert, "Find the best artifact of a model."),
        "report": (report.report, "Draw a run as one page to look at."),
    },
    "Look into a model": {
        "inspect": (inspect.inspect, "Tell what a model is."),
        "sensitivity": (sensitivity.sensitivity, "Tell which layers lose most in 8 bits."),
        "compare": (compare.compare, "Compare two models, layer by layer."),
    },
    "Measure, here or on a device": {
        "bench": (bench.bench, "Prove and measure bundles and models here."),
        "device-kit": (device_kit.device_kit, "Write the part that measures on a device."),
    },
    "Keep watch": {
        "check": (check.check, "Check a run: budgets, regressions."),
        "baseline": (baseline.baseline, "Keep a run's numbers to check others."),
        "sign": (sign.sign, "Sign a bundle with an SSH key."),
        "verify": (verify.verify, "Check a bundle's files, and who signed it."),
    },
    "Find out": {
        "doctor": (doctor.doctor, "Tell what is usable on this machine."),
        "recipes": (recipes.app, "List, show or check recipes."),
        "targets": (targets.app, "List or show the devices known."),
        "schema": (schema.schema, "Print a JSON Schema."),
        "cache": (cache.app, "List, explain or shrink what is kept."),
    },
}
ABOUT = "Makes trained neural networks small and fast enough for edge devices, and proves it."
BEGIN = (
    ("edgeopt init model.onnx --data samples.npz", "looks at it, writes a recipe"),
    ("edgeopt convert model.yaml", "builds, measures, chooses"),
    ("edgeopt bench runs/model-1/best", "proves and measures the winner"),
)


class _Grouped(TyperGroup):
    """The verbs in groups, in the help as in `VERBS`."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        widest = max(len(name) for verbs in VERBS.values() for name in verbs)
        for title, verbs in VERBS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), about) for name, (_, about) in verbs.items()])


app = typer.Typer(
    name="edgeopt",
    cls=_Grouped,
    help=ABOUT,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"edgeopt {__version__}")
        raise typer.Exit


@app.callback(epilog="Begin here:  edgeopt init model.onnx --data samples.npz")
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes trained neural networks small and fast enough for edge devices, and proves it."""
    if context.invoked_subcommand is None:
        typer.echo(_welcome(context.make_formatter()))


def _welcome(formatter: Any) -> str:
    """Where to begin, and every verb."""
    formatter.write_text(ABOUT)
    with formatter.section("Begin with a model of yours, and samples of its inputs"):
        formatter.write_dl(BEGIN, col_max=44)
    with formatter.section("All verbs"):
        formatter.write_dl([(title, ", ".join(verbs)) for title, verbs in VERBS.items()])
    formatter.write_paragraph()
    formatter.write_text("`edgeopt VERB -h` explains a verb, with examples. `edgeopt doctor` tells what works here.")
    return str(formatter.getvalue().rstrip())


recipes.app.command("check")(recipe.check)
for _verbs in VERBS.values():
    for _name, (_verb, _about) in _verbs.items():
        if isinstance(_verb, typer.Typer):
            app.add_typer(_verb, name=_name, short_help=_about)
        else:
            app.command(_name, short_help=_about)(_verb)
app.add_typer(recipe.app, name="recipe", hidden=True)  # as one says it of one file


def run(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code. What goes wrong is told as `edgeopt.errors` says."""
    try:
        code = app(list(arguments), prog_name="edgeopt", standalone_mode=False)
        if code == Interrupted.exit_code:  # typer makes a return of KeyboardInterrupt
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except EdgeoptError as error:
        return _fail(error, as_json="--json" in arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if (usage := _usage_error(error, arguments)) is not None:
            return _fail(usage, as_json="--json" in arguments)
        if (ended := _exit_code(error)) is not None:
            return ended
        return _bug(arguments)


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
        remedy=f"{remedy}{command} -h explains what it takes, with examples.",
    )


def _exit_code(error: Exception) -> int | None:
    """The code of an exception by which typer ends a command: --help, a group without a verb, Abort."""
    if type(error).__name__ == "Abort":
        raise KeyboardInterrupt
    show: Any = getattr(error, "show", None)
    if callable(show):
        show()
    code = getattr(error, "exit_code", None)
    return code if isinstance(code, int) else None


def _bug(arguments: Sequence[str]) -> int:
    import tempfile

    with tempfile.NamedTemporaryFile("w", prefix="edgeopt-bug-", suffix=".log", delete=False) as log:
        log.write(f"edgeopt {__version__}\nedgeopt {' '.join(arguments)}\nPython {sys.version}\n\n")
        traceback.print_exc(file=log)
    told = f"this is a bug of edgeopt: {traceback.format_exc().splitlines()[-1]}"
    return _fail(EdgeoptError(told, remedy=f"Please report it with {log.name}"), as_json="--json" in arguments)
