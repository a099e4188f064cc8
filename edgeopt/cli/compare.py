"""edgeopt compare: two artifacts or models, what they compute and what they cost."""

from __future__ import annotations

from typing import Annotated

import typer

from edgeopt.cli import Json, console, print_json


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="The reference: a bundle, a run, or a model of any format.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What is held against it.")],
    data: Annotated[
        str | None, typer.Option(help="Samples (.npz, .npy or file.py:function); with labels, accuracy too.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="How many of the samples to draw.")] = None,
    random: Annotated[bool, typer.Option("--random", help="Random numbers, where there are no samples.")] = False,
    mean: Annotated[
        str | None, typer.Option(help="For bare models: (x - mean) / std; else as the bundle beside it does.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean.")] = None,
    weights: Annotated[str | None, typer.Option(help="For a torch factory: .safetensors or a checkpoint.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of inference.")] = 1,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Time both, in turn.")] = True,
    tolerance: Annotated[
        list[str] | None, typer.Option(help='Fail beyond it: "sqnr: 30 dB", "fidelity: 98 %"; repeatable.')
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    as_json: Json = False,
) -> int:
    """Compare two models: outputs and layers on the same samples, size, operators, latency.

    Without --data the golden samples of a bundle are used. Layers are compared in ONNX, OpenVINO and TFLite files, also
    across them. Tolerances: sqnr, fidelity (same top-1 class), accuracy drop, max abs, relative (max abs over the
    largest magnitude), cosine; of several outputs the worst counts, by its value.

    \b
    Exit codes: 0 compared, 2 wrong input or different signatures, 4 one of them does
    not run here, 5 a library is missing, 7 a difference beyond a --tolerance.

    \b
    Examples:
      edgeopt compare model.onnx runs/fashion-mnist-1 --data test.npz
      edgeopt compare old/best new/best --no-latency --tolerance "sqnr: 30 dB"
    """
    from edgeopt import compare as both
    from edgeopt import differences
    from edgeopt.errors import Interrupted
    from edgeopt.kit import command
    from edgeopt.report import compare as report
    from edgeopt.samples import Preprocess

    request = both.Request(
        a=a,
        b=b,
        data=data,
        samples=samples,
        random=random,
        preprocess=Preprocess(command.numbers(mean, "--mean"), command.numbers(std, "--std")),
        weights=weights,
        threads=threads,
        latency=latency,
        tolerances=differences.tolerances(tolerance or ()),
    )
    try:
        found = command.with_progress(lambda tell: both.compare(request, tell), quiet=quiet or as_json)
    except KeyboardInterrupt:
        raise Interrupted(command.STOPPED) from None
    if as_json:
        print_json(found)
    else:
        report.print_comparison(found, console())
    return both.exit_code(found)
