"""The stage that trains a network after a teacher, on the Fashion-MNIST sample with few samples and epochs."""

import functools
import json
import os
import shutil
import signal
import time
from dataclasses import replace

import command
import fashion
import numpy as np
import onnxruntime
import pytest
import torch

from edgeopt import modules, plan, recipe, yaml
from edgeopt.errors import InputError, StageError
from edgeopt.samples import write_samples
from edgeopt.stages import StageJob, distill, prune
from edgeopt.target import Target
from edgeopt.training import loop
from edgeopt.training.features import Features, attention_map

torch.set_num_threads(1)  # fastest for so little work; and part of what a checkpoint is gone on with
FACTORY = f"{fashion.SAMPLE / 'model.py'}:build"
WEIGHTS = str(fashion.SAMPLE / "weights.safetensors")
PAIR = ("stages.[35]",)
FEW = {"epochs": 2, "batch": 32, "learning_rate": 1e-3}


@functools.cache
def training(labelled=True, count=192):
    """A folder of training samples: test images beyond those that `fashion.images_and_labels` gives."""
    folder = fashion.scratch() / f"training-{labelled}-{count}"
    folder.mkdir()
    with np.load(fashion.SAMPLE / "test.npz", allow_pickle=False) as arrays:
        chosen = slice(5000, 5000 + count)
        labels = arrays["labels"][chosen].astype(np.int64) if labelled else None
        write_samples(folder, {"image": arrays["image"][chosen]}, labels, fashion.PREPROCESS)
    return folder


@functools.cache
def imported():
    from edgeopt.formats import ModelRef, importer

    folder = fashion.scratch() / "imported"
    folder.mkdir()
    made = importer(FACTORY).to_onnx(ModelRef(FACTORY, WEIGHTS), training(), folder, lambda fraction, text: None)
    return fashion.artifact(folder, made.produced), folder


def job(stage, parent, out, samples, **options):
    out.mkdir(parents=True)
    return StageJob(
        choice="",
        options=stage.choices()[""](**options),
        parent=parent[0],
        parent_folder=parent[1],
        lineage={"import": imported()[1]},
        samples={"train": samples, "calibration": samples},
        target=Target("host"),
        out=out,
        progress=lambda fraction, text: None,
        model=FACTORY,
        weights=WEIGHTS,
        scratch=out.parent / f"{out.name}-scratch",
        threads=1,
    )


@functools.cache
def pruned():
    folder = fashion.scratch() / "pruned"
    made = prune.run(job(prune, imported(), folder, training(), channels="50 %"))
    return fashion.artifact(folder, made), folder


def distilled(out, samples=None, parent=None, **options):
    made = distill.run(job(distill, parent or pruned(), out, samples or training(), **{**FEW, **options}))
    return fashion.artifact(out, made), out


@pytest.fixture(scope="module")
def after(tmp_path_factory):
    return distilled(tmp_path_factory.mktemp("distilled") / "out")


def test_distilling_recovers_what_pruning_cost(after):
    details = after[0].details
    assert details["held_out"]["metric"] == "top1"
    assert details["held_out"]["loss_after"] < 0.8 * details["held_out"]["loss_before"]
    accuracies = []
    for _, folder in (pruned(), after):
        session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        images, labels = fashion.images_and_labels()
        accuracies.append((session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1) == labels).mean())
    assert accuracies[1] > accuracies[0]


def test_the_signature_stays_and_the_module_can_be_made_again(after, tmp_path):
    artifact, folder = after
    assert (artifact.inputs, artifact.outputs, artifact.precision) == (
        pruned()[0].inputs,
        pruned()[0].outputs,
        pruned()[0].precision,
    )
    again = job(distill, after, tmp_path / "out", training())
    assert [entry["stage"] for entry in modules.history(again)] == ["prune", "distill"]
    images, _ = fashion.images_and_labels(8)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    with torch.no_grad():
        found = modules.load(again)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, session.run(None, {session.get_inputs()[0].name: images})[0], atol=1e-4)


def test_details_tell_what_was_done(after):
    details = after[0].details
    assert (details["epochs"], details["best_epoch"], details["training_samples"]) == (2, 2, 182)
    assert details["teacher"]["model"] == "original" and details["teacher"]["backend"].startswith("openvino")
    assert details["held_out"]["samples"] == 10 and details["images_per_s"] > 0
    json.dumps(details)


def test_it_goes_on_from_a_checkpoint_to_the_same_bytes(after, tmp_path):
    class Killed(BaseException):
        pass

    def killed(fraction, text):
        if text.startswith("epoch 2"):
            raise Killed

    asked = job(distill, pruned(), tmp_path / "out", training(), **FEW)
    with pytest.raises(Killed):
        distill.run(replace(asked, progress=killed))
    assert list(asked.scratch.iterdir())
    shutil.rmtree(asked.out)
    asked.out.mkdir()
    made = fashion.artifact(asked.out, distill.run(asked))
    assert made.details["resumed_after_epoch"] == 1
    assert made.digest == after[0].digest


