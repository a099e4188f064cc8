"""edgeopt bench: bundles and models measured on this machine, or on another."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import Json, Verbose, print_json
from edgeopt.text import plain

if TYPE_CHECKING:
    from edgeopt.kit.command import Bench
    from edgeopt.kit.measure import Request


def bench(
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="A bundle (best/), a run, or a model: .onnx, .tflite, OpenVINO's .xml."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Samples (.npz, .npy or file.py:function); with labels, accuracy too.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many of the samples to draw.")] = None,
    mean: Annotated[
        str | None, typer.Option(help="For bare models: (x - mean) / std, one number or one for each channel.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of inference.")] = 1,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Rounds, up to twice as many where disturbed.", show_default="16, or 8"),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter rounds: a look, not a verdict to rest on.")
    ] = False,
    batch_curve: Annotated[
        bool, typer.Option("--batch-curve", help="Latency by batch size too: 1, 2, 4, ... 64.")
    ] = False,
    sustained: Annotated[
        str | None, typer.Option(metavar="TIME", help="Run each back to back for so long too, such as 5m.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new .jsonl file for every raw sample.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Compare two such files (or runs) instead of measuring."),
    ] = None,
    unlike: Annotated[
        bool, typer.Option("--unlike", help="Compare them though the machines or threads differ.")
    ] = False,
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Measure on the device of this .yaml file, by SSH; several at once."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> int:
    """Prove bundles by their golden samples, then measure them and bare models in turn, on this machine.

    The first is what the others are compared with. With --target another machine measures, and this one needs no
    runtime. On a device without edgeopt, `python kit.pyz bench` does the same: see edgeopt device-kit.

    \b
    Exit codes: 0 measured, 2 wrong input, 4 a bundle is damaged or computes
    something else here, or every candidate failed, 5 a library is missing,
    6 the device cannot be reached, 8 --compare of unlike machines,
    130 interrupted.

    \b
    Examples:
      edgeopt bench runs/fashion-mnist-1/best
      edgeopt bench runs/fashion-mnist-1 model.onnx --data samples.npz -o today.jsonl
      edgeopt bench best/ --target raspberry.yaml
      edgeopt bench best/ --target raspberry.yaml --target jetson.yaml
      edgeopt bench --compare yesterday.jsonl today.jsonl
    """
    from edgeopt.errors import Interrupted
    from edgeopt.kit import command, measure
    from edgeopt.profile import BATCHES
    from edgeopt.samples import Preprocess

    if compare is not None:
        return command.show_comparison(compare, paths or (), unlike=unlike, as_json=as_json)
    request = measure.Request(
        paths=tuple(paths or ()),
        data=data,
        samples=samples,
        preprocess=Preprocess(command.numbers(mean, "--mean"), command.numbers(std, "--std")),
        threads=threads,
        rounds=rounds,
        quick=quick,
        output=output,
        batches=BATCHES if batch_curve else (),
        sustained_ns=command.duration(sustained),
    )
    targets = target or []
    try:
        if len(targets) > 1:
            return _show_all(request, targets, told=verbose or (sys.stderr.isatty() and not quiet), as_json=as_json)
        bench_there = _bench_of(targets[0]) if targets else measure.bench
        document = command.run_bench(request, quiet=quiet or as_json, verbose=verbose, bench=bench_there)
    except KeyboardInterrupt:
        raise Interrupted(command.STOPPED) from None
    return command.show_bench(document, as_json=as_json)


def _show_all(request: Request, targets: Sequence[str], *, told: bool, as_json: bool) -> int:
    """Measure on all targets at once, and print one after the other."""
    from edgeopt import together
    from edgeopt.errors import InputError
    from edgeopt.kit import command, table

    if again := next((one for number, one in enumerate(targets) if one in targets[:number]), None):
        raise InputError("is there twice", where=f"--target {again}", remedy="Name each device once.")
    document = together.bench(targets, [_arguments(request, target) for target in targets], told=told)
    if as_json:
        print_json(document)
        return together.exit_code(document)
    for device in document["devices"]:
        command.print_lines([f"== {plain(device['target'])}"])
        if "error" in device:
            command.print_lines([f"Error: {plain(device['error']['message'])}", ""])
        else:
            command.print_lines([*table.bench_lines(device), ""])
    return together.exit_code(document)


def _arguments(request: Request, target: str) -> list[str]:
    """What the command line would be for one target; a file for every raw sample gets its name."""
    out = request.output
    options = {
        "--data": request.data,
        "--samples": request.samples,
        "--mean": ",".join(map(str, request.preprocess.mean)) or None,
        "--std": ",".join(map(str, request.preprocess.std)) or None,
        "--threads": request.threads,
        "--rounds": request.rounds,
        "--sustained": None if request.sustained_ns is None else f"{request.sustained_ns / 1e9:g} s",
        "--output": out and out.with_name(f"{out.stem}-{Path(target).stem}{out.suffix}"),
    }
    flags = [*(["--quick"] if request.quick else []), *(["--batch-curve"] if request.batches else [])]
    return [*request.paths, *flags, *(f"{name}={value}" for name, value in options.items() if value is not None)]


def _bench_of(target: str) -> Bench:
    """`edgeopt.kit.measure.bench` on another machine, or on this one."""
    from edgeopt import catalog, devices

    return devices.find(catalog.target(target)).bench
