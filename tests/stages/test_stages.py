"""What every stage keeps to, ours and those of installed packages: each alternative, on a torch and on an ONNX model.

A case is skipped where a library, a program or a device is missing, in its own words.
"""

from __future__ import annotations

import functools
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import example
import fashion
import linear
import numpy as np
import onnxruntime
import pytest
import tiny
from pydantic import ValidationError

from edgeopt import backends, compilers, formats, recipe, stages, yaml
from edgeopt.artifact import canonical_json
from edgeopt.errors import MissingDependency, NoAccelerator, RecipeError
from edgeopt.formats import ModelRef
from edgeopt.samples import Samples, adapt, restore, write_samples
from edgeopt.stages import Options, StageJob
from edgeopt.target import Target

TRAINING = {"epochs": 1, "batch": 16}
OPTIONS: Mapping[tuple[str, str], Mapping[str, Any]] = {  # where the defaults are not enough, or take long
    ("prune", ""): {"channels": "50 %"},
    ("distill", ""): TRAINING,
    ("quantize", "qat"): TRAINING,
    ("keep", "tflite"): {"precision": "int8"},
}
NOT_EQUAL = {"tensorrt": "TensorRT-RTX numbers the names of inner tensors as its threads come"}  # to the byte
OF_FILES = ("keep",)  # stages whose parent is a runtime's own file
HERE = Target("here", isa=fashion.VNNI.isa)


@dataclass(frozen=True)
class Work:
    """An alternative of a stage, on one source model."""

    stage: str
    choice: str
    source: str

    def __str__(self) -> str:
        return "-".join(filter(None, (self.stage, self.choice, self.source)))

    @property
    def given(self) -> Mapping[str, Any]:
        return OPTIONS.get((self.stage, self.choice), {})

    @property
    def module(self) -> Any:
        return stages.find(self.stage)

    @property
    def options(self) -> Options:
        found: Options = self.module.choices()[self.choice](**self.given)
        return found

    def parent(self) -> fashion.Built:
        return _file(self.source) if self.stage in OF_FILES else tiny.brought_in(self.source)


def _all() -> Iterator[Work]:
    for name in dict.fromkeys((*stages.STAGES, *stages.PLANNED, *example.published("edgeopt.stages"))):
        for choice in stages.find(name).choices():
            sources = (choice,) if name in OF_FILES else ("torch", "onnx")
            yield from (Work(name, choice, source) for source in sources if choice != "none")


with example.installed():
    WORKS = list(_all())
KINDS = [work for work in WORKS if work.source != "onnx"]  # one of each alternative


@functools.cache
def _file(runtime: str) -> fashion.Built:
    """A runtime's own file, as its import leaves it."""
    folder, out = fashion.scratch() / f"own-{runtime}", fashion.scratch() / f"own-{runtime}-import"
    folder.mkdir()
    out.mkdir()
    write = {"tflite": linear.save_tflite, "openvino": linear.save_openvino}[runtime]
    write(folder / ("net.tflite" if runtime == "tflite" else "net.xml"))
    model = str(next(path for path in folder.iterdir() if path.suffix in (".tflite", ".xml")))
    told = formats.bring_in(ModelRef(model), None, out, lambda fraction, text: None)
    return fashion.artifact(out, told.produced), out


@functools.cache
def _samples_of_linear() -> Path:
    folder = fashion.scratch() / "linear-samples"
    folder.mkdir()
    write_samples(folder, {"x": linear.RAW}, linear.LABELS, linear.PREPROCESS)
    return folder


def samples_for(work: Work) -> Path:
    return _samples_of_linear() if work.stage in OF_FILES else tiny.samples()


def job(work: Work, out: Path, told: list[tuple[float | None, str]] | None = None) -> StageJob:
    artifact, folder = work.parent()
    samples = samples_for(work)
    out.mkdir(parents=True)
    return StageJob(
        choice=work.choice,
        options=work.options,
        parent=artifact,
        parent_folder=folder,
        lineage={"import": folder},
        samples=dict.fromkeys(work.module.sample_roles(work.choice, work.options, artifact.precision), samples),
        target=HERE,
        out=out,
        progress=lambda fraction, text: None if told is None else told.append((fraction, text)),
        model="" if work.stage in OF_FILES else tiny.written(work.source),
        scratch=out.parent / f"{out.name}-scratch",
        threads=1,
    )


TOLD: dict[Work, list[tuple[float | None, str]]] = {}  # by progress
CHANGED: dict[Work, set[str]] = {}  # files that a stage was given and wrote to


@functools.cache
def made(work: Work, again: int = 0) -> fashion.Built:
    """What the stage makes; `again` is for a second time, in another folder."""
    missing = _missing(work)
    if missing:
        pytest.skip(missing)
    out = fashion.scratch() / f"stage-{work}-{again}" / "out"
    given = (work.parent()[1], samples_for(work))
    before = digests(*given).items()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converters' own imports
        produced = work.module.run(job(work, out, TOLD.setdefault(work, [])))
    CHANGED.setdefault(work, set()).update(path for path, _ in before ^ digests(*given).items())
    return fashion.artifact(out, produced), out


def _missing(work: Work) -> str | None:
    """What is not installed, or why the alternative is not for this model."""
    programs = getattr(compilers.find(work.choice), "PROGRAMS", ()) if work.stage == "compile" else ()
    missing = [name for name in programs if shutil.which(name) is None]
    missing += [tool for tool in work.module.tools(work.choice, work.options) if backends.version(tool) is None]
    if missing:
        return f"{missing[0]} is not installed"
    objection: str | None = work.module.objection(work.choice, work.options, work.parent()[0].precision)
    return objection


