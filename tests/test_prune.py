"""Pruning: what leaves, what stays whole and why, and that the result goes on as any other model does."""

from __future__ import annotations

import functools
import json
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import command
import fashion
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from edgeopt import modules, plan, yaml
from edgeopt.artifact import Artifact
from edgeopt.errors import CorruptArtifact, RecipeError, StageError
from edgeopt.plan import Plan
from edgeopt.pruning import channels, recalibration
from edgeopt.pruning.channels import Call, Prunable, Ranking
from edgeopt.recipe import resolve
from edgeopt.samples import Samples, write_samples
from edgeopt.stages import StageJob, compile, prune, quantize
from edgeopt.store import key_of

pytest.importorskip("torch_pruning")
pytest.importorskip("onnxslim")

TORCH = (f"{fashion.SAMPLE}/model.py:build", f"{fashion.SAMPLE}/weights.safetensors")
ONNX = (f"{fashion.SAMPLE}/model.onnx", None)
PARAMETERS, MACS = 694_922, 80_508_672


def job(source: Any, out: Path, parent: fashion.Built | None = None, **options: Any) -> StageJob:
    artifact, folder = parent or fashion.source()
    out.mkdir(parents=True)
    return StageJob(
        choice="",
        options=prune.PruneOptions(**options) if options else None,
        parent=artifact,
        parent_folder=folder,
        lineage={"import": fashion.source()[1]},
        samples={"calibration": labelled()},
        target=fashion.VNNI,
        out=out,
        progress=lambda fraction, text: None,
        model=source[0],
        weights=source[1],
    )


@functools.cache
def labelled() -> Path:
    """150 test images with labels that `top1` does not look at."""
    folder = fashion.scratch() / "labelled"
    folder.mkdir()
    with np.load(fashion.SAMPLE / "test.npz", allow_pickle=False) as arrays:
        write_samples(folder, {"image": arrays["image"][-150:]}, arrays["labels"][-150:], fashion.PREPROCESS)
    return folder


_built: dict[Any, fashion.Built] = {}
TOLD: list[str] = []


def pruned(source: Any = TORCH, **options: Any) -> fashion.Built:
    """The sample pruned by the stage, once for equal arguments."""
    options = options or {"channels": "50 %"}
    key = (source, *sorted(options.items()))
    if key not in _built:
        out = fashion.scratch() / f"pruned-{len(_built)}"
        work = replace(job(source, out, **options), progress=lambda fraction, text: TOLD.append(text))
        _built[key] = (fashion.artifact(out, prune.run(work)), out)
    return _built[key]


def scores(folder: Path, images: Any) -> Any:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


# --- on the shipped sample


def test_half_the_channels_leave_a_quarter_of_everything() -> None:
    artifact, _ = pruned()
    assert artifact.details["macs"] == pytest.approx(MACS / 4, rel=0.01)
    assert artifact.details["parameters"] == pytest.approx(PARAMETERS / 4, rel=0.01)
    assert artifact.details["before"]["macs"] == MACS
    assert artifact.details["channels"]["stages.5.conv2"] == [128, 64]


def test_the_output_layer_stays_whole() -> None:
    details = pruned()[0].details
    assert details["channels"]["fc"] == [10, 10]
    assert details["not_pruned"] == {"fc": "it makes the model's output"}


@pytest.mark.parametrize(("source", "options"), [(TORCH, {}), (ONNX, {"speedup": "3x"})], ids=["torch", "onnx"])
def test_the_module_made_again_computes_what_the_onnx_does(source: Any, options: Any, tmp_path: Path) -> None:
    parent = pruned(source, **options)
    module = modules.load(job(source, tmp_path / "next", parent))
    images, _ = fashion.images_and_labels(50)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(scores(parent[1], images), expected, atol=1e-4)


