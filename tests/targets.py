"""Every compiler and backend as tests use them: made for, loaded and run where it can be, with the reason where not."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import pytest

from edgeopt import backends, compilers
from edgeopt.errors import EdgeoptError, MissingDependency, NoAccelerator, StageError
from edgeopt.samples import adapt, restore
from edgeopt.stages import compile as stage

NARROW = ("ncnn",)  # takes a part of all models, and says which not: tests of its own hold what it has to take


def lacks(name: str) -> EdgeoptError | None:
    """What keeps a backend from running here."""
    try:
        tells = getattr(backends.require(name), "devices", None)
        if tells:
            tells()
    except (MissingDependency, NoAccelerator) as error:
        return error
    return None


def lacks_for_compiling(name: str, precision: str = "fp32", **options: Any) -> str | None:
    """Why a compiler makes nothing of a model in a precision: what is not installed, or its own objection."""
    compiler = compilers.find(name)
    chosen = compiler.CompileOptions(**options)
    missing = [program for program in getattr(compiler, "PROGRAMS", ()) if shutil.which(program) is None]
    missing += [tool for tool in compiler.tools(chosen) if backends.version(tool) is None]
    return f"{missing[0]} is not installed" if missing else compiler.objection(chosen, precision)


def compiled(name: str, built: fashion.Built, out: Path, **options: Any) -> fashion.Built:
    """What a compiler makes of an import, or the reason why it does not as a skip."""
    if why := lacks_for_compiling(name, built[0].precision, **options):
        pytest.skip(why)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the converters' own imports
            return fashion.run_stage(stage, name, built, out, lineage={"import": built[1]}, **options)
    except StageError as error:
        if name not in NARROW:
            raise
        shutil.rmtree(out)
        pytest.skip(f"{name}: {error.message}")


def outputs(name: str, built: fashion.Built, feeds: Mapping[str, Any]) -> list[Any]:
    """What an artifact computes of the source model's inputs, in the source model's layout."""
    artifact, folder = built
    session = backends.find(name).load(folder / artifact.main, artifact.runtime, 1)
    return restore(session.run(adapt(feeds, artifact.inputs)), artifact.outputs)


def check(name: str, built: fashion.Built, out: Path, feeds: Mapping[str, Any], wanted: Sequence[Any]) -> None:
    """An import is compiled for a runtime, and computes what is wanted, within 1e-4, where that runs here."""
    made = compiled(name, built, out)
    assert len(made[0].inputs) == len(feeds)
    assert len(made[0].outputs) == len(wanted)
    if lacks(name):
        return
    for value, right in zip(outputs(name, made, feeds), wanted, strict=True):
        np.testing.assert_allclose(value.reshape(right.shape), right, rtol=1e-4, atol=1e-4)