def digests(*folders: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def outputs_of(work: Work, built: fashion.Built, feeds: Mapping[str, Any]) -> list[Any]:
    """Of the runtime that it is made for, and of onnxruntime where it is made for none."""
    artifact, folder = built
    name = work.choice if work.stage in ("compile", *OF_FILES) else "onnxruntime"
    try:
        session = backends.find(name).load(folder / artifact.main, artifact.runtime, 1)
    except (MissingDependency, NoAccelerator) as error:
        pytest.skip(error.message)
    return restore(session.run(adapt(feeds, artifact.inputs)), artifact.outputs)


@pytest.mark.parametrize("work", KINDS, ids=str)
def test_the_options_are_a_frozen_model_that_comes_back_from_json(work: Work) -> None:
    options = work.options
    assert isinstance(options, Options)
    again = type(options)(**json.loads(json.dumps(options.model_dump(mode="json"))))
    assert again == options
    for name in type(options).model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(options, name, None)


@pytest.mark.parametrize("work", KINDS, ids=str)
def test_an_unknown_option_is_refused_by_its_name(work: Work) -> None:
    with pytest.raises(ValidationError, match="no_such_option"):
        type(work.options)(**work.given, no_such_option=1)
    if work.stage in stages.PLANNED:
        return
    asked = {work.choice: {**work.given, "no_such_option": 1}} if work.choice else {**work.given, "no_such_option": 1}
    text = f"model: m.onnx\nsteps:\n  - {json.dumps({work.stage: asked})}\n  - compile: onnxruntime\n"
    with pytest.raises(RecipeError, match="no_such_option") as caught:
        recipe.resolve(yaml.parse(text, "recipe.yaml"), base=Path(), name="r")
    assert any(problem.startswith("recipe.yaml:3") for problem in caught.value.problems)


@pytest.mark.parametrize("work", KINDS, ids=str)
def test_every_option_refuses_what_is_no_value_of_it_by_its_name(work: Work) -> None:
    for name in type(work.options).model_fields:
        with pytest.raises(ValidationError, match=name):
            type(work.options)(**{**work.given, name: {"no": ["such", "value"]}})


@pytest.mark.parametrize("work", KINDS, ids=str)
def test_it_says_what_a_plan_asks_of_it(work: Work) -> None:
    module, choice, options = work.module, work.choice, work.options
    assert module.VERSION >= 1
    for precision in ("fp32", "int8"):
        assert set(module.sample_roles(choice, options, precision)) <= set(recipe.ROLES)
        assert module.precision(choice, options, precision)
        objection = module.objection(choice, options, precision)
        assert objection is None or (objection and "\n" not in objection)
    assert all(isinstance(tool, str) and tool for tool in module.tools(choice, options))


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_it_keeps_the_signature_and_computes_in_what_it_said(work: Work) -> None:
    artifact, folder = made(work)
    parent = work.parent()[0]
    assert (folder / artifact.main).is_file()
    for now, before in ((artifact.inputs, parent.inputs), (artifact.outputs, parent.outputs)):
        assert [spec.name for spec in now] == [spec.name for spec in before]
        assert [len(spec.shape) for spec in now] == [len(spec.shape) for spec in before]
        assert [spec.dtype for spec in now] == [spec.dtype for spec in before]
    assert artifact.precision == work.module.precision(work.choice, work.options, parent.precision)


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_equal_input_gives_equal_bytes(work: Work) -> None:
    artifact, again = made(work)[0], made(work, again=1)[0]
    assert [(entry.path, entry.size_bytes) for entry in again.files] == [(e.path, e.size_bytes) for e in artifact.files]
    if work.choice not in NOT_EQUAL:
        assert again.files == artifact.files
        assert again.digest == artifact.digest


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_the_digest_is_that_of_the_content(work: Work) -> None:
    artifact, folder = made(work)
    files = sorted((entry.path, entry.sha256) for entry in artifact.files)
    assert [(str(folder / path), digest) for path, digest in files] == sorted(digests(folder).items())
    content = canonical_json([artifact.format, artifact.main, files, dict(artifact.runtime)])
    assert artifact.digest == hashlib.sha256(content.encode()).hexdigest()
    json.dumps(artifact.to_json(), allow_nan=False)


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_it_leaves_what_it_is_given_alone(work: Work) -> None:
    made(work)
    assert CHANGED[work] == set()


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_its_progress_is_a_share_or_unknown_with_words(work: Work) -> None:
    made(work)
    assert TOLD[work]
    assert all(text and (fraction is None or 0 <= fraction <= 1) for fraction, text in TOLD[work])


@pytest.mark.parametrize("work", WORKS, ids=str)
def test_what_it_makes_runs_and_gives_outputs_of_the_same_shape(work: Work) -> None:
    feeds = Samples(samples_for(work)).batch(0, 1)
    before = outputs_of(replace(work, choice="onnxruntime") if work.stage == "compile" else work, work.parent(), feeds)
    after = outputs_of(work, made(work), feeds)
    assert [value.shape for value in after] == [value.shape for value in before]
    assert all(np.isfinite(value).all() and value.any() for value in after)


def test_the_sources_are_the_same_network_with_and_without_its_program() -> None:
    for source in ("torch", "onnx"):
        folder = tiny.brought_in(source)[1]
        assert (folder / "model.pt2").is_file() == (source == "torch")
        found = onnxruntime.InferenceSession(folder / "model.onnx").run(None, {"image": tiny.images()})[0]
        np.testing.assert_allclose(found, tiny.outputs(), atol=1e-5)