def test_pruning_goes_on_from_what_was_pruned_to_a_share_of_the_original(tmp_path: Path) -> None:
    out = tmp_path / "twice"
    produced = prune.run(job(TORCH, out, pruned(), channels="75 %"))
    twice = (fashion.artifact(out, produced), out)
    module = modules.load(job(TORCH, tmp_path / "next", twice))
    assert module.stages[5].conv2.weight.shape == (32, 32, 3, 3)
    assert [entry["stage"] for entry in modules.history(job(TORCH, tmp_path / "last", twice))] == ["prune", "prune"]


@pytest.mark.parametrize(("source", "least"), [(TORCH, 0.85), (ONNX, 0.75)], ids=["torch", "onnx"])
def test_recalibration_restores_a_quarter_pruned_network_without_training(
    source: Any, least: float, tmp_path: Path
) -> None:
    module = modules.load(job(source, tmp_path / "out"))
    images, labels = map(torch.from_numpy, map(np.array, fashion.images_and_labels(400)))
    seen = torch.from_numpy(Samples(labelled()).batch(0, 150)["image"])

    def top1() -> float:
        with torch.no_grad():
            return float((module(images).argmax(1) == labels).float().mean())

    def batches() -> Any:
        return [lambda m, at=at: m(seen[at : at + 15]) for at in range(0, 150, 15)]

    prunable = Prunable(module, Call([seen[:2]], {}), (), 8)
    wanted = recalibration.moments(module, prunable.widths(), batches)
    done = prunable.prune(0.25, Ranking("l2", "local", 8, 0, lambda module: None))
    without = top1()
    if recalibration.has_batch_norm(module):
        recalibration.batch_norms(module, batches)
    else:
        recalibration.restore(module, wanted, done.kept, batches)
    assert top1() > least
    assert top1() - without > 0.3


def test_what_was_recalibrated_is_told() -> None:
    assert pruned()[0].details["recalibrated"] == "15 batch norms"
    assert pruned(ONNX, speedup="3x")[0].details["recalibrated"] == "16 layers, as there are no batch norms"


def test_what_has_left_already_is_not_pruned_again(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nothing was pruned: 50 % of the channels, less what has left before,"):
        prune.run(job(TORCH, tmp_path / "again", pruned(), channels="50 %"))


def test_int8_and_compiling_go_on_from_it() -> None:
    folder = fashion.scratch() / "after-prune"
    int8 = fashion.run_stage(quantize, "int8", pruned(), folder / "int8", bias_correction="fast")
    assert int8[0].details["quantized_operators"] > 10
    images, _ = fashion.images_and_labels(200)
    assert (scores(int8[1], images).argmax(1) == scores(pruned()[1], images).argmax(1)).mean() > 0.8
    compiled = fashion.run_stage(compile, "onnxruntime", int8, folder / "compiled")
    assert compiled[0].precision == "int8"
    assert compiled[0].size_bytes < 0.1 * PARAMETERS * 4


def test_a_speedup_is_reached_by_multiply_accumulates() -> None:
    details = pruned(ONNX, speedup="3x")[0].details
    assert 3 <= MACS / details["macs"] < 3.6
    assert 0.3 < details["fraction"] < 0.5


def test_progress_says_what_is_done() -> None:
    pruned()
    assert {"pruning: step 1 of 1", "recalibrating what the layers see"} <= set(TOLD)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    artifact, folder = pruned()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / modules.STRUCTURE).write_text(json.dumps({"schema": 1, "history": []}))
    with pytest.raises(CorruptArtifact, match="does not fit the model"):
        modules.load(job(TORCH, tmp_path / "next", (artifact, copy)))


def test_a_stage_that_keeps_no_module_cannot_be_gone_on_from(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="keeps no torch module"):
        modules.load(job(TORCH, tmp_path / "next", (fashion.source()[0], tmp_path)))


# --- on small modules


