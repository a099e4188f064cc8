"""edgeopt bench: bundles and models measured on this machine, or on another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgeopt.cli import Json

if TYPE_CHECKING:
    from edgeopt.kit.command import Bench


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
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of blocks.", show_default="16, or 8")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer and shorter rounds: a look, not a verdict to rest on.")
    ] = False,
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
        str | None, typer.Option(metavar="FILE", help="Measure on the device of this .yaml file, by SSH.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> int:
    """Prove bundles by their golden samples, then measure them and bare models in turn, on this machine.

    The first is what the others are compared with. With --target another machine measures, and this one needs no
    runtime. On a device without edgeopt, `python kit.pyz bench` does the same: see edgeopt device-kit.

    \b
    Exit codes: 0 measured, 2 wrong input, 4 a bundle is damaged or computes
    something else here, or every candidate failed, 5 a library is missing,
    6 the device cannot be reached, 130 interrupted.

    \b
    Examples:
      edgeopt bench runs/fashion-mnist-1/best
      edgeopt bench runs/fashion-mnist-1 model.onnx --data samples.npz -o today.jsonl
      edgeopt bench best/ --target raspberry.yaml
      edgeopt bench --compare yesterday.jsonl today.jsonl
    """
    from edgeopt.errors import Interrupted
    from edgeopt.kit import command, measure
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
    )
    try:
        bench_there = _bench_of(target) if target else measure.bench
        document = command.run_bench(request, quiet=quiet or as_json, bench=bench_there)
    except KeyboardInterrupt:
        raise Interrupted(command.STOPPED) from None
    return command.show_bench(document, as_json=as_json)


def _bench_of(target: str) -> Bench:
    """`edgeopt.kit.measure.bench` on another machine, or on this one."""
    from edgeopt import catalog, devices

    return devices.find(catalog.target(target)).bench