def test_without_labels_the_teacher_alone_is_followed_and_told(tmp_path):
    artifact, _ = distilled(tmp_path / "out", training(labelled=False), epochs=1)
    assert artifact.details["held_out"]["metric"] == "agreement"
    assert artifact.details["training_notes"] == ["the training data has no labels: the teacher alone is followed"]


def test_labels_that_are_required_are_asked_for(tmp_path):
    with pytest.raises(InputError, match="the recipe says `labels: required`"):
        distilled(tmp_path / "out", training(labelled=False), labels="required")


def test_samples_may_be_fewer(tmp_path):
    artifact, _ = distilled(tmp_path / "out", samples=None, epochs=1, augment="flip_shift")
    assert artifact.details["computed"]["teacher_outputs"] == "computed in every step"
    fewer = distill.choices()[""](samples=64, **{**FEW, "epochs": 1})
    asked = replace(job(distill, pruned(), tmp_path / "fewer", training()), options=fewer)
    assert distill.run(asked).details["training_samples"] == 61


def test_a_teacher_from_a_file(tmp_path):
    artifact, _ = distilled(tmp_path / "out", epochs=1, teacher=str(fashion.SAMPLE / "model.onnx"))
    assert artifact.details["teacher"]["model"] == "model.onnx"
    assert artifact.details["held_out"]["loss_after"] < artifact.details["held_out"]["loss_before"]


def test_a_teacher_with_other_outputs_is_refused_with_both(tmp_path):
    (tmp_path / "other.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 7))\n"
    )
    with pytest.raises(InputError) as told:
        distilled(tmp_path / "out", teacher=f"{tmp_path / 'other.py'}:build")
    assert "the teacher has other outputs than the model" in str(told.value)
    assert "[batch, 10]" in str(told.value) and "[batch, 7]" in str(told.value)


def test_a_diverging_training_is_a_stage_error(tmp_path):
    with pytest.raises(StageError, match=r"diverged in epoch \d"):
        distilled(tmp_path / "out", learning_rate=1e9, precision="fp32")


OWN = """
import torch

def train(model, teacher, data):
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    for image, label in torch.utils.data.DataLoader(data, batch_size=32, shuffle=True):
        optimizer.zero_grad()
        (model(image) - teacher(image)).square().mean().backward()
        optimizer.step()
    return model

def keeping(model, teacher, data, checkpoints):
    before = checkpoints / "epochs"
    before.write_text((before.read_text() if before.exists() else "") + "1")
    with torch.no_grad():
        model.fc.bias.fill_(len(before.read_text()))
    return model

def other(model, teacher, data):
    return torch.nn.Linear(2, 2)

def nothing(model, teacher, data):
    pass

def raising(model, teacher, data):
    raise KeyError("rate")
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_loop.py").write_text(OWN)
    return str(tmp_path / "own_loop.py")


def test_a_loop_of_the_users_own(own, tmp_path):
    made = distill.run(job(distill, pruned(), tmp_path / "out", training(), finetune=f"{own}:train"))
    assert made.details["held_out"]["loss_after"] < made.details["held_out"]["loss_before"]
    assert made.details["training_samples"] == 182
    assert [path.name for path in made.sources][:1] == ["own_loop.py"]


def test_a_loop_of_the_users_own_finds_its_checkpoints_again(own, tmp_path):
    asked = job(distill, pruned(), tmp_path / "out", training(), finetune=f"{own}:keeping")
    for times in (1, 2):  # as after a kill: what a worker leaves there outlives it until the step is done
        made = fashion.artifact(asked.out, distill.run(asked))
        assert (modules.load(replace(asked, parent=made, parent_folder=asked.out)).fc.bias == times).all()


def test_features_inside_come_closer_to_the_teachers(tmp_path):
    def distance(parent, name):
        module = modules.load(job(distill, parent, tmp_path / name, training()))
        features = Features(
            modules.source(job(distill, parent, tmp_path / f"{name}s", training())), PAIR, 1, rough=False
        )
        features.place(module, loop.Placement("cpu"))
        images, _ = fashion.images_and_labels(64)
        with torch.no_grad():
            features.teacher([images])
            module(torch.from_numpy(images))
            return float(features.loss())

    made = distilled(tmp_path / "out", features=PAIR, beta=10.0)
    assert made[0].details["features"] == ["stages.3", "stages.5"]
    assert made[0].details["teacher"]["backend"] == "torch, for its features"
    assert distance(made, "after") < distance(pruned(), "before")


def test_an_attention_map_knows_nothing_of_the_number_of_channels():
    maps = torch.rand(2, 1, 5, 5)
    few, many = (attention_map(None, maps.expand(2, count, 5, 5)) for count in (3, 8))
    torch.testing.assert_close(few, many)
    torch.testing.assert_close(few.norm(dim=1), torch.ones(2))
    assert attention_map(None, torch.rand(2, 10)) is None


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("stage",), "features: no layer is named like 'stage'"),
        (("fc",), "the layer fc is not called, or gives no tensor with channels and places"),
        (("(",), r"features: '\(' is not a regular expression"),
    ],
)
def test_features_that_are_not_there_are_named(tmp_path, patterns, message):
    with pytest.raises(InputError, match=message):
        distilled(tmp_path / "out", features=patterns)


@pytest.mark.parametrize("other", [{"finetune": "a.py:b"}, {"teacher": "a.onnx"}])
def test_features_are_of_the_original_and_of_our_own_training(other):
    with pytest.raises(ValueError, match="features are"):
        distill.choices()[""](features=PAIR, **other)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("other", "returns Linear, not the ResidualNet it got"),
        ("nothing", "returns NoneType, not the ResidualNet it got"),
        ("raising", r"own_loop.py:\d+: the training function .* raised KeyError"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_loop_that_goes_wrong_is_named(own, tmp_path, function, message):
    with pytest.raises(InputError, match=message):
        distill.run(job(distill, pruned(), tmp_path / "out", training(), finetune=f"{own}:{function}"))


RECIPE = """
model: model.onnx
data: {train: train.npz}
steps:
  - prune: {channels: [0 %, 50 %]}
  - distill: OPTIONS
  - quantize: [none, int8]
  - compile: [onnxruntime]