class Residual(nn.Module):
    """Two convolutions whose outputs are added, a depthwise one, and a head."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1)
        self.left = nn.Conv2d(width, width, 3, 1, 1)
        self.depth = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.wide = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.depth(x + self.left(x)))
        return self.head(torch.relu(self.wide(x)).mean((2, 3)))


class FixedReshape(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 2, 1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(torch.relu(self.first(x))).view(-1, 32 * 16))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(1, 32, 3, 2, 1)
        self.norm, self.c = nn.BatchNorm2d(48), nn.Conv2d(48, 32, 3, 2, 1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.norm(torch.cat([self.a(x), self.b(x)], 1))).flatten(1))


class TwoOutputs(nn.Module):
    """One output is what the other is made from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.features, self.head = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = torch.relu(self.features(torch.relu(self.first(x))))
        return {"features": features, "scores": torch.sigmoid(self.head(features))}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv1d(16, 64, 3), nn.LSTM(64, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.relu(self.conv(x[:, 0])).transpose(1, 2))[0][:, -1])


class Scaled(nn.Module):
    """Channels are multiplied with a constant of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 32, 3), nn.Linear(32, 10)
        self.register_buffer("scale", torch.rand(1, 32, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) * self.scale).mean((2, 3)))


def smaller(
    module: nn.Module, fraction: float = 0.5, round_to: int = 8, ignore: tuple[str, ...] = (), **ranking: Any
) -> tuple[dict[str, int], dict[str, str], Callable[[], Any]]:
    """(widths, not pruned, a call) of a module after pruning."""
    call = Call([torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))], {})
    module.eval()
    how = {"importance": "l2", "scope": "local", "seed": 0, "gradients": lambda m: call(m).square().sum().backward()}
    with channels.constants_traced(module):
        prunable = Prunable(module, call, ignore, round_to)
        before = prunable.widths()
        prunable.prune(fraction, Ranking(round_to=round_to, **{**how, **ranking}))
    return prunable.widths(), prunable.explain(before), lambda: call(module)


def test_what_is_added_loses_the_same_channels() -> None:
    widths, _, call = smaller(Residual())
    assert widths == {"stem": 16, "left": 16, "depth": 16, "wide": 32, "head": 10}
    assert call().shape == (2, 10)


@pytest.mark.parametrize(("fraction", "round_to", "left"), [(0.3, 8, 24), (0.3, 16, 16), (0.3, 1, 22), (0.9, 8, 8)])
def test_channels_are_rounded_to_the_nearest_multiple(fraction: float, round_to: int, left: int) -> None:
    assert smaller(Residual(), fraction, round_to)[0]["stem"] == left


def test_ignored_layers_and_what_is_tied_to_them_stay_whole() -> None:
    widths, reasons, _ = smaller(Residual(), ignore=("le.*",))
    assert widths == {"stem": 32, "left": 32, "depth": 32, "wide": 32, "head": 10}
    assert reasons["left"] == "left out by ignore: le.*"
    assert reasons["stem"] == "tied to left: left out by ignore: le.*"


def test_ignoring_no_layer_is_an_error_that_names_some() -> None:
    with pytest.raises(StageError, match="no layer is named like 'conv9'") as caught:
        smaller(Residual(), ignore=("conv9",))
    assert "stem" in str(caught.value.remedy)


def test_a_group_that_the_model_does_not_stand_stays_whole() -> None:
    widths, reasons, call = smaller(FixedReshape())
    assert (widths["first"], widths["second"]) == (16, 32)
    assert "does not run with fewer channels" in reasons["second"]
    assert call().shape == (2, 10)


def test_trying_a_group_leaves_no_trace() -> None:
    widths, _, call = smaller(Concatenated())
    assert widths == {"a": 8, "b": 16, "c": 16, "head": 10}
    assert call().shape == (2, 10)


def test_trying_a_group_leaves_no_trace_in_recurrent_layers() -> None:
    module = Recurrent().eval()
    x = torch.randn(2, 1, 16, 16)
    expected = module(x)
    Prunable(module, Call([x], {}), (), 8)
    torch.testing.assert_close(module(x), expected)


def test_every_output_counts() -> None:
    widths, reasons, _ = smaller(TwoOutputs())
    assert widths == {"first": 16, "features": 32, "head": 16}
    assert reasons == dict.fromkeys(("features", "head"), "it makes the model's output")


def test_a_constant_loses_its_channels_too() -> None:
    module = Scaled()
    widths, _, call = smaller(module)
    assert widths["conv"] == 16
    assert dict(module.named_buffers())["scale"].shape == (1, 16, 1, 1)
    assert call().shape == (2, 10)


def test_the_weakest_channels_leave() -> None:
    module = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 196, 4))
    with torch.no_grad():
        module[0].weight[::2] = 0
    strong = module[0].weight[1::2].clone()
    smaller(module)
    assert torch.equal(module[0].weight, strong)


def test_frozen_parameters_stay_frozen() -> None:
    module = Residual()
    module.stem.weight.requires_grad_(False)
    smaller(module)
    assert {name for name, p in module.named_parameters() if not p.requires_grad} == {"stem.weight"}


@pytest.mark.parametrize("importance", ["l2", "taylor", "random"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_every_ranking_makes_a_network_that_runs(importance: str, scope: str) -> None:
    widths, _, call = smaller(Residual(), importance=importance, scope=scope)
    assert 8 <= widths["wide"] < 64
    assert call().shape == (2, 10)


def test_bn_importance_needs_batch_norms() -> None:
    with pytest.raises(StageError, match="no batch norm"):
        smaller(Residual(), importance="bn")
    assert smaller(Concatenated(), importance="bn", ignore=("c",))[0]["a"] == 8


def test_a_model_with_nothing_to_prune_says_why() -> None:
    with pytest.raises(StageError, match="nothing to prune: 1: it makes the model's output"):
        smaller(nn.Sequential(nn.Flatten(), nn.Linear(256, 10)))
    with pytest.raises(StageError, match="no convolutions and no linear layers"):
        smaller(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(StageError, match="too few for round_to 32"):
        smaller(Residual(16), round_to=32)


def test_an_output_without_a_gradient_is_refused() -> None:
    class Classes(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).argmax(1)

    with pytest.raises(StageError, match="has no gradient"):
        smaller(Classes())


def test_a_speedup_that_cannot_be_reached_says_what_can() -> None:
    call = Call([torch.randn(2, 1, 16, 16)], {})
    prunable = Prunable(Residual().eval(), call, (), 8)
    with pytest.raises(StageError, match=r"100x cannot be reached .* gives \d+\.\dx"):
        prunable.fraction_for(100, Ranking("l2", "local", 8, 0, lambda module: None))
    assert prunable.widths()["stem"] == 32


def test_batch_norms_are_measured_again() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)).eval()
    x = torch.randn(64, 1, 16, 16)
    assert recalibration.batch_norms(module, lambda: [lambda m: m(x)]) == 1
    assert not module[1].training
    assert module[1].momentum == 0.1
    outputs = module[0](x)
    torch.testing.assert_close(module[1].running_mean, outputs.mean((0, 2, 3)))


def test_moments_come_back() -> None:
    module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2, groups=2), nn.Conv2d(4, 4, 1))
    x = torch.randn(64, 1, 16, 16)

    def batches() -> Any:
        return [lambda m: m(x)]

    wanted = recalibration.moments(module, ["0", "2", "3"], batches)
    with torch.no_grad():
        for layer in (module[0], module[2], module[3]):
            layer.weight.mul_(torch.rand_like(layer.weight[:1]) + 0.5)
            layer.bias.add_(1)
    assert recalibration.restore(module, wanted, {}, batches) == 3
    for name, (mean, variance) in recalibration.moments(module, ["0", "2", "3"], batches).items():
        torch.testing.assert_close(mean, wanted[name][0], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(variance, wanted[name][1], atol=1e-4, rtol=1e-3)


# --- in recipes


def planned(steps: str) -> Plan:
    text = f"model: m.py:build\ndata: {{train: t.npz}}\nsteps:\n{textwrap.indent(textwrap.dedent(steps), '  ')}"
    return plan.make(resolve(yaml.parse(text, "r.yaml"), base=Path("/base"), name="r"))


def test_nothing_to_prune_is_passed_through_and_prefixes_are_shared() -> None:
    made = planned("""
        - prune: {channels: [0 %, 30 %, 50 %]}
        - quantize: [none, int8]
        - compile: onnxruntime
    """)
    assert [candidate.id for candidate in made.candidates] == [
        "onnxruntime",
        "int8-onnxruntime",
        *("prune30-onnxruntime", "prune30-int8-onnxruntime"),
        *("prune50-onnxruntime", "prune50-int8-onnxruntime"),
    ]
    assert [step.id for step in made.steps if step.stage == "prune"] == ["import/prune=prune30", "import/prune=prune50"]


def test_none_is_an_alternative_too() -> None:
    made = planned("- prune: [none, {speedup: 2x, importance: [taylor, random]}]\n- compile: onnxruntime")
    ids = [candidate.id for candidate in made.candidates]
    assert ids == ["onnxruntime", "prune2x-taylor-onnxruntime", "prune2x-random-onnxruntime"]


def test_a_quantized_model_is_not_pruned() -> None:
    made = planned("- quantize: int8\n- prune: {channels: 50 %}\n- compile: onnxruntime")
    assert made.left_out == {"int8-prune50": "the model is quantized already: prune comes before quantize"}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("{channels: 100 %}", "some of the channels have to stay"),
        ("{channels: 0.5}", "write it like '1 %'"),
        ("{channels: -5 %}", "is not a share"),
        ("{speedup: 1x}", "a speed-up is above 1x"),
        ("{speedup: 2}", "write it like '2x'"),
        ("{channels: 30 %, speedup: 2x}", "prune takes one of"),
        ("{}", "prune takes one of"),
        ("30 %", "prune takes none, or a mapping of channels, speedup"),
        ("{chanels: 30 %}", "did you mean 'channels'?"),
        ("{channels: 30 %, round_to: 0}", "round_to: input should be greater"),
    ],
)
def test_mistakes_are_told_with_their_line(options: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(f"- prune: {options}")
    assert caught.value.problems[0].startswith("r.yaml:4: ")
    assert told in caught.value.problems[0]


def test_the_key_changes_with_the_source_of_the_factory() -> None:
    made = planned("- prune: {channels: 50 %}\n- quantize: int8\n- compile: onnxruntime")
    parent: Artifact = fashion.source()[0]

    def key(step: str, source: str) -> str:
        inputs = plan.step_inputs(made.step(step), parent, {}, fashion.VNNI, {"sources": {"0:model.py": source}})
        return key_of(inputs)

    assert key("import/prune=prune50", "before") != key("import/prune=prune50", "after")
    assert key("import/prune=prune50/quantize=int8", "before") == key("import/prune=prune50/quantize=int8", "after")


FACTORY = """
import torch
from torch import nn


