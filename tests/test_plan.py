"""Plans: what is built once, what is left out, and the keys of steps. Nothing is built here."""

from __future__ import annotations

import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt import backends, plan, yaml
from edgeopt.artifact import Artifact, FileEntry, MadeBy, TensorSpec
from edgeopt.errors import InputError, MissingDependency
from edgeopt.plan import Plan, make, step_inputs
from edgeopt.recipe import resolve
from edgeopt.store import key_of
from edgeopt.target import Target

FULL = """
    model: a.onnx
    data: {train: t.npz, validation: v.npz}
    steps:
      - quantize: [none, int8, {int8: {bias_correction: fast}}]
      - compile: [onnxruntime, openvino, {openvino: {precision: bf16}}, tflite]
"""
TARGET = Target("board", arch="x86_64", isa=("avx2",))
PARENT = Artifact(
    "onnx",
    "model.onnx",
    (FileEntry("model.onnx", "0" * 64, 10),),
    (TensorSpec("x", (1, 3), "float32"),),
    (TensorSpec("y", (1, 2), "float32"),),
    "fp32",
    MadeBy("import", 1, {}, {}),
)


def planned(text: str, **changes: Any) -> Plan:
    found = resolve(yaml.parse(textwrap.dedent(text), "r.yaml"), base=Path("/base"), name="r")
    return make(replace(found, **changes))


def key(made: Plan, step: str, target: Target = TARGET, samples: str = "s" * 64, **parent: Any) -> str:
    digests = dict.fromkeys(made.step(step).roles, samples)
    return key_of(step_inputs(made.step(step), replace(PARENT, **parent), digests, target))


def test_every_combination_is_a_candidate() -> None:
    found = [candidate.id for candidate in planned(FULL).candidates]
    assert found == [
        "onnxruntime",
        "openvino",
        "tflite",
        "openvino-bf16",
        *("int8-onnxruntime", "int8-openvino", "int8-tflite"),
        *("int8-fast-onnxruntime", "int8-fast-openvino", "int8-fast-tflite"),
    ]


def test_what_branches_share_is_built_once() -> None:
    made = planned(FULL)
    ids = [step.id for step in made.steps]
    assert len(set(ids)) == len(ids)
    assert sum(step.stage == "quantize" for step in made.steps) == 2
    int8 = [step for step in made.steps if step.parent == "import/quantize=int8"]
    assert [step.choice for step in int8] == ["onnxruntime", "openvino", "tflite"]


def test_each_step_comes_after_its_parent() -> None:
    seen = {plan.IMPORT}
    for step in planned(FULL).steps:
        assert step.parent in seen
        seen.add(step.id)


def test_lineage_goes_from_the_model_to_the_step() -> None:
    made = planned(FULL)
    step = made.step("import/quantize=int8/compile=tflite")
    assert [s.stage for s in made.lineage(step)] == ["quantize", "compile"]
    assert step.depth == 2


def test_the_untouched_model_on_each_backend_is_always_a_candidate() -> None:
    made = planned("""
        model: a
        data: {train: t.npz}
        steps:
          - quantize: int8
          - compile: [{openvino: {precision: [bf16, fp16]}}, tflite]
    """)
    untouched = [candidate.id for candidate in made.candidates if candidate.untouched]
    assert untouched == ["openvino", "tflite"]
    assert made.baseline == "openvino"


def test_the_baseline_is_the_untouched_model_on_onnxruntime_where_it_can_be() -> None:
    assert planned("model: a\nsteps: [compile: [tflite, onnxruntime]]").baseline == "onnxruntime"
    assert planned("model: a\nsteps: [compile: [tflite, openvino]]").baseline == "tflite"


def test_combinations_that_make_no_sense_are_left_out_with_the_reason() -> None:
    made = planned(FULL)
    assert set(made.left_out) == {"int8-openvino-bf16", "int8-fast-openvino-bf16"}
    assert all("fp32" in reason and "int8" in reason for reason in made.left_out.values())
    assert not set(made.left_out) & {candidate.id for candidate in made.candidates}


