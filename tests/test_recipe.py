"""Recipes: what they become, and every kind of mistake with its line."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt import stages, yaml
from edgeopt.budget import QUANTITIES, Limit
from edgeopt.errors import InputError, RecipeError
from edgeopt.recipe import METRICS, ROLES, Alternative, DataSource, Recipe, read, resolve
from edgeopt.samples import Preprocess
from edgeopt.stages import Options

ROOT = Path(__file__).parents[1]
BASE = Path("/project/recipes")


def recipe(text: str) -> Recipe:
    return resolve(yaml.parse(textwrap.dedent(text), "r.yaml"), base=BASE, name="r")


def mistakes(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        recipe(text)
    return list(caught.value.problems)


def labels(text: str) -> list[list[str]]:
    found = recipe(f"model: a.onnx\n{textwrap.dedent(text)}")
    return [[alternative.label() for alternative in step.alternatives] for step in found.steps]


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_recipe_reads(path: Path) -> None:
    found = read(path)
    assert found.name == path.stem
    assert found.steps
    assert not found.backends_optional
    files = [source.location.rpartition(":")[0] or source.location for source in found.data.values()]
    assert all(Path(file).exists() for file in files)


def test_a_model_is_all_that_a_recipe_needs() -> None:
    found = recipe("model: a.onnx")
    assert (found.model, found.target.name, found.budget.prefer) == (
        "/project/recipes/a.onnx",
        "host",
        ("latency p50",),
    )
    assert (found.data, found.steps, found.weights, found.metric) == ({}, (), None, None)
    assert found.backends_optional
    assert found.step_seconds == 1800


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a.onnx", "/project/recipes/a.onnx"),
        ("../models/a.onnx", "/project/models/a.onnx"),
        ("/models/a.onnx", "/models/a.onnx"),
        ("model.py:build", "/project/recipes/model.py:build"),
        ("sub/model.py:build", "/project/recipes/sub/model.py:build"),
        ("package.module:build", "package.module:build"),
        ("'odd:name.onnx'", "/project/recipes/odd:name.onnx"),
    ],
)
def test_paths_are_relative_to_the_recipe(written: str, found: str) -> None:
    assert recipe(f"model: {written}").model == found


def test_a_target_file_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "mine.yaml").write_text("base: raspberry-pi-5\nthreads: 2\n")
    (tmp_path / "r.yaml").write_text("model: a.onnx\ntarget: boards/mine.yaml\n")
    assert read(tmp_path / "r.yaml").target.threads == 2
    assert read(tmp_path / "r.yaml").target.name == "mine"


def test_a_target_is_a_name_or_a_mapping() -> None:
    assert recipe("model: a\ntarget: raspberry-pi-5").target.arch == "aarch64"
    assert recipe("model: a\ntarget: {base: raspberry-pi-5, memory: 4 GiB}").target.memory_bytes == 4 * 2**30


def test_data_is_taken_from_files_functions_and_other_roles() -> None:
    found = recipe("""
        model: a
        data:
          train: train.npz
          calibration: {from: train, samples: 300, seed: 7}
          validation: data.py:load
    """).data
    assert found["train"] == DataSource("/project/recipes/train.npz")
    assert found["calibration"] == DataSource("/project/recipes/train.npz", 300, 7)
    assert found["validation"] == DataSource("/project/recipes/data.py:load")


def test_roles_are_followed_to_the_file() -> None:
    found = recipe("model: a\ndata: {train: a.npz, validation: {from: train}, calibration: {from: validation}}").data
    assert {source.location for source in found.values()} == {"/project/recipes/a.npz"}


def test_calibration_is_drawn_from_train_by_default() -> None:
    found = recipe("model: a\ndata: {train: t.npz}").data
    assert found["calibration"] == DataSource("/project/recipes/t.npz", 300, 0)
    assert "calibration" not in recipe("model: a\ndata: {validation: v.npz}").data


def test_preprocessing_is_numbers() -> None:
    found = recipe("model: a\npreprocess: {mean: 73, std: [1, 2.5], transpose: [2, 0, 1]}").preprocess
    assert found == Preprocess((73.0,), (1.0, 2.5), (2, 0, 1))


def test_budgets_are_numbers_in_their_units() -> None:
    found = recipe("""
        model: a
        budget:
          latency: interactive
          latency p95: 5 ms
          peak memory: 200 MiB
          accuracy drop: 1 %
        prefer: [size, latency p50]
    """).budget
    assert found.limits == (
        Limit("latency p50", 10**8),
        Limit("latency p95", 5 * 10**6),
        Limit("peak memory", 200 * 2**20),
        Limit("accuracy drop", 0.01),
    )
    assert found.prefer == ("size", "latency p50")


def test_measuring_and_the_time_limit() -> None:
    found = recipe("model: a\nmeasure: {rounds: 5, block: 20 ms, batches: [8, 1]}\nstep time limit: 2 min")
    assert found.measure.batches == (1, 8)
    assert (found.measure.rounds, found.measure.block_ns, found.step_seconds) == (5, 20_000_000, 120)


def test_alternatives_are_names_or_mappings_with_options() -> None:
    found = labels("""
        steps:
          - quantize: [none, int8, {int8: {bias_correction: fast}}]
          - compile: [onnxruntime, {openvino: {precision: bf16}}, tflite]
    """)
    assert found == [["none", "int8", "int8-fast"], ["onnxruntime", "openvino-bf16", "tflite"]]
    assert labels("steps: [compile: openvino]") == [["openvino"]]
    assert labels("steps: [compile: {openvino: {precision: fp16}, tflite: null}]") == [["openvino-fp16", "tflite"]]


def test_lists_of_options_multiply() -> None:
    found = labels("steps: [quantize: {int8: {bias_correction: [full, fast], overflow_fix: [auto, enable]}}]")
    assert found == [["int8", "int8-enable", "int8-fast", "int8-fast-enable"]]


def test_an_option_that_is_a_list_is_one_value() -> None:
    (step,) = recipe("model: a\nsteps: [quantize: {int8: {ignore: [conv1, conv2]}}]").steps
    assert [alternative.options.model_dump()["ignore"] for alternative in step.alternatives] == [("conv1", "conv2")]


class Knobs(Options):
    """Options whose values look alike."""

    a: int = 0
    b: int = 0
    fold: bool = False
    mode: str = "auto"
    ignore: tuple[str, ...] = ()


def test_unlike_options_have_unlike_labels_and_like_ones_the_same() -> None:
    written: list[dict[str, Any]] = [
        {},
        {"a": 1},
        {"b": 1},
        {"a": -1},
        {"fold": True},
        {"mode": "fast"},
        {"mode": "fold"},
        {"ignore": ("conv.*",)},
        {"ignore": ("conv.+",)},
        {"ignore": ("conv.", "*")},
        {"ignore": ("x" * 50,)},
        {"ignore": ("x" * 49,)},
    ]
    found = [Alternative("it", Knobs(**options)).label() for options in written]
    assert len(set(found)) == len(found), found
    assert found == [Alternative("it", Knobs(**options)).label() for options in written]
    assert all(len(label) < 40 and "/" not in label and " " not in label for label in found)


WRONG = {
    "modle: a.onnx": ["r.yaml:1: unknown key 'modle', did you mean 'model'?"],
    "metric: top1": ["r.yaml:1: a recipe needs a model"],
    "model:": ["r.yaml:1: model is a path or file.py:function, not nothing"],
    "model: [a]": ["r.yaml:1: model is a path or file.py:function, not a list"],
    "model: ''": ["r.yaml:1: model is a path"],
    'model: "a\\0b"': ["r.yaml:1: a path cannot hold a null character"],
    'model: "a\\0b.py:build"': ["r.yaml:1: a path cannot hold a null character"],
    "model: a\nweights: 5": ["r.yaml:2: weights is a path"],
    "model: a\nmetric: top-1": ["r.yaml:2: unknown metric 'top-1', did you mean 'top1'?"],
    "model: a\nmetric: [top1]": ["r.yaml:2: unknown metric ['top1']"],
    "model: a\n\ndata: x.npz": ["r.yaml:3: data is a mapping, not the text 'x.npz'"],
    "model: a\ndata:\n  trian: x.npz": ["r.yaml:3: unknown key 'trian', did you mean 'train'?"],
    "model: a\ndata:\n  train: 5": ["r.yaml:3: train is a file, a function or a mapping, not 5"],
    "model: a\ndata:\n  train: {form: x}": [
        "r.yaml:3: unknown key 'form', did you mean 'from'?",
        "r.yaml:3: train needs",
    ],
    "model: a\ndata:\n  train: {from: [x]}": ["r.yaml:3: train is a path"],
    "model: a\ndata:\n  train: {from: x.npz, samples: 0}": ["r.yaml:3: samples is a whole number of at least 1"],
    "model: a\ndata:\n  train: {from: x.npz, samples: yes}": ["r.yaml:3: samples is a whole number"],
    "model: a\ndata:\n  train: {from: x.npz, seed: 0.5}": ["r.yaml:3: seed is a whole number of at least 0"],
    "model: a\ndata:\n  calibration: {from: train}": [
        "r.yaml:3: calibration is taken from train, and there is no train"
    ],
    "model: a\ndata:\n  train: train": ["r.yaml:3: train is taken from itself"],
    "model: a\ndata:\n  train: validation\n  validation: train": [
        "r.yaml:3: train is taken from itself: train from validation from train",
        "r.yaml:4: validation is taken from itself",
    ],
    "model: a\npreprocess: {means: 3}": ["r.yaml:2: unknown key 'means', did you mean 'mean'?"],
    "model: a\npreprocess: {mean: red}": ["r.yaml:2: mean is a number, or a list of numbers"],
    "model: a\npreprocess: {mean: 1e999}": ["r.yaml:2: mean is a number"],
    "model: a\npreprocess: {std: [1, 0]}": ["r.yaml:2: std is above zero"],
    "model: a\npreprocess: {transpose: [1, 2]}": ["r.yaml:2: transpose is an order of a sample's axes"],
    "model: a\npreprocess: 5": ["r.yaml:2: preprocess is a mapping, not 5"],
    "model: a\nsteps: {compile: tflite}": ["r.yaml:2: steps is a list, not a mapping"],
    "model: a\nsteps:\n  - compile": ["r.yaml:3: a step is one stage with its alternatives"],
    "model: a\nsteps:\n  - quantise: int8": ["r.yaml:3: unknown stage 'quantise', did you mean 'quantize'?"],
    "model: a\nsteps:\n  - compile: tflight": [
        "r.yaml:3: unknown alternative of compile 'tflight', did you mean 'tflite'?"
    ],
    "model: a\nsteps:\n  - compile:": ["r.yaml:3: compile has no alternatives: name at least one of onnxruntime"],
    "model: a\nsteps:\n  - compile: []": ["r.yaml:3: compile has no alternatives"],
    "model: a\nsteps:\n  - compile: [{}]": ["r.yaml:3: an alternative is one of"],
    "model: a\nsteps:\n  - compile: [null]": ["r.yaml:3: unknown alternative of compile None"],
    "model: a\nsteps:\n  - compile: [[tflite]]": ["r.yaml:3: unknown alternative of compile ['tflite']"],
    "model: a\nsteps:\n  - compile:\n    - {openvin: {}}": [
        "r.yaml:4: unknown alternative of compile 'openvin', did you mean"
    ],
    "model: a\nsteps:\n  - compile:\n    - openvino:\n        precison: bf16": [
        "r.yaml:5: unknown option 'precison', did you mean 'precision'?"
    ],
    "model: a\nsteps:\n  - compile:\n    - openvino:\n        precision: int4": [
        "r.yaml:5: precision: input should be"
    ],
    "model: a\nsteps:\n  - compile:\n    - openvino:\n        precision: []": ["r.yaml:5: precision is an empty list"],
    "model: a\nsteps:\n  - compile:\n    - openvino: bf16": ["r.yaml:4: options are a mapping, not the text 'bf16'"],
    "model: a\nsteps:\n  - compile:\n    - openvino: 0": ["r.yaml:4: options are a mapping, not 0"],
    "model: a\nsteps:\n  - compile:\n    - openvino: []": ["r.yaml:4: options are a mapping, not a list"],
    "model: a\nsteps:\n  - quantize: {none: {deep: 1}}": ["r.yaml:3: unknown option 'deep', there is none"],
    "model: a\nsteps:\n  - compile: tflite\n  - quantize: int8": ["r.yaml:4: quantize comes after compile"],
    "model: a\nsteps:\n  - quantize: int8\n  - quantize: int8": ["r.yaml:4: the stage quantize is there twice"],
    "model: a\ntarget: raspbery-pi-5": ["r.yaml:2: there is no target 'raspbery-pi-5', did you mean 'raspberry-pi-5'?"],
    "model: a\ntarget: 5": ["r.yaml:2: target is a name, a .yaml file or a mapping, not 5"],
    "model: a\ntarget: missing.yaml": ["r.yaml:2: /project/recipes/missing.yaml: No such file"],
    'model: a\ntarget: "a\\0.yaml"': ["r.yaml:2: "],
    "model: a\ntarget: {thread: 2}": ["r.yaml:2: 'thread' is not a field of a target, did you mean 'threads'?"],
    "model: a\ntarget: {base: [host]}": ["r.yaml:2: base: ['host'] is not text"],
    "model: a\nbudget:\n  latency p90: 5": ["r.yaml:3: latency p90: 5 has no unit: write it like '5 ms'"],
    "model: a\nbudget:\n  latency p90: [5 ms]": ["r.yaml:3: latency p90: ['5 ms'] is not a time"],
    "model: a\nbudget:\n  peak memory: 5 ms": ["r.yaml:3: peak memory: '5 ms': unknown unit 'ms'"],
    "model: a\nbudget:\n  accuracy drop: 0.01": ["r.yaml:3: accuracy drop: 0.01 has no unit"],
    "model: a\nbudget:\n  latncy p90: 5 ms": ["r.yaml:3: unknown budget 'latncy p90', did you mean 'latency p90'?"],
    "model: a\nbudget:\n  latency: 5 ms\n  latency p50: 9 ms": ["r.yaml:4: latency p50 is limited twice"],
    "model: a\nbudget: 5 ms": ["r.yaml:2: budget is a mapping"],
    "model: a\nprefer: speed": ["r.yaml:2: unknown quantity to prefer 'speed'"],
    "model: a\nprefer:\n  - size\n  - [size]": ["r.yaml:4: unknown quantity to prefer ['size']"],
    "model: a\nprefer: []": ["r.yaml:2: prefer names at least one of"],
    "model: a\nmeasure: {rounds: 2}": ["r.yaml:2: rounds is a whole number of at least 3"],
    "model: a\nmeasure: {batches: [0, 4]}": ["r.yaml:2: batches are whole numbers of at least 1: batches: [1, 8, 32]"],
    "model: a\nmeasure: {block: 5}": ["r.yaml:2: block: 5 has no unit"],
    "model: a\nmeasure: {block: 0 ms}": ["r.yaml:2: block is above zero"],
    "model: a\nmeasure: {round: 5}": ["r.yaml:2: unknown key 'round', did you mean 'rounds'?"],
    "model: a\nstep time limit: 0 s": ["r.yaml:2: step time limit is above zero"],
    "model: a\nstep time limit: soon": ["r.yaml:2: step time limit: 'soon' is not a time"],
    "- model": ["r.yaml: a recipe is a mapping"],
    "": ["r.yaml: a recipe is a mapping"],
}


@pytest.mark.parametrize("text", WRONG, ids=repr)
def test_each_mistake_is_told_once_with_its_line(text: str) -> None:
    found = mistakes(text)
    assert len(found) == len(WRONG[text]), found
    for told, expected in zip(sorted(found), sorted(WRONG[text]), strict=True):
        assert told.startswith(expected)


def test_all_mistakes_of_one_recipe_are_told_at_once_in_order() -> None:
    found = mistakes("""
        model: a.onnx
        metrik: top1
        data:
          trian: x.npz
          validation: {from: v.npz, samples: -1}
        steps:
          - quantize: [int7, {int8: {bias: fast, overflow_fix: maybe}}]
          - compilation: tflite
        target: hots
        budget:
          latency p95: 5
          peak memory: much
        prefer: speed
    """)
    assert [problem.split(":")[1] for problem in found] == ["3", "5", "6", "8", "8", "8", "9", "10", "12", "13", "14"]


def test_mistakes_of_a_target_file_are_told_each(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text("cores: many\nmemory: 5\n")
    (tmp_path / "r.yaml").write_text("model: a.onnx\ntarget: board.yaml\n")
    with pytest.raises(RecipeError) as caught:
        read(tmp_path / "r.yaml")
    assert [problem[:23] for problem in caught.value.problems] == ["r.yaml:2: board.yaml:1:", "r.yaml:2: board.yaml:2:"]


def test_a_target_file_that_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "board.yaml").write_text("cores: 4\nmemory: [")
    (tmp_path / "r.yaml").write_text("model: a.onnx\ntarget: board.yaml\n")
    with pytest.raises(RecipeError, match=r"r.yaml:2: board.yaml:2: not YAML"):
        read(tmp_path / "r.yaml")


def test_a_recipe_of_millions_of_combinations_is_refused() -> None:
    many = ", ".join(["full", "fast"] * 500)
    (problem,) = mistakes(
        f"model: a\nsteps: [quantize: {{int8: {{bias_correction: [{many}], overflow_fix: [{many}]}}}}]"
    )
    assert problem == "r.yaml:2: these options make more than 1000 combinations"


def test_reading_imports_no_model_and_opens_no_data() -> None:
    assert recipe("model: nowhere.py:build\ndata: {train: nowhere.npz}").model.endswith("nowhere.py:build")


words = [
    "model", "weights", "data", "preprocess", "metric", "steps", "target", "budget", "prefer", "measure", "rounds",
    "step time limit", "from", "samples", "seed", "mean", "std", "transpose", "base", "reach", "threads", "isa",
    "quantize", "compile", "none", "int8", "bias_correction", "ignore", "precision", "bf16", "block", "latency", "host",
    "memory", "a.onnx", "model.py:build", "raspberry-pi-5", "x.yaml", "5 ms", "1 %", "180 MiB", "real-time",
    *ROLES, *METRICS, *QUANTITIES, *stages.find("compile").choices(),
]  # fmt: skip
texts = st.sampled_from(words) | st.text(max_size=5)
scalars = st.none() | st.booleans() | st.integers(-3, 10**9) | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8
)
plausible = st.fixed_dictionaries(
    {"model": st.just("a.onnx")},
    optional={
        "data": st.dictionaries(st.sampled_from(ROLES), texts | st.dictionaries(texts, values, max_size=3)) | values,
        "steps": st.lists(st.dictionaries(st.sampled_from(["quantize", "compile"]), values, max_size=1), max_size=3)
        | values,
        "preprocess": st.dictionaries(st.sampled_from(["mean", "std", "transpose"]), values) | values,
        "budget": st.dictionaries(st.sampled_from(list(QUANTITIES)), values) | values,
        "target": values,
        "prefer": values,
        "measure": st.dictionaries(st.sampled_from(["rounds", "block"]), values) | values,
        "metric": values,
        "step time limit": values,
        "weights": values,
    },
)


@given(plausible | st.dictionaries(texts, values) | values)
def test_any_document_is_a_recipe_or_told_as_the_users_mistake(written: Any) -> None:
    try:
        found = resolve(yaml.Document("r.yaml", written), base=BASE, name="r")
    except InputError as error:
        assert 1 <= len(error.lines()) <= 5
        return
    assert found.model
    assert all(limit.bound >= 0 for limit in found.budget.limits)
    assert all(step.alternatives for step in found.steps)