def build():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 5)
    )
"""
RECIPE = """
model: model.py:build
data: {calibration: calibration.npz, validation: validation.npz}
steps:
  - prune: {channels: [0 %, 50 %]}
  - compile: onnxruntime
measure: {rounds: 3, block: 5 ms}
"""


def test_the_command_prunes_a_torch_model(tmp_path: Path) -> None:
    folder = command.project(tmp_path / "project", RECIPE)
    (folder / "model.py").write_text(FACTORY)
    document = command.convert(folder, tmp_path / "cache")
    parameters = {candidate["id"]: candidate["parameters"] for candidate in document["candidates"]}
    assert set(parameters) == {"onnxruntime", "prune50-onnxruntime"}
    assert parameters["prune50-onnxruntime"] < 0.6 * parameters["onnxruntime"]


def test_masks_are_alternatives_and_a_pattern_needs_no_quotes() -> None:
    made = planned("- prune: [{channels: 50 %}, {sparsity: [0 %, 80 %]}, {pattern: 2:4}]\n- compile: onnxruntime")
    ids = [candidate.id for candidate in made.candidates]
    assert ids == ["onnxruntime", "prune50-onnxruntime", "sparse80-onnxruntime", "sparse2of4-onnxruntime"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("{sparsity: 100 %}", "some of the weights have to stay"),
        ("{pattern: 4:2}", "write a pattern like '2:4'"),
        ("{pattern: 50 %}", "write a pattern like '2:4'"),
        ("{sparsity: 80 %, channels: 50 %}", "prune takes one of"),
        ("{sparsity: 80 %, steps: 3}", "steps is for channels: it does not go with sparsity"),
        ("{pattern: 2:4, scope: global}", "a pattern is the same everywhere"),
    ],
)
def test_mistakes_about_masks_are_told(options: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(f"- prune: {options}")
    assert told in caught.value.problems[0]


def test_pruning_may_come_again_after_training() -> None:
    made = planned("""
        - prune: {channels: 30 %}
        - distill: {epochs: 1}
        - prune: [{channels: 50 %}, {sparsity: 80 %}]
        - distill: {epochs: 5}
        - compile: onnxruntime
    """)
    steps = {candidate.id: dict(candidate.labels) for candidate in made.candidates}
    assert list(steps) == [
        "onnxruntime",
        "prune30-distill1-prune50-distill5-onnxruntime",
        "prune30-distill1-sparse80-distill5-onnxruntime",
    ]
    assert steps["prune30-distill1-prune50-distill5-onnxruntime"] == {
        "prune": "prune30",
        "distill": "distill1",
        "prune 2": "prune50",
        "distill 2": "distill5",
        "compile": "onnxruntime",
    }


def test_the_same_stage_twice_in_a_row_tries_each_with_each() -> None:
    made = planned("- prune: {blocks: [0, 1]}\n- prune: {channels: [0 %, 50 %]}\n- compile: onnxruntime")
    assert [candidate.id for candidate in made.candidates] == [
        "onnxruntime",
        "prune50-onnxruntime",
        "minus1block-onnxruntime",
        "minus1block-prune50-onnxruntime",
    ]


AGAIN = """
model: model.py:build
data: {train: calibration.npz, validation: validation.npz}
steps:
  - prune: {channels: 25 %, round_to: 4}
  - distill: {epochs: 1, batch: 16}
  - prune: [{channels: 50 %, round_to: 4}, {sparsity: 80 %}]
  - compile: onnxruntime
