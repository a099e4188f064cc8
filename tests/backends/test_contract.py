"""What every backend promises of loading, of running and of refusing, on a model of two inputs and two outputs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import pytest
import targets
from conformance import WIDE, Subject, feeds_of_small, outputs_of_small
from onnx import TensorProto, helper

from edgeopt import backends
from edgeopt.artifact import TensorSpec
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, NoAccelerator, UnsupportedOperator
from edgeopt.samples import adapt
from edgeopt.stages import Produced
from edgeopt.stages import compile as stage

LEAK = WIDE * 4 * 1000 // 4  # bytes: a quarter of what one output a call adds up to


def feeds_for(subject: Subject, count: int = 1, seed: int = 0) -> dict[str, Any]:
    """Samples as the artifact takes them."""
    return adapt(feeds_of_small(count, seed), subject.compiled("small")[0].inputs)


def same(found: Any, wanted: Any) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_the_signature_is_that_of_the_artifact(subject: Subject) -> None:
    session, (artifact, _) = subject.loaded(), subject.compiled("small")
    assert (session.inputs, session.outputs) == (artifact.inputs, artifact.outputs)
    assert [(spec.name, np.dtype(spec.dtype).kind) for spec in session.inputs] == [("tokens", "i"), ("gain", "f")]
    assert [(spec.name, spec.dtype) for spec in session.outputs] == [("scores", "float32"), ("wide", "float32")]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_outputs_of_any_batch_that_the_model_takes(subject: Subject, count: int) -> None:
    session, wanted = subject.loaded(), outputs_of_small(feeds_of_small(count))
    fixed = session.inputs[0].shape[0]
    if isinstance(fixed, int) and fixed != count:
        with pytest.raises(InputError, match="tokens"):
            session.run(feeds_for(subject, count))
        return
    found = session.run(feeds_for(subject, count))
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-5, atol=1e-6)


def test_the_same_feeds_give_the_same_outputs_whatever_ran_between(subject: Subject) -> None:
    session, feeds = subject.loaded(), feeds_for(subject)
    first = session.run(feeds)
    other = session.run(feeds_for(subject, seed=1))
    assert not same(first, other)
    assert same(session.run(feeds), first)
    assert same(subject.loaded().run(feeds), first)


def test_outputs_are_copies(subject: Subject) -> None:
    session = subject.loaded()
    first = session.run(feeds_for(subject))
    before = {name: value.copy() for name, value in first.items()}
    session.run(feeds_for(subject, seed=1))
    assert same(first, before)
    first["scores"][:] = 0
    assert same(session.run(feeds_for(subject)), before)


def test_feeds_need_not_be_contiguous_nor_writable(subject: Subject) -> None:
    session, feeds = subject.loaded(), feeds_for(subject)
    wanted = session.run(feeds)
    apart = {name: np.repeat(value, 2, axis=1)[:, ::2] for name, value in feeds.items()}
    for value in apart.values():
        value.flags.writeable = False
    assert not apart["tokens"].flags.c_contiguous
    assert same(session.run(apart), wanted)
    bound = session.bind(apart)
    bound()
    assert same(bound.outputs(), wanted)


def test_a_bound_call_computes_what_run_does_of_what_it_was_filled_with(subject: Subject) -> None:
    session, feeds, other = subject.loaded(), feeds_for(subject), feeds_for(subject, seed=1)
    wanted, of_other = session.run(feeds), session.run(other)
    bound = session.bind(feeds)
    for _ in range(3):
        bound()
        assert same(bound.outputs(), wanted)
    bound.fill(other)
    bound()
    assert same(bound.outputs(), of_other)
    assert same(feeds, feeds_for(subject)), "the feeds were written to"
    assert same(session.run(feeds), wanted)


def test_two_sessions_take_turns(subject: Subject) -> None:
    one, two = subject.loaded(), subject.loaded()
    feeds = feeds_for(subject), feeds_for(subject, seed=1)
    wanted = one.run(feeds[0]), two.run(feeds[1])
    bound = one.bind(feeds[0])
    for _ in range(3):
        bound()
        assert same(two.run(feeds[1]), wanted[1])
        assert same(bound.outputs(), wanted[0])
    del one, bound
    assert same(two.run(feeds[1]), wanted[1])


WRONG = {
    "missing": lambda feeds: {"tokens": feeds["tokens"]},
    "of another shape": lambda feeds: {**feeds, "gain": np.zeros((1, 2), np.float32)},
    "of another rank": lambda feeds: {**feeds, "gain": np.zeros(1, np.float32)},
    "of another dtype": lambda feeds: {**feeds, "gain": feeds["gain"].astype(np.float64)},
    "unknown": lambda feeds: {**feeds, "again": feeds["gain"]},
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_feeds_are_refused_by_name_and_hurt_nothing(subject: Subject, wrong: str) -> None:
    session, feeds = subject.loaded(), feeds_for(subject)
    before = session.run(feeds)
    for call in (session.run, session.bind):
        with pytest.raises(InputError, match=r"gain|again"):
            call(WRONG[wrong](feeds))
    assert same(session.run(feeds), before)


def test_loading_leaves_nothing_in_the_temporary_folder(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject.compiled("small")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    session = subject.loaded()
    assert not list(tmp_path.iterdir())
    assert session.run(feeds_for(subject))


def grown(subject: Subject, folder: Path, **more: Any) -> int:
    """Bytes that a process has gained after 1,000 inferences."""
    subject.loaded()
    artifact, made = subject.compiled("small")
    np.savez(folder / "feeds.npz", **feeds_for(subject))
    told = {
        "backend": subject.name,
        "main": str(made / artifact.main),
        "runtime": dict(artifact.runtime),
        "feeds": str(folder / "feeds.npz"),
        **more,
    }
    command = [sys.executable, str(Path(__file__).with_name("leak.py")), json.dumps(told)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return int(ran.stdout.splitlines()[-1])


def test_nothing_leaks_in_a_thousand_inferences(subject: Subject, tmp_path: Path) -> None:
    assert grown(subject, tmp_path) < LEAK


def test_one_output_a_call_that_leaked_would_be_seen(tmp_path: Path) -> None:
    assert grown(Subject("onnxruntime"), tmp_path, keep=True) > 2 * LEAK


def test_a_free_dimension_takes_any_size_and_the_others_their_own() -> None:
    free = (TensorSpec("x", ("batch", 3), "float32"),)
    backends.check_feeds({"x": np.zeros((0, 3), np.float32)}, free)
    with pytest.raises(InputError, match=r"x: float32\[batch, 3\] does not take float32\[2, 4\]"):
        backends.check_feeds({"x": np.zeros((2, 4), np.float32)}, free)


DAMAGED = {
    "empty": lambda whole: b"",
    "text": lambda whole: b"not a model at all\n" * 99,
    "truncated": lambda whole: whole[: len(whole) // 2],
    "of another format": lambda whole: (fashion.SAMPLE / "weights.safetensors").read_bytes(),
    "missing": lambda whole: None,
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_corrupt_file_is_told_by_its_name(subject: Subject, kind: str, tmp_path: Path) -> None:
    """Where what it runs on is missing that may be told first: never is there a session."""
    main, runtime = subject.a_file()
    shutil.copytree(main.parent, tmp_path / "copy")
    damaged = tmp_path / "copy" / main.name
    content = DAMAGED[kind](main.read_bytes())
    if content is None:
        damaged.unlink()
    else:
        damaged.write_bytes(content)
    missing = targets.lacks(subject.name)
    allowed = (CorruptArtifact,) if missing is None else (CorruptArtifact, type(missing))
    with pytest.raises(allowed) as caught:
        subject.backend.load(damaged, runtime, 1)
    assert main.name in caught.value.message or not isinstance(caught.value, CorruptArtifact)


def swirl(folder: Path) -> fashion.Built:
    """A model of an operator that nobody has."""
    folder.mkdir()
    spec = TensorSpec("x", (1, 4), "float32")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    node = helper.make_node("Swirl", ["x"], ["y"], domain="com.example")
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / "model.onnx")
    made = Produced("onnx", "model.onnx", (spec,), (TensorSpec("y", (1, 4), "float32"),), "fp32")
    return fashion.artifact(folder, made), folder


def test_an_operator_that_is_not_there_is_named(subject: Subject, tmp_path: Path) -> None:
    if why := targets.lacks_for_compiling(subject.name, **dict(subject.options)):
        pytest.skip(why)
    source = swirl(tmp_path / "source")
    with pytest.raises(UnsupportedOperator, match="Swirl"):
        fashion.run_stage(
            stage, subject.name, source, tmp_path / "out", lineage={"import": source[1]}, **dict(subject.options)
        )


def test_a_setting_that_it_does_not_know_is_refused(subject: Subject) -> None:
    main, runtime = subject.a_file()
    with pytest.raises(InputError, match="no_such_setting"):
        subject.backend.load(main, {**runtime, "no_such_setting": 1}, 1)


def test_it_runs_here_or_tells_what_is_missing_and_gives_no_session(subject: Subject) -> None:
    missing = targets.lacks(subject.name)
    if missing is None:
        assert subject.loaded().outputs
        return
    assert isinstance(missing, (MissingDependency, NoAccelerator))
    assert missing.remedy and len(missing.lines()) <= 5
    main, runtime = subject.a_file()
    with pytest.raises(type(missing)) as caught:
        subject.backend.load(main, runtime, 1)
    assert caught.value.remedy
