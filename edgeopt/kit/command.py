"""The command line of the device half: `python kit.pyz bench best/`, also `verify` and `doctor`.

It takes what `edgeopt bench` takes, prints the same, and ends with the same exit codes, with the standard library's
argparse alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, NoReturn, Optional, Sequence, Tuple

from edgeopt import __version__
from edgeopt import verify as verification
from edgeopt.errors import EdgeoptError, InputError, Interrupted
from edgeopt.kit import comparison, measure, remote, table, usable
from edgeopt.profile import BATCHES
from edgeopt.samples import Preprocess
from edgeopt.text import plain
from edgeopt.units import parse_time

if TYPE_CHECKING:
    from types import FrameType

NAME = "kit.pyz"
Bench = Callable[[measure.Request, measure.Tell], Dict[str, Any]]
REMOTE = "remote"  # a verb for the workstation, not for people: it stands in no help
STOPPED = "interrupted: nothing is left running, and nothing was written"
BENCH_HELP: Dict[str, str] = {
    "paths": "A bundle (best/), a run directory, or a model file (.onnx, .tflite, OpenVINO's .xml); the first is what "
    "the others are compared with.",
    "data": "Samples to run (.npz, .npy or file.py:function); with labels, accuracy on this device too.",
    "samples": "How many of the samples to draw.",
    "mean": "For bare models: (x - mean) / std, one number or one for each channel.",
    "std": "See --mean.",
    "threads": "Threads of inference.",
    "rounds": f"Rounds of blocks, {measure.ROUNDS} where nothing is said, and up to twice as many where the machine is "
    f"disturbed; {measure.QUICK_ROUNDS} with --quick.",
    "quick": "Fewer and shorter rounds: a look, not a verdict to rest on.",
    "output": "A new .jsonl file for every raw sample.",
    "compare": "Compare two such files (or run directories) instead of measuring.",
    "batch_curve": f"Latency by batch size too: {', '.join(map(str, BATCHES))}, while memory and time allow.",
    "sustained": "Run each back to back for so long too, such as 5m, and say whether it slows down.",
    "quiet": "No progress.",
    "verbose": "A line for each thing that is done.",
    "unlike": "Compare them though the machines or threads differ.",
}
EXAMPLES = """\
Examples:
  {0} bench best/
  {0} bench best/ model.onnx --data samples.npz -o today.jsonl
  {0} bench --compare yesterday.jsonl today.jsonl