measure: {rounds: 3, block: 5 ms}
"""


def test_the_command_prunes_again_and_the_report_tells_of_it(tmp_path: Path) -> None:
    folder = command.project(tmp_path / "project", AGAIN)
    (folder / "model.py").write_text(FACTORY)
    document = command.convert(folder, tmp_path / "cache")
    told = {found["id"].rpartition("-")[2]: found for found in document["pruned"]}
    assert len(document["pruned"]) == 3
    assert [found["channels"]["0"] for found in document["pruned"] if "channels" in found] == [[16, 12], [12, 8]]
    assert told["sparse80"]["zeros"] == pytest.approx(0.8 * told["sparse80"]["zeros_of"], rel=0.01)
    report = (Path(document["run"]) / "report.md").read_text()
    assert "fewer channels in 1 of 2 layers (0 12 to 8). Not pruned: 4: it makes the model's output" in report
    assert "80.00 % of the weights are zero in 2 layers; the network keeps its shape" in report
    assert "<h2>Pruned</h2>" in (Path(document["run"]) / "report.html").read_text()


def test_a_recipe_that_prunes_nothing_says_so() -> None:
    made = planned("- prune: {channels: 0 %}\n- distill: {epochs: 1}\n- compile: onnxruntime")
    assert [candidate.id for candidate in made.candidates] == ["onnxruntime"]
    assert made.left_out == {
        "prune0": "there is nothing to do: it leaves the model as it is",
        "distill1": "there is nothing to make good: no step before it changes the model",
    }
