"""Levels: a model and samples, and no recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeopt import backends, catalog, plan, request
from edgeopt.data import prepare
from edgeopt.errors import InputError, RecipeError
from edgeopt.plan import Plan
from edgeopt.recipe import DataSource, Recipe
from edgeopt.samples import Preprocess, Samples

LEVELS = [entry.name for entry in catalog.levels()]
TRAINING = ("distillation", "full")


class Quiet:
    def progress(self, fraction: float | None, text: str) -> None:
        pass


def read(level: str, **flags: Any) -> Recipe:
    given = {"target": None, "data": "samples.npz", "weights": None, "budget": (), **flags}
    return request.read_recipe("model.onnx", level=level, base=Path("/base"), **given)


def planned(level: str, **flags: Any) -> Plan:
    return plan.make(read(level, **flags))


def prepared(source: DataSource, folder: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any] | None]:
    """The samples of a role, and their labels."""
    folder.mkdir()
    drawn = {"samples": source.samples, "seed": source.seed, "part": source.part}
    prepare({"location": source.location, **drawn, "preprocess": Preprocess().to_json(), "out": str(folder)}, Quiet())  # type: ignore[arg-type]
    samples = Samples(folder)
    return np.array(samples.raw("x")), samples.labels()


@pytest.mark.parametrize("level", LEVELS)
def test_each_level_is_a_plan_for_a_model_and_samples(level: str) -> None:
    made = planned(level)
    assert made.candidates
    assert made.baseline == "onnxruntime"
    assert {role: source.location for role, source in made.data.items()}["validation"] == "/base/samples.npz"


def test_what_each_level_does_to_a_network() -> None:
    does = {level: {step.stage for step in planned(level).steps} - {"compile"} for level in LEVELS}
    assert does == {
        "none": set(),
        "compilation": set(),
        "quantization": {"quantize"},
        "pruning": {"prune"},
        "distillation": {"prune", "distill"},
        "full": {"prune", "distill", "quantize"},
    }


def test_full_tries_bfloat16_and_int8_on_pruned_networks_and_on_the_whole_one() -> None:
    names = {candidate.id for candidate in planned("full").candidates}
    for before in ("", "prune-auto-distill5-"):
        assert {f"{before}openvino-bf16", f"{before}int8-openvino", f"{before}int8-tflite"} <= names


@pytest.mark.parametrize("level", LEVELS)
def test_no_sample_that_trains_or_calibrates_a_training_validates_it(level: str, tmp_path: Path) -> None:
    count = 50
    np.savez(tmp_path / "all.npz", x=np.arange(count, dtype=np.float32), labels=np.arange(count))
    data = read(level, data=str(tmp_path / "all.npz")).data
    parts = {role: prepared(source, tmp_path / role) for role, source in data.items()}
    if level not in TRAINING:
        assert len(parts["validation"][0]) == count
        return
    train, validation, calibration = (set(parts[role][0].tolist()) for role in ("train", "validation", "calibration"))
    assert len(train) == 40
    assert len(validation) == 10
    assert not train & validation
    assert calibration <= train
    assert all((values == labels).all() for values, labels in parts.values() if labels is not None)
    assert train != set(range(40)), "a file that is sorted by class has all classes in both parts"


def test_too_few_samples_to_be_split_are_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.zeros((1, 3), np.float32))
    source = read("full", data=str(tmp_path / "one.npz")).data["validation"]
    with pytest.raises(InputError, match="1 samples are too few to be split") as caught:
        prepared(source, tmp_path / "out")
    assert caught.value.remedy


@pytest.mark.parametrize(("distribution", "left"), [("torch-pruning", {"quantize"}), ("nncf", {"prune", "distill"})])
def test_what_is_not_installed_is_left_out_with_the_reason(
    distribution: str, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backends.version
    monkeypatch.setattr(backends, "version", lambda name: None if name == distribution else real(name))
    made = planned("full")
    plan.without_missing_tools(made)
    assert {step.stage for step in made.steps} - {"compile"} == left
    assert f"{distribution} is not installed" in made.left_out.values()


def test_a_recipe_that_names_a_step_needs_its_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: a.onnx\ndata: {calibration: c.npz}\nsteps: [prune: {channels: 50 %}]\n")
    real = backends.version
    monkeypatch.setattr(backends, "version", lambda name: None if name == "torch-pruning" else real(name))
    flags = dict.fromkeys(("level", "target", "data", "weights"))
    found = request.read_recipe(str(recipe), **flags, budget=(), base=tmp_path)
    with pytest.raises(Exception, match="torch-pruning, which is not installed"):
        plan.without_missing_tools(plan.make(found))


@pytest.mark.parametrize(
    ("flag", "message"), [("0 s", "time is above zero"), ("10", "has no unit"), ("soon", "is not a time")]
)
def test_a_time_limit_is_a_time_above_zero(flag: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"--time: .*{message}"):
        read("full", time=flag)


def test_a_time_limit_is_told_as_it_was_written() -> None:
    found = read("full", time="10m")
    assert (found.seconds, found.time) == (600.0, "--time 10m")