Exit codes: 0 measured, 2 wrong input, 4 a bundle is damaged or computes something
else here, or every candidate failed, 5 a library is missing, 8 --compare of
unlike machines, 130 interrupted.
"""


class _Parser(argparse.ArgumentParser):
    """Mistakes are told as all other errors are."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message, remedy=f"{self.prog} -h explains what it takes, with examples.")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup has it ignored
            signal.signal(number, _terminated)
    try:
        if arguments[:1] == [REMOTE]:
            return remote.main(arguments[1:])
        given = _parser().parse_args(arguments)
        return {"bench": _bench, "doctor": _doctor, "verify": _verify}[given.verb](given)
    except EdgeoptError as error:
        return _fail(error, as_json="--json" in arguments)
    except KeyboardInterrupt:
        return _fail(Interrupted(STOPPED), as_json="--json" in arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_bench(
    request: measure.Request, *, quiet: bool = False, verbose: bool = False, bench: Bench = measure.bench
) -> Dict[str, Any]:
    """`edgeopt.kit.measure.bench`, here or elsewhere, its progress told on standard error: see `with_progress`."""
    return with_progress(lambda tell: bench(request, tell), quiet=quiet, verbose=verbose)


def with_progress(
    work: Callable[[measure.Tell], Dict[str, Any]], *, quiet: bool = False, verbose: bool = False
) -> Dict[str, Any]:
    """What `work` returns, its progress told on standard error where that is a terminal, or `verbose` asks for it: in
    one line that changes, or for a dumb terminal and `verbose` a line for each thing that is done."""
    is_terminal = sys.stderr.isatty()
    if quiet or not (verbose or is_terminal):
        return work(lambda *_: None)
    if verbose or os.environ.get("TERM") == "dumb":
        return work(_lines())
    try:
        return work(_tell)
    finally:
        sys.stderr.write("\r\x1b[K")


def numbers(text: Optional[str], option: str) -> Tuple[float, ...]:
    """ "0.485,0.456,0.406" to numbers. Raises InputError."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise InputError(
            f"{text!r} is not numbers", where=option, remedy=f"Write one, or one for each channel: {option} 0.5,0.5,0.5"
        ) from None


def duration(text: Optional[str]) -> Optional[int]:
    """ "5m" to ns. Raises InputError under a second."""
    try:
        ns = None if text is None else parse_time(text)
    except ValueError as error:
        raise InputError(str(error), where="--sustained", remedy="Write it with its unit: --sustained 5m") from None
    if ns is not None and ns < 10**9:
        raise InputError(f"{text} is too short to show anything", where="--sustained", remedy="--sustained 5m")
    return ns


def print_lines(lines: Iterable[str]) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog=NAME, description="edgeopt's device half: measures model bundles on this device.")
    parser.add_argument("--version", action="version", version=f"edgeopt {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", parser_class=_Parser, required=True)
    bench = verbs.add_parser(
        "bench",
        help="Prove bundles and measure them here.",
        description="Prove bundles by their golden samples, then measure them and bare models in turn.",
        epilog=EXAMPLES.format(NAME),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    told = BENCH_HELP
    bench.add_argument("paths", nargs="*", metavar="PATH", help=told["paths"])
    bench.add_argument("--data", help=told["data"])
    bench.add_argument("--samples", type=_at_least_one, help=told["samples"])
    bench.add_argument("--mean", help=told["mean"])
    bench.add_argument("--std", help=told["std"])
    bench.add_argument("--threads", type=_at_least_one, default=1, help=told["threads"])
    bench.add_argument("--rounds", type=_at_least_one, help=told["rounds"])
    bench.add_argument("--quick", action="store_true", help=told["quick"])
    bench.add_argument("--batch-curve", action="store_true", help=told["batch_curve"])
    bench.add_argument("--sustained", metavar="TIME", help=told["sustained"])
    bench.add_argument("-o", "--output", type=Path, help=told["output"])
    bench.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help=told["compare"])
    bench.add_argument("--unlike", action="store_true", help=told["unlike"])
    bench.add_argument("-q", "--quiet", action="store_true", help=told["quiet"])
    bench.add_argument("-v", "--verbose", action="store_true", help=told["verbose"])
    doctor = verbs.add_parser("doctor", help="Tell which runtimes are usable here.")
    verify = verbs.add_parser(
        "verify",
        help="Check a bundle's files, and who signed it.",
        epilog=f"Example:  {NAME} verify best/ --key release.pub",
    )
    verify.add_argument("bundle", type=Path, help="A bundle (best/), or a run directory.")
    verify.add_argument("--key", type=Path, help="The public key that must have signed it.")
    verify.add_argument("--signers", type=Path, help="OpenSSH's file of allowed signers.")
    for verb in (bench, doctor, verify):
        verb.add_argument("--json", action="store_true", dest="as_json", help="Print one JSON document.")
    return parser


def _at_least_one(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _bench(given: argparse.Namespace) -> int:
    if given.compare:
        return show_comparison(given.compare, given.paths, unlike=given.unlike, as_json=given.as_json)
    request = measure.Request(
        paths=tuple(given.paths),
        data=given.data,
        samples=given.samples,
        preprocess=Preprocess(numbers(given.mean, "--mean"), numbers(given.std, "--std")),
        threads=given.threads,
        rounds=given.rounds,
        quick=given.quick,
        output=given.output,
        batches=BATCHES if given.batch_curve else (),
        sustained_ns=duration(given.sustained),
    )
    return show_bench(
        run_bench(request, quiet=given.quiet or given.as_json, verbose=given.verbose), as_json=given.as_json
    )


def show_bench(document: Dict[str, Any], *, as_json: bool) -> int:
    """Print the document of a bench; returns its exit code."""
    _print(document, table.bench_lines(document), as_json=as_json)
    return measure.exit_code(document)


def show_comparison(files: Sequence[Path], paths: Sequence[str], *, unlike: bool, as_json: bool) -> int:
    """Compare two files of measurements and print it. Raises InputError where there are paths to measure too."""
    if paths:
        raise InputError("--compare measures nothing", where=paths[0], remedy="Give either paths or --compare A B.")
    document = comparison.compare(files[0], files[1], unlike=unlike)
    _print(document, table.comparison_lines(document), as_json=as_json)
    return 0


def _doctor(given: argparse.Namespace) -> int:
    document = usable.examine()
    _print(document, table.doctor_lines(document), as_json=given.as_json)
    return 0


def _verify(given: argparse.Namespace) -> int:
    found = verification.verify(given.bundle, key=given.key, signers=given.signers)
    _print(found.to_json(), map(plain, found.lines()), as_json=given.as_json)
    return 0


def _print(document: Dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    if as_json:
        lines = [json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)]
    print_lines(lines)


def _lines() -> measure.Tell:
    """Writes each text once."""
    told: List[str] = []

    def tell(text: str, _fraction: Optional[float]) -> None:
        if told[-1:] != [text]:
            told.append(text)
            sys.stderr.write(f"{plain(text)}\n")
            sys.stderr.flush()

    return tell


def _tell(text: str, fraction: Optional[float]) -> None:
    share = "" if fraction is None else f"{fraction:4.0%}  "
    room = shutil.get_terminal_size().columns - 1
    sys.stderr.write(f"\r\x1b[K{f'{share}{plain(text)}'[:room]}")
    sys.stderr.flush()


def _terminated(_signum: int, _frame: Optional[FrameType]) -> None:
    raise KeyboardInterrupt


def _fail(error: EdgeoptError, *, as_json: bool) -> int:
    first, *more = (plain(line) for line in error.lines())
    sys.stderr.write("\n".join([f"Error: {first}", *more]) + "\n")
    if as_json:
        print_lines([json.dumps({"error": {**error.to_json(), "exit_code": error.exit_code}}, indent=2)])
    return error.exit_code
