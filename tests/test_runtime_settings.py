"""Settings of the runtimes, in the words of recipes and targets."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, get_args

import fashion
import numpy as np
import onnx
import pytest

from edgeopt import backends, catalog, plan, yaml
from edgeopt.backends import onnxruntime as ort
from edgeopt.backends import openvino, tflite
from edgeopt.compilers import onnxruntime as ort_compiler
from edgeopt.compilers import openvino as openvino_compiler
from edgeopt.compilers import options_on
from edgeopt.errors import InputError, NoAccelerator, RecipeError, StageError
from edgeopt.recipe import resolve
from edgeopt.stages import compile as stage
from edgeopt.target import Target


def loaded(choice: str, of_int8: bool = False, threads: int = 1, **options: Any) -> Any:
    artifact, folder = fashion.compiled(choice, of_int8, **options)
    return backends.find(choice).load(folder / artifact.main, artifact.runtime, threads)


def scores(session: Any, count: int = 1) -> Any:
    images, _ = fashion.images_and_labels()
    if session.inputs[0].layout == "NHWC" or session.inputs[0].shape[-1] == 1:
        images = images.transpose(0, 2, 3, 1)
    return session.run({session.inputs[0].name: np.ascontiguousarray(images[:count])})[session.outputs[0].name]


def with_runtimes(tmp_path: Path, runtimes: str) -> Target:
    path = tmp_path / "board.yaml"
    path.write_text(f"base: host\nruntimes: {runtimes}\n")
    return catalog.target(str(path))


def test_openvino_is_told_hint_and_streams() -> None:
    session = loaded("openvino", threads=2, hint="throughput", streams=2)
    compiled = next(iter(session._compiled.values()))
    assert str(compiled.get_property("PERFORMANCE_HINT")) == "THROUGHPUT"
    assert compiled.get_property("NUM_STREAMS") == 2
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2


@pytest.mark.parametrize("runtime", [{"hint": "fast"}, {"cache": "somewhere"}])
def test_openvino_refuses_other_settings(runtime: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no runtime setting"):
        openvino.load(Path("model.xml"), runtime, 1)


@pytest.mark.parametrize("of_int8", [False, True])
def test_a_compiled_openvino_model_is_one_file_that_computes_the_same(of_int8: bool) -> None:
    artifact, folder = fashion.compiled("openvino", of_int8, compiled=True)
    assert sorted(path.name for path in folder.iterdir()) == ["model.blob"]
    assert [spec.shape for spec in artifact.inputs] == [(1, 1, 28, 28)]
    session = openvino.load(folder / artifact.main, artifact.runtime, 1)
    np.testing.assert_allclose(scores(session), scores(loaded("openvino", of_int8)), rtol=1e-4, atol=1e-4)


def test_a_damaged_compiled_model_says_that_it_wants_compiling_again(tmp_path: Path) -> None:
    _, folder = fashion.compiled("openvino", compiled=True)
    (tmp_path / "model.blob").write_bytes((folder / "model.blob").read_bytes()[:1000])
    with pytest.raises(StageError, match=r"model\.blob .*damaged"):
        openvino.load(tmp_path / "model.blob", {}, 1)


def test_nothing_is_compiled_for_another_machine(tmp_path: Path) -> None:
    elsewhere = Target("pi", arch="aarch64", reach={"ssh": "pi@pi"})
    with pytest.raises(StageError, match="pi is another"):
        fashion.run_stage(stage, "openvino", fashion.source(), tmp_path / "out", elsewhere, compiled=True)


@pytest.mark.parametrize(("options", "batch"), [({"static": True}, 1), ({"shapes": "image:4x1x28x28"}, 4)])
def test_openvino_models_are_of_the_shapes_that_were_asked_for(options: dict[str, Any], batch: int) -> None:
    artifact, _ = fashion.compiled("openvino", **options)
    assert artifact.inputs[0].shape == (batch, 1, 28, 28)
    assert artifact.outputs[0].shape == (batch, 10)


@pytest.mark.parametrize("shapes", ["pixels:1x1x28x28", "image:1x3x28x28", "image:1x28x28"])
def test_shapes_that_do_not_fit_are_refused(shapes: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="image"):
        fashion.run_stage(stage, "openvino", fashion.source(), tmp_path / "out", shapes=shapes)


def test_a_provider_that_is_not_there_is_named_and_nothing_else_runs() -> None:
    with pytest.raises(NoAccelerator, match=r"no CUDAExecutionProvider: it has .*CPU"):
        loaded("onnxruntime", provider="cuda", provider_options="device_id=0")


def test_the_providers_of_recipes_are_those_of_the_backend() -> None:
    assert get_args(ort_compiler.Provider) == tuple(ort.PROVIDERS)


def test_a_provider_that_is_tensorrt_gets_signed_quantizers_alone() -> None:
    artifact, folder = fashion.compiled("onnxruntime", True, provider="tensorrt")
    model = onnx.load(str(folder / artifact.main))
    weights = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    zero_points = [node.input[2] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert zero_points
    assert {weights[name] for name in zero_points} == {onnx.TensorProto.INT8}
    assert artifact.runtime == {"provider": "tensorrt", "provider_options": {}}


def test_threads_of_onnxruntime_sleep_where_spinning_is_off() -> None:
    given = loaded("onnxruntime", spinning=False)._session.get_session_options()
    assert given.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_litert_without_xnnpack_computes_the_same_by_its_own_kernels() -> None:
    artifact, folder = fashion.compiled("tflite", xnnpack=False)
    own = tflite.load(folder / artifact.main, artifact.runtime, 1)
    fast = tflite.load(folder / artifact.main, {}, 1)
    kernels = [{operator["op_name"] for operator in session._interpreter._get_ops_details()} for session in (own, fast)]
    assert "DELEGATE" not in kernels[0]
    assert "DELEGATE" in kernels[1]
    np.testing.assert_allclose(scores(own), scores(fast), rtol=1e-4, atol=1e-4)


def test_a_target_says_what_a_recipe_leaves_open(tmp_path: Path) -> None:
    target = with_runtimes(tmp_path, "{openvino: {hint: throughput, streams: 2}}")
    assert Target.from_json(target.to_json()) == target
    options = openvino_compiler.CompileOptions
    assert options_on(target, "openvino", options()) == options(hint="throughput", streams=2)
    assert options_on(target, "openvino", options(hint="latency")) == options(hint="latency", streams=2)
    assert options_on(target, "onnxruntime", ort_compiler.CompileOptions()) == ort_compiler.CompileOptions()


def test_candidates_on_such_a_target_are_named_by_what_it_says(tmp_path: Path) -> None:
    text = """
        model: a.onnx
        data: {validation: v.npz}
        steps:
          - compile: [onnxruntime, openvino, {openvino: {hint: latency, streams: 1}}]
        target: ./board.yaml
    """
    with_runtimes(tmp_path, "{openvino: {hint: throughput, streams: 2}}")
    made = plan.make(resolve(yaml.parse(textwrap.dedent(text), "r.yaml"), base=tmp_path, name="r"))
    assert [candidate.id for candidate in made.candidates] == [
        "onnxruntime",
        "openvino-throughput-streams2",
        "openvino-streams1",
    ]


@pytest.mark.parametrize(
    ("runtimes", "message"),
    [
        ("fast", "write it like"),
        ("{openvinno: {hint: latency}}", "did you mean 'openvino'"),
        ("{openvino: {hnt: latency}}", "did you mean 'hint'"),
        ("{openvino: {hint: fast}}", "openvino: hint: .*'fast'"),
        ("{onnxruntime: {provider_options: device_id}}", "write it like device_id=0"),
    ],
)
def test_what_a_target_may_not_say_is_told_with_its_line(runtimes: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=rf"board\.yaml:2: runtimes: .*{message}"):
        with_runtimes(tmp_path, runtimes)
