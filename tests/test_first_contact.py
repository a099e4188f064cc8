"""What a person meets first: `edgeopt` alone, help, widths, colours, progress, completion, Ctrl-C while it starts."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import command
import processes
import pytest
import typer.main
from test_layers import VENDORS

from edgeopt import commands
from edgeopt.__main__ import main

EDGEOPT = (sys.executable, "-m", "edgeopt")
PLAIN = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM")}


def every_verb() -> dict[tuple[str, ...], object]:
    """Every command by its words, those of groups too."""
    found: dict[tuple[str, ...], object] = {}

    def walk(group: object, words: tuple[str, ...]) -> None:
        for name, verb in group.commands.items():
            walk(verb, (*words, name)) if hasattr(verb, "commands") else found.update({(*words, name): verb})

    walk(typer.main.get_command(commands.app), ())
    return found


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command with its output piped."""
    return subprocess.run(
        [*EDGEOPT, *arguments], env={**PLAIN, **environment}, capture_output=True, text=True, check=False
    )


def test_alone_it_shows_where_to_begin(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert "edgeopt init model.onnx --data samples.npz  " in out
    assert all(re.search(rf"\b{name}\b", out) for name in typer.main.get_command(commands.app).commands)


def test_every_verb_stands_in_a_group_of_the_help(capsys):
    assert main(["-h"]) == 0
    told = re.findall(r"^  ([a-z][a-z-]*)  ", capsys.readouterr().out, re.MULTILINE)
    shown = {name for name, verb in typer.main.get_command(commands.app).commands.items() if not verb.hidden}
    assert shown == set(told)


@pytest.mark.parametrize("words", every_verb(), ids=" ".join)
def test_help_has_an_example(words, capsys):
    assert main([*words, "--help"]) == 0
    out = capsys.readouterr().out
    called = "recipe check" if words == ("recipes", "check") else " ".join(words)  # one verb by two names
    assert f"edgeopt {called}" in out.partition("Example")[2]


def test_version(capsys):
    from edgeopt import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"edgeopt {__version__}\n"


@pytest.mark.parametrize("columns", [60, 100, 200])
def test_tables_keep_to_the_width(columns):
    done = run("targets", "list", COLUMNS=str(columns))
    assert "raspberry-pi-5" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= columns


def test_what_is_piped_is_plain():
    assert "\x1b" not in run("targets", "list").stdout


def test_colours_are_forced_and_forbidden():
    assert "\x1b[1m" in run("targets", "list", FORCE_COLOR="1").stdout
    forbidden = run("doctor", FORCE_COLOR="1", NO_COLOR="1").stdout
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", forbidden)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return command.project(tmp_path_factory.mktemp("first"), command.ONE_CANDIDATE)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_verbose_writes_a_line_for_each_thing_done(project, cache):
    done = run("convert", str(project / "recipe.yaml"), "-v", "-o", str(project / "v"), EDGEOPT_CACHE=str(cache))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "recipe: 1 candidates"
    assert {line.partition(":")[0] for line in lines} >= {"import", "measure"}
    benched = run("bench", str(project / "v"), "--quick", "--rounds", "3", "-v", EDGEOPT_CACHE=str(cache))
    assert any(line.startswith("proving") for line in benched.stderr.splitlines())


def test_quiet_writes_nothing(project, cache):
    done = run("convert", str(project / "recipe.yaml"), "-q", "-o", str(project / "q"), EDGEOPT_CACHE=str(cache))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_dumb_terminal_gets_lines_without_escapes(project, cache):
    """Its standard error is a terminal; what is read from it is what would be shown."""
    reader, terminal = pty.openpty()
    with open(terminal, "wb") as shown:
        done = subprocess.run(
            [*EDGEOPT, "convert", str(project / "recipe.yaml"), "--remeasure", "-o", str(project / "dumb")],
            env={**PLAIN, "TERM": "dumb", "EDGEOPT_CACHE": str(cache)},
            stdout=subprocess.PIPE,
            stderr=shown,
            check=False,
        )
    assert done.returncode == 0
    told = os.read(reader, 1 << 16).decode()
    os.close(reader)
    assert "measure" in told and "\x1b" not in told


COMPLETE = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize("shell", COMPLETE)
@pytest.mark.parametrize(
    ("line", "wanted", "other"),
    [
        ("edgeopt conv", "convert", "bench"),
        ("edgeopt convert --target rasp", "raspberry-pi-5", "host"),
        ("edgeopt convert --level quant", "quantization", "full"),
        ("edgeopt recipes show fashion", "fashion-mnist-full", "efficientnet"),
        ("edgeopt targets show cor", "coral-usb", "host"),
        ("edgeopt schema bas", "baseline", "recipe"),
    ],
)
def test_the_shell_completes(shell, line, wanted, other):
    done = run(_EDGEOPT_COMPLETE=f"complete_{shell}", **COMPLETE[shell](line))
    assert wanted in done.stdout and other not in done.stdout, done


def test_completing_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from edgeopt.__main__ import main\n"
        "try:\n    main([])\n"
        "finally:\n    print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    line = "edgeopt convert --target rasp"
    environment = {**PLAIN, "_EDGEOPT_COMPLETE": "complete_bash", **COMPLETE["bash"](line)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "raspberry-pi-5"
    assert not {*done.stderr.split()} & {*VENDORS, "yaml", "numpy", "psutil", "rich"}  # pydantic is typer's own


def test_completion_can_be_installed(tmp_path):
    done = run("--install-completion", "bash", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "edgeopt" in (tmp_path / ".bashrc").read_text()


@pytest.mark.parametrize("library", ["typer", "pydantic"])
def test_interrupted_while_it_starts(tmp_path, library):
    """Ctrl-C comes in the middle of an import: of the command line's own library, and of one that a verb needs."""
    interrupted = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n"
    (tmp_path / f"{library}.py").write_text(interrupted)
    with processes.started([*EDGEOPT, "recipes", "list"], env={**PLAIN, "PYTHONPATH": str(tmp_path)}) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert err.startswith("Interrupted.")


def test_an_error_is_json_too(capsys):
    assert main(["convert", "nothing.yaml", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2