def test_what_a_candidate_computes_in_is_known_beforehand() -> None:
    made = planned(FULL)
    precisions = {candidate.id: made.step(candidate.step).precision for candidate in made.candidates}
    assert (precisions["openvino"], precisions["openvino-bf16"], precisions["int8-tflite"]) == ("fp32", "bf16", "int8")


def test_data_is_what_steps_read_and_what_validates() -> None:
    assert set(planned(FULL).data) == {"calibration", "validation"}
    assert set(planned("model: a\ndata: {train: t.npz}\nsteps: [compile: tflite]").data) == {"validation"}
    assert planned("model: a\nsteps: [compile: tflite]").data == {}


def test_without_validation_data_other_data_validates() -> None:
    made = planned("model: a\ndata: {train: t.npz}\nsteps: [compile: tflite]")
    assert (made.data["validation"].location, made.data["validation"].samples) == ("/base/t.npz", 1000)


def test_a_step_without_its_data_is_the_users_mistake() -> None:
    with pytest.raises(InputError, match=r"quantize: int8 reads calibration data") as caught:
        planned("model: a\nsteps: [{quantize: int8}, {compile: tflite}]")
    assert "calibration: samples.npz" in str(caught.value.remedy)


@pytest.fixture
def without_tflite(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which one distribution is not installed."""
    real = backends.version
    monkeypatch.setattr(backends, "version", lambda name: None if name == "ai-edge-litert" else real(name))


def test_backends_that_the_recipe_does_not_name_may_be_missing(without_tflite: None) -> None:
    made = planned("model: a\nsteps: []")
    assert [candidate.id for candidate in made.candidates] == ["onnxruntime", "openvino"]
    assert made.left_out == {"tflite": "ai-edge-litert is not installed"}
    plan.without_missing_tools(made)


def test_backends_that_the_recipe_names_may_not_be_missing(without_tflite: None) -> None:
    made = planned("model: a\nsteps: [compile: [onnxruntime, tflite]]")
    with pytest.raises(MissingDependency, match=r"tflite needs ai-edge-litert") as caught:
        plan.without_missing_tools(made)
    assert "pip install ai-edge-litert" in str(caught.value.remedy)


def test_no_backend_at_all_is_told_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "version", lambda name: None)
    with pytest.raises(MissingDependency, match="no backend of the target host"):
        planned("model: a")


def test_tools_are_told_with_what_needs_them() -> None:
    found = planned(FULL).tools()
    assert found["nncf"] == "quantize: int8"
    assert found["openvino"] == "openvino"
    assert {"onnxruntime", "ai-edge-litert"} <= set(found)


choices = st.sampled_from(
    ["none", "int8", "{int8: {bias_correction: [fast, none], ignore: [b.*]}}", "{int8: {ignore: [b.+]}}"]
)
compiles = st.sampled_from(["onnxruntime", "{openvino: {precision: [auto, bf16, fp16]}}", "tflite", "openvino"])


@settings(max_examples=30)
@given(st.lists(choices, min_size=1, max_size=3), st.lists(compiles, min_size=1, max_size=4))
def test_ids_are_unique_and_the_same_every_time(quantize: list[str], compile: list[str]) -> None:
    text = f"""
        model: a
        data: {{calibration: c.npz}}
        steps:
          - quantize: [{", ".join(quantize)}]
          - compile: [{", ".join(compile)}]
    """
    made = planned(text)
    ids = [candidate.id for candidate in made.candidates]
    steps = [candidate.step for candidate in made.candidates]
    assert len(set(ids)) == len(ids) == len(set(steps))
    assert {step.parent for step in made.steps} <= {plan.IMPORT, *(step.id for step in made.steps)}
    again = planned(text)
    assert (ids, again.baseline) == ([candidate.id for candidate in again.candidates], made.baseline)
    assert made.baseline in ids


def test_unlike_steps_with_like_names_are_two_candidates() -> None:
    found = planned(FULL)
    by_options = {step.options.model_dump_json() for step in found.steps if step.stage == "quantize"}
    assert len(by_options) == 2
    ignoring = planned("""
        model: a
        data: {calibration: c.npz}
        steps:
          - quantize: [{int8: {ignore: ['conv.*']}}, {int8: {ignore: ['conv.+']}}]
          - compile: tflite
    """)
    assert len(ignoring.candidates) == 3


def test_the_key_of_a_step_is_the_same_for_the_same_inputs() -> None:
    assert key(planned(FULL), "import/quantize=int8") == key(planned(FULL), "import/quantize=int8")


def test_the_key_says_nothing_of_where_files_lie_and_who_reads_them() -> None:
    elsewhere = planned(FULL.replace("t.npz", "other.npz").replace("a.onnx", "b.onnx"))
    assert key(elsewhere, "import/quantize=int8") == key(planned(FULL), "import/quantize=int8")
    assert key(planned(FULL + "    prefer: size"), "import/quantize=int8") == key(planned(FULL), "import/quantize=int8")
    renamed = replace(TARGET, name="other", description="another", cores=64, threads=8, reach={"ssh": "me@there"})
    assert key(planned(FULL), "import/compile=openvino", renamed) == key(planned(FULL), "import/compile=openvino")


@pytest.mark.parametrize(
    "step", ["import/quantize=int8", "import/quantize=int8/compile=tflite", "import/compile=openvino"]
)
def test_the_key_changes_with_what_changes_the_result(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = planned(FULL)
    keys = [
        key(made, step),
        key(made, step, replace(TARGET, isa=("avx2", "avx512_vnni"))),
        key(made, step, replace(TARGET, arch="aarch64")),
        key(made, step, replace(TARGET, precisions=("fp32", "fp16"))),
        key(made, step, files=(FileEntry("model.onnx", "1" * 64, 10),)),
        key(made, step, format="pt2"),
    ]
    if made.step(step).roles:
        keys.append(key(made, step, samples="t" * 64))
    real = backends.version
    monkeypatch.setattr(backends, "version", lambda name: f"{real(name)}.post1")
    keys.append(key(made, step))
    assert len(set(keys)) == len(keys)


def test_the_key_changes_with_the_options() -> None:
    made = planned(FULL)
    assert key(made, "import/quantize=int8") != key(made, "import/quantize=int8-fast")
    assert key(made, "import/compile=openvino") != key(made, "import/compile=openvino-bf16")
    assert key(made, "import/compile=openvino") != key(made, "import/compile=tflite")


def test_a_default_that_is_written_out_changes_no_key() -> None:
    written = planned(FULL.replace("[none, int8,", "[none, {int8: {bias_correction: full}},"))
    assert key(written, "import/quantize=int8") == key(planned(FULL), "import/quantize=int8")


def test_where_time_is_short_the_cheap_come_first_and_then_what_promises_most() -> None:
    made = planned("""
        model: a
        data: {train: t.npz}
        steps:
          - prune: [none, {channels: [25 %, 50 %]}]
          - distill: [none, {epochs: 1}]
          - quantize: [none, int8]
          - compile: [onnxruntime, openvino]
    """)
    ranks = plan.ranks(made, ("prune50", "prune25"))
    order = sorted((candidate.id for candidate in made.candidates), key=lambda name: ranks[name])
    assert order[0] == made.baseline == "onnxruntime"
    assert order[1] == "openvino"
    assert set(order[2:4]) == {"int8-onnxruntime", "int8-openvino"}
    assert {name.partition("-")[0] for name in order[4:8]} == {"prune50"}
    assert {name.partition("-")[0] for name in order[8:12]} == {"prune25"}
    assert all("distill1" in name for name in order[12:])
    assert {name.partition("-")[0] for name in order[12:16]} == {"prune50"}


def test_a_step_is_as_urgent_as_the_most_urgent_candidate_behind_it() -> None:
    made = planned(FULL)
    ranks = plan.ranks(made, ())
    for step in made.steps:
        assert ranks[step.id] == min(ranks[candidate.id] for candidate in made.below(step.id))