"""


def planned(tmp_path, options):
    document = yaml.parse(RECIPE.replace("OPTIONS", options), "recipe.yaml")
    return plan.make(recipe.resolve(document, base=tmp_path, name="recipe"))


def test_recovery_is_passed_through_where_nothing_was_pruned(tmp_path):
    made = planned(tmp_path, "{epochs: 3}")
    assert {c.id for c in made.candidates} == {
        "onnxruntime",
        "int8-onnxruntime",
        "prune50-distill3-onnxruntime",
        "prune50-distill3-int8-onnxruntime",
    }


def test_recovery_is_done_everywhere_where_the_recipe_asks_for_it(tmp_path):
    made = planned(tmp_path, "{epochs: 3, always: true}")
    assert sum(step.stage == "distill" for step in made.steps) == 2


def test_distilling_alone_is_what_a_recipe_without_pruning_asks_for(tmp_path):
    text = RECIPE.replace("  - prune: {channels: [0 %, 50 %]}\n", "").replace("OPTIONS", "{epochs: 3}")
    made = plan.make(recipe.resolve(yaml.parse(text, "recipe.yaml"), base=tmp_path, name="recipe"))
    assert [step.stage for step in made.steps].count("distill") == 1


def test_it_comes_before_quantizing():
    assert "before quantize" in str(distill.objection("", distill.choices()[""](), "int8"))


def test_a_teachers_path_is_relative_to_the_recipe_and_its_content_is_in_the_key(tmp_path):
    made = planned(tmp_path, "{teacher: teacher.onnx}")
    step = next(step for step in made.steps if step.stage == "distill")
    assert step.options.teacher == str(tmp_path.resolve() / "teacher.onnx")
    keys = []
    for content in (b"one", b"two"):
        (tmp_path / "teacher.onnx").write_bytes(content)
        keys.append(plan.step_inputs(step, pruned()[0], {"train": ""}, Target("host"), {})["files"])
    assert keys[0] != keys[1]


THROUGH = """
model: model.onnx
data: {train: calibration.npz, validation: validation.npz}
steps:
  - prune: {channels: 50 %, round_to: 4}
  - distill: {epochs: 20, batch: 16, patience: 0}
  - compile: onnxruntime
measure: {rounds: 3, block: 5 ms}
"""


def test_a_run_that_was_killed_goes_on_from_the_last_epoch_to_the_same_artifact(tmp_path):
    folder = command.project(tmp_path / "project", THROUGH)
    whole = command.digests(command.convert(folder, tmp_path / "whole"))
    cache = tmp_path / "killed"
    process = command.start(folder, cache)
    while process.poll() is None and not list(cache.glob("checkpoints/*/training.pt")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(cache.glob("checkpoints/*/training.pt")), "it ended before it was killed"
    document = command.convert(folder, cache)
    assert command.digests(document) == whole
    details = [json.loads(path.read_text())["meta"] for path in cache.glob("entries/*/entry.json")]
    resumed = [meta["artifact"]["details"].get("resumed_after_epoch") for meta in details if "artifact" in meta]
    assert max(filter(None, resumed)) >= 1
    assert not list(cache.glob("checkpoints/*"))


DIVERGING = """
model: model.onnx
data: {train: calibration.npz, validation: validation.npz}
steps:
  - distill: [{epochs: 1, learning_rate: 1e9, precision: fp32}, {epochs: 1, batch: 16}]
  - compile: onnxruntime
measure: {rounds: 3, block: 5 ms}
"""


def test_a_diverging_training_costs_its_candidate_alone(tmp_path):
    document = command.convert(command.project(tmp_path / "project", DIVERGING), tmp_path / "cache")
    diverged, other = document["candidates"][1:]
    assert (diverged["status"], other["status"] in ("inside", "chosen")) == ("failed", True)
    assert diverged["reasons"][0].startswith("the training diverged in epoch 1: loss")
    assert diverged["reasons"][0].endswith("Set a lower learning rate than 1e+09.")
