"""Models brought in and described: the formats by their own functions, on small real models."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import numpy as np
import onnx
import onnx.helper as oh
import pytest
import torch
from onnx import TensorProto, numpy_helper

from edgeopt import formats
from edgeopt.errors import InputError, StageError
from edgeopt.formats import Imported, ModelRef, canonical, counting
from edgeopt.formats import onnx as onnx_format
from edgeopt.formats import openvino as openvino_format
from edgeopt.formats import pt2 as pt2_format
from edgeopt.formats import torch as torch_format
from edgeopt.samples import Preprocess, write_samples

FASHION = Path(__file__).parent.parent / "sample_models" / "fashion_mnist"
FASHION_MACS = 80_508_672

SMALL_NET = """
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)
            self.fc = nn.Linear(4, 5)
        def forward(self, x):
            return self.fc(torch.relu(self.conv(x)).mean((2, 3)))

    def build():
        return Net()
"""


def nothing(fraction: float | None, text: str) -> None:
    """Progress that nobody reads."""


@pytest.fixture
def samples(tmp_path: Path) -> Callable[..., Path]:
    """Writes arrays as a folder of samples."""

    def write(**arrays: np.ndarray) -> Path:
        folder = tmp_path / f"samples_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        write_samples(folder, arrays, None, Preprocess())
        return folder

    return write


@pytest.fixture
def source(tmp_path: Path) -> Callable[..., str]:
    """Writes a Python file and names a function of it as a factory."""

    def write(code: str, function: str = "build", name: str = "net") -> str:
        folder = tmp_path / f"source_{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / f"{name}.py").write_text(dedent(code))
        return f"{folder / name}.py:{function}"

    return write


@pytest.fixture
def imported(tmp_path: Path) -> Callable[..., tuple[Imported, onnx.ModelProto, Path]]:
    """Imports a model; gives what was told, the canonical ONNX and its folder."""

    def bring(model: str | Path, data: Path | None = None, weights: str | None = None):
        out = tmp_path / f"out_{len(list(tmp_path.iterdir()))}"
        out.mkdir()
        told = formats.importer(str(model)).to_onnx(ModelRef(str(model), weights), data, out, nothing)
        return told, onnx.load(out / "model.onnx"), out

    return bring


def images(count: int = 4, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 3, size, size), np.float32)


def conv_graph(opset: int = 20, shape: tuple[object, ...] = ("N", 3, 8, 8), **changes: object) -> onnx.ModelProto:
    """A convolution of 3 to 4 channels and its relu."""
    weight = numpy_helper.from_array(np.full((4, 3, 3, 3), 0.1, np.float32), "w")
    graph = oh.make_graph(
        [oh.make_node("Conv", ["x", "w"], ["c"], pads=[1] * 4), oh.make_node("Relu", ["c"], ["y"])],
        "graph",
        [oh.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [oh.make_tensor_value_info("y", TensorProto.FLOAT, (shape[0], 4, *shape[2:]))],
        [weight],
    )
    model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)], producer_name="someone")
    model.ir_version = 8
    return model


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


class TestTorch:
    def test_free_batch_names_and_numbers(self, imported, source, samples):
        told, model, out = imported(source(SMALL_NET), samples(picture=images()))
        assert [str(spec) for spec in told.produced.inputs] == ["picture: float32[batch, 3, 8, 8]"]
        assert [str(spec) for spec in told.produced.outputs] == ["output: float32[batch, 5]"]
        details = told.produced.details
        assert (details["parameters"], details["macs"], details["batch"]) == (137, 3 * 4 * 9 * 64 + 20, "free")
        assert 0 <= details["check"] < 1e-4
        onnx.checker.check_model(model)
        assert torch.export.load(out / "model.pt2").module()(torch.zeros(3, 3, 8, 8)).shape == (3, 5)

    def test_same_bytes_from_another_folder(self, imported, source, samples):
        factory = source(SMALL_NET)
        copy = Path(factory.split(":")[0]).parent.with_name("elsewhere")
        shutil.copytree(Path(factory.split(":")[0]).parent, copy)
        data = samples(picture=images())
        _, _, first = imported(factory, data)
        _, _, second = imported(f"{copy}/net.py:build", data)
        for name in ("model.onnx", "model.pt2"):
            assert (first / name).read_bytes() == (second / name).read_bytes(), name
            assert b"elsewhere" not in (second / name).read_bytes()

    def test_sources_are_the_users_own_files(self, imported, source, samples):
        factory = source("from layers import Net\n\ndef build():\n    return Net()\n")
        folder = Path(factory.split(":")[0]).parent
        (folder / "layers.py").write_text(dedent(SMALL_NET))
        told, _, _ = imported(factory, samples(x=images()))
        assert [path.name for path in told.sources] == ["layers.py", "net.py"]

    def test_package_factory(self, imported, source, samples, monkeypatch):
        factory = source(SMALL_NET, name="some_package_net")
        monkeypatch.chdir(Path(factory.split(":")[0]).parent)
        told, _, _ = imported("some_package_net:build", samples(x=images()))
        assert [path.name for path in told.sources] == ["some_package_net.py"]

    def test_inputs_by_name_in_any_order_and_dict_outputs(self, imported, source, samples):
        factory = source("""
            import torch

            class Net(torch.nn.Module):
                def __init__(self):
                    super().__init__()
                    self.words = torch.nn.Embedding(10, 4)
                def forward(self, ids, scale=None, *, shift=None):
                    return {"sum": self.words(ids).sum(1) + shift, "ids": ids + 1}

            def build():
                return Net()
        """)
        ids = np.array([[1, 2, 3], [9, 8, 7], [0, 0, 1]])
        told, _, _ = imported(factory, samples(shift=np.ones((3, 4), np.float32), ids=ids))
        assert {str(spec) for spec in told.produced.inputs} == {"ids: int64[batch, 3]", "shift: float32[batch, 4]"}
        assert [spec.name for spec in told.produced.outputs] == ["sum", "ids_out"]
        assert told.produced.details["check"] < 1e-5

    def test_several_outputs_are_numbered(self, imported, source, samples):
        factory = source("""
            import torch

            class Net(torch.nn.Module):
                def forward(self, a, b):
                    return a + b, (a * b,)

            def build():
                return Net()
        """)
        told, _, _ = imported(factory, samples(left=images(), right=images()))
        assert [spec.name for spec in told.produced.outputs] == ["output_0", "output_1"]
        assert [spec.name for spec in told.produced.inputs] == ["left", "right"]

    def test_a_batch_that_cannot_be_free_is_told(self, imported, source, samples):
        factory = source(SMALL_NET.replace(".mean((2, 3)))", ".reshape(1, -1, 4, 64).mean((0, 1, 3)).reshape(1, 4))"))
        told, _, _ = imported(factory, samples(x=images()))
        assert told.produced.details["batch"] == "static"
        assert told.produced.inputs[0].shape == (1, 3, 8, 8)
        assert "the batch is fixed at 1" in told.produced.details["notes"][0]

    def test_random_model_fails_its_check(self, imported, source, samples):
        factory = source("""
            import torch

            class Net(torch.nn.Module):
                def forward(self, x):
                    return x + torch.rand_like(x)

            def build():
                return Net()
        """)
        with pytest.raises(StageError, match="computes something else"):
            imported(factory, samples(x=images()))

    def test_needs_data(self, imported, source):
        with pytest.raises(InputError, match="does not say what inputs") as caught:
            imported(source(SMALL_NET))
        assert "data" in (caught.value.remedy or "")

    def test_samples_that_do_not_fit(self, imported, source, samples):
        with pytest.raises(InputError, match="raised RuntimeError") as caught:
            imported(source(SMALL_NET), samples(x=np.zeros((4, 2, 8, 8), np.float32)))
        assert "net.py:11" in str(caught.value) and "x: float32[N, 2, 8, 8]" in (caught.value.remedy or "")

    @pytest.mark.parametrize(
        ("code", "function", "message", "where"),
        [
            (SMALL_NET, "biuld", "has no function 'biuld'", ""),
            ("def build():\n    return {}['weights']\n", "build", "KeyError: 'weights'", "net.py:2"),
            ("def build(:\n", "build", "not valid Python", "net.py:1"),
            ("import nothing_like_this\n", "build", "nothing_like_this", "net.py:1"),
            ("def build():\n    return 3\n", "build", "returns int, not a torch.nn.Module", ""),
            (
                "def build(width):\n    return width\n",
                "build",
                "missing 1 required positional argument",
                "net.py:build",
            ),
        ],
    )
    def test_wrong_factories_are_told(self, imported, source, samples, code, function, message, where):
        with pytest.raises(InputError) as caught:
            imported(source(code, function), samples(x=images()))
        assert message in caught.value.message and where in caught.value.message

    def test_nearest_function_is_suggested(self, imported, source, samples):
        with pytest.raises(InputError) as caught:
            imported(source(SMALL_NET, "biuld"), samples(x=images()))
        assert caught.value.remedy == "Did you mean build?"

    def test_missing_file(self, imported, samples, tmp_path):
        with pytest.raises(InputError, match="no such file"):
            imported(f"{tmp_path}/absent.py:build", samples(x=images()))


class TestWeights:
    @pytest.fixture
    def net(self) -> torch.nn.Module:
        torch.manual_seed(7)
        module = torch.nn.Module()
        module.conv, module.fc = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Linear(4, 5)
        return module

    @pytest.mark.parametrize("wrap", [dict, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s}])
    def test_checkpoints(self, imported, source, samples, tmp_path, net, wrap):
        torch.save(wrap(net.state_dict()), tmp_path / "net.pt")
        _, model, _ = imported(source(SMALL_NET), samples(x=images()), str(tmp_path / "net.pt"))
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        np.testing.assert_array_equal(stored["conv.weight"], net.conv.weight.detach().numpy())

    def test_prefix_of_data_parallel(self, imported, source, samples, tmp_path, net):
        torch.save({f"module.{name}": value for name, value in net.state_dict().items()}, tmp_path / "net.pt")
        told, _, _ = imported(source(SMALL_NET), samples(x=images()), str(tmp_path / "net.pt"))
        assert told.produced.details["parameters"] == 137

    def test_names_that_do_not_match(self, source, samples, tmp_path, net, imported):
        state = net.state_dict()
        state["head.weight"] = state.pop("fc.weight")
        torch.save(state, tmp_path / "net.pt")
        with pytest.raises(InputError) as caught:
            imported(source(SMALL_NET), samples(x=images()), str(tmp_path / "net.pt"))
        assert "missing: fc.weight" in caught.value.message
        assert "not in the model: head.weight" in caught.value.message

    def test_shapes_that_do_not_match(self, source, samples, tmp_path, net, imported):
        torch.save({**net.state_dict(), "fc.bias": torch.zeros(6)}, tmp_path / "net.pt")
        with pytest.raises(InputError, match=r"fc.bias: \[6\] in the file, \[5\] in the model"):
            imported(source(SMALL_NET), samples(x=images()), str(tmp_path / "net.pt"))

    def test_pickled_module_is_refused(self, source, samples, tmp_path, net, imported):
        torch.save(net, tmp_path / "net.pt")
        with pytest.raises(InputError, match="Python objects") as caught:
            imported(source(SMALL_NET), samples(x=images()), str(tmp_path / "net.pt"))
        assert "state_dict" in (caught.value.remedy or "")

    @pytest.mark.parametrize("name", ["net.pt", "net.safetensors"])
    def test_rubbish(self, source, samples, tmp_path, imported, name):
        (tmp_path / name).write_bytes(b"not weights at all")
        with pytest.raises(InputError, match=r"not a|Python objects"):
            imported(source(SMALL_NET), samples(x=images()), str(tmp_path / name))


class TestOnnx:
    def test_batch_is_named_and_traces_are_gone(self, imported, samples, tmp_path):
        told, model, _ = imported(saved(conv_graph(), tmp_path / "m.onnx"), samples(x=images()))
        assert str(told.produced.inputs[0]) == "x: float32[batch, 3, 8, 8]"
        assert str(told.produced.outputs[0]) == "y: float32[batch, 4, 8, 8]"
        assert told.produced.details["check"] == 0 and not model.producer_name
        assert [node.name for node in model.graph.node] == ["Conv_0", "Relu_1"]

    def test_same_bytes_whatever_was_noted_in_it(self, imported, samples, tmp_path):
        noted = conv_graph()
        noted.doc_string = "made on Tuesday"
        noted.graph.node[0].metadata_props.add(key="trace", value="/home/someone/net.py")
        _, _, first = imported(saved(conv_graph(), tmp_path / "a.onnx"))
        _, _, second = imported(saved(noted, tmp_path / "b.onnx"))
        assert (first / "model.onnx").read_bytes() == (second / "model.onnx").read_bytes()

    def test_free_sizes_become_those_of_the_samples(self, imported, samples, tmp_path):
        path = saved(conv_graph(shape=("N", 3, "H", "W")), tmp_path / "m.onnx")
        told, _, _ = imported(path, samples(x=images(size=6)))
        assert told.produced.inputs[0].shape == ("batch", 3, 6, 6)
        assert told.produced.outputs[0].shape == ("batch", 4, 6, 6)
        assert "'x': the free dimension H is 6" in told.produced.details["notes"][0]

    def test_minus_one_is_free_too(self, imported, samples, tmp_path):
        told, _, _ = imported(saved(conv_graph(shape=(-1, 3, 8, 8)), tmp_path / "m.onnx"), samples(x=images()))
        assert [spec.shape[0] for spec in (*told.produced.inputs, *told.produced.outputs)] == ["batch", "batch"]

    def test_fixed_batch_stays(self, imported, samples, tmp_path):
        told, _, _ = imported(saved(conv_graph(shape=(1, 3, 8, 8)), tmp_path / "m.onnx"), samples(x=images()))
        assert told.produced.details["batch"] == "static" and told.produced.details["check"] == 0

    def test_opset_11_is_converted(self, imported, samples, tmp_path):
        told, _, _ = imported(saved(conv_graph(opset=11), tmp_path / "m.onnx"), samples(x=images()))
        assert told.produced.details["opset"] == 17 and told.produced.details["check"] == 0
        assert "converted from opset 11 to 17" in told.produced.details["notes"]

    def test_newest_opset_is_converted(self, imported, samples, tmp_path):
        told, _, _ = imported(saved(conv_graph(opset=24), tmp_path / "m.onnx"), samples(x=images()))
        assert told.produced.details["opset"] == 21

    def test_external_weights_come_inside(self, imported, samples, tmp_path):
        onnx.save(conv_graph(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        told, _, out = imported(tmp_path / "m.onnx", samples(x=images()))
        assert [path.name for path in told.sources] == ["m.data"]
        assert told.produced.details["check"] == 0 and [path.name for path in out.iterdir()] == ["model.onnx"]
        size = onnx_format.inspect(ModelRef(str(tmp_path / "m.onnx")), None).size_bytes
        assert size == (tmp_path / "m.onnx").stat().st_size + (tmp_path / "m.data").stat().st_size

    def test_large_model_keeps_its_weights_beside_it(self, imported, samples, tmp_path, monkeypatch):
        monkeypatch.setattr(canonical, "LARGEST_FILE_BYTES", 256)
        told, _, out = imported(saved(conv_graph(), tmp_path / "m.onnx"), samples(x=images()))
        assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.data"}
        assert told.produced.details["macs"] == 4 * 64 * 27 and told.produced.details["check"] is None
        onnx.checker.check_model(str(out / "model.onnx"))

    def test_large_external_weights_are_copied_and_never_loaded(self, imported, samples, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_format, "SMALL", 0)
        monkeypatch.setattr(canonical, "LARGEST_FILE_BYTES", 256)
        monkeypatch.setattr(canonical, "PIECE_BYTES", 100)
        onnx.save(conv_graph(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        told, model, out = imported(tmp_path / "m.onnx", samples(x=images()))
        assert {path.name for path in out.iterdir()} == {"model.onnx", "model.onnx.data"}
        assert np.array_equal(numpy_helper.to_array(model.graph.initializer[0]), np.full((4, 3, 3, 3), 0.1, np.float32))
        assert told.produced.details["macs"] == 4 * 64 * 27 and told.produced.details["check"] is None
        assert "too large to be compared with its source" in told.produced.details["notes"]

    def test_large_external_weights_that_end_early(self, imported, tmp_path, monkeypatch):
        monkeypatch.setattr(onnx_format, "SMALL", 0)
        monkeypatch.setattr(canonical, "LARGEST_FILE_BYTES", 256)
        onnx.save(conv_graph(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
        (tmp_path / "m.data").write_bytes((tmp_path / "m.data").read_bytes()[:100])
        with pytest.raises(InputError, match="end too early"):
            imported(tmp_path / "m.onnx")

    @pytest.mark.parametrize("location", ["../secret.data", "/etc/passwd", "link.data"])
    def test_external_weights_stay_in_the_folder(self, imported, tmp_path, location):
        folder = tmp_path / "model"
        folder.mkdir()
        (tmp_path / "secret.data").write_bytes(bytes(432))
        (folder / "link.data").symlink_to(tmp_path / "secret.data")
        model = conv_graph()
        onnx.external_data_helper.set_external_data(model.graph.initializer[0], location)
        model.graph.initializer[0].ClearField("raw_data")
        (folder / "m.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(InputError, match="outside the model's folder"):
            imported(folder / "m.onnx")

    @pytest.mark.parametrize("content", [b"", b"hello, I am text\n", bytes(range(256)) * 8, b"PK\x03\x04" + bytes(99)])
    def test_what_is_not_onnx(self, imported, tmp_path, content):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.onnx: not an ONNX model"):
            imported(tmp_path / "x.onnx")

    @pytest.mark.parametrize(
        "arrays",
        [
            {"x": np.zeros((4, 3, 9, 8), np.float32)},
            {"x": np.zeros((4, 3, 8), np.float32)},
            {"x": np.zeros((4, 3, 8, 8), np.uint8)},
            {"x": images(), "extra": images()},
        ],
    )
    def test_samples_that_do_not_fit(self, imported, samples, tmp_path, arrays):
        with pytest.raises(InputError) as caught:
            imported(saved(conv_graph(), tmp_path / "m.onnx"), samples(**arrays))
        assert "samples: x: " in caught.value.message and "x: float32[N, 3, 8, 8]" in caught.value.message

    def test_integer_inputs_and_two_outputs(self, imported, samples, tmp_path):
        table = numpy_helper.from_array(np.arange(40, dtype=np.float32).reshape(10, 4), "table")
        graph = oh.make_graph(
            [oh.make_node("Gather", ["table", "ids"], ["rows"]), oh.make_node("Neg", ["rows"], ["negative"])],
            "graph",
            [oh.make_tensor_value_info("ids", TensorProto.INT64, ("b", 2))],
            [oh.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("rows", "negative")],
            [table],
        )
        path = saved(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
        told, _, _ = imported(path, samples(ids=np.array([[1, 9], [3, 0]], np.int32)))
        assert [str(spec) for spec in told.produced.outputs] == [
            "rows: float32[batch, 2, 4]", "negative: float32[batch, 2, 4]",
        ]  # fmt: skip
        assert (told.produced.details["parameters"], told.produced.details["macs"]) == (40, 0)

    def test_outputs_that_mix_samples_fix_the_batch(self, imported, samples, tmp_path):
        model = conv_graph()
        model.graph.node.add(op_type="ReduceMax", input=["y"], output=["top"])
        model.graph.output.add().CopyFrom(oh.make_tensor_value_info("top", TensorProto.FLOAT, None))
        told, _, _ = imported(saved(model, tmp_path / "m.onnx"), samples(x=images()))
        assert told.produced.inputs[0].shape == (1, 3, 8, 8) and told.produced.details["batch"] == "static"
        assert told.produced.details["check"] == 0


class TestCounting:
    def macs(self, nodes, weights, inputs, opset=20) -> int | None:
        tensors = [numpy_helper.from_array(np.zeros(*spec), name) for name, spec in weights.items()]
        values = [oh.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
        outputs = [oh.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
        graph = oh.make_graph(nodes, "graph", values, outputs, tensors)
        return counting.macs(oh.make_model(graph, opset_imports=[oh.make_opsetid("", opset)]))

    def test_grouped_and_strided_convolution(self):
        node = oh.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1] * 4)
        assert self.macs([node], {"w": ((6, 2, 3, 3),)}, {"x": ("N", 4, 8, 8)}) == 6 * 4 * 4 * 2 * 9

    def test_transposed_convolution(self):
        node = oh.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
        assert self.macs([node], {"w": ((4, 6, 2, 2),)}, {"x": ("N", 4, 8, 8)}) == 4 * 64 * 6 * 4

    def test_matrix_products_divide_by_a_fixed_batch(self):
        nodes = [oh.make_node("MatMul", ["x", "w"], ["h"]), oh.make_node("Gemm", ["h", "v"], ["y"], transB=1)]
        assert self.macs(nodes, {"w": ((5, 7),), "v": ((3, 7),)}, {"x": (4, 5)}) == 5 * 7 + 7 * 3

    def test_recurrent(self):
        node = oh.make_node("GRU", ["x", "w", "r"], ["y"], hidden_size=4)
        weights = {"w": ((1, 12, 3), np.float32), "r": ((1, 12, 4), np.float32)}
        assert self.macs([node], weights, {"x": (6, 1, 3)}) == (12 * 3 + 12 * 4) * 6 // 6

    def test_unknown_is_none(self):
        node = oh.make_node("Conv", ["x", "w"], ["y"])
        assert self.macs([node], {"w": ((4, 3, 3, 3),)}, {"x": ("N", 3, "H", "W")}) is None

    def test_quantized_graph_is_int8_and_counts_its_weights(self):
        scale = [numpy_helper.from_array(np.array(0.1, np.float32), "s"), numpy_helper.from_array(np.uint8(0), "z")]
        per_channel = numpy_helper.from_array(np.full(4, 0.1, np.float32), "ws")
        weight = numpy_helper.from_array(np.zeros((4, 3, 3, 3), np.int8), "w")
        nodes = [
            oh.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            oh.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            oh.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0),
            oh.make_node("Conv", ["xd", "wd"], ["y"]),
        ]
        value = oh.make_tensor_value_info
        graph = oh.make_graph(
            nodes,
            "graph",
            [value("x", TensorProto.FLOAT, ("N", 3, 8, 8))],
            [value("y", TensorProto.FLOAT, None)],
            [*scale, per_channel, weight],
        )
        model = oh.make_model(graph, opset_imports=[oh.make_opsetid("", 20)])
        assert counting.precision(model) == "int8" and counting.parameters(model) == 108
        assert counting.macs(model) == 4 * 36 * 27
        assert counting.operators(model) == {"DequantizeLinear": 2, "Conv": 1, "QuantizeLinear": 1}


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.ReLU()).eval()
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own pickling of its own tree specifications
        program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path)
    return path


class TestPt2:
    def rewritten(self, program: Path, path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
        with zipfile.ZipFile(program) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        change(members)
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    def test_import_with_samples(self, imported, samples, program):
        told, _, _ = imported(program, samples(image=images()))
        assert str(told.produced.inputs[0]) == "image: float32[batch, 3, 8, 8]"
        assert told.produced.details["check"] < 1e-5 and told.produced.details["parameters"] == 112

    def test_import_without_samples(self, imported, program):
        told, _, _ = imported(program)
        assert told.produced.details["check"] is None and told.produced.inputs[0].name == "input"

    def test_inspect(self, samples, program):
        summary = pt2_format.inspect(ModelRef(str(program)), samples(image=images()))
        assert (summary.parameters, summary.macs, summary.precision) == (112, 4 * 36 * 27, "fp32")

    def test_code_in_a_shape_is_refused(self, imported, tmp_path, program):
        def change(members: dict[str, bytes]) -> None:
            old = members["net/models/model.json"].decode()
            new = old.replace('"expr_str": "Symbol(\'', "\"expr_str\": \"__import__('os').getcwd() or Symbol('")
            assert new != old
            members["net/models/model.json"] = new.encode()

        with pytest.raises(InputError, match="is not arithmetic"):
            imported(self.rewritten(program, tmp_path / "net.pt2", change))

    def test_foreign_operator_is_refused(self, imported, tmp_path, program):
        def change(members: dict[str, bytes]) -> None:
            members["net/models/model.json"] = members["net/models/model.json"].replace(
                b"torch.ops.aten.relu.default", b"torch.os.system"
            )

        with pytest.raises(InputError, match=r"'torch\.os\.system' is not torch's own"):
            imported(self.rewritten(program, tmp_path / "net.pt2", change))

    def test_pickled_weight_is_refused(self, imported, tmp_path, program):
        def change(members: dict[str, bytes]) -> None:
            name = "net/data/weights/model_weights_config.json"
            config = json.loads(members[name])
            config["config"]["0.weight"]["use_pickle"] = True
            members[name] = json.dumps(config).encode()

        with pytest.raises(InputError, match=r"'0\.weight' is a pickled object"):
            imported(self.rewritten(program, tmp_path / "net.pt2", change))

    @pytest.mark.parametrize(
        "name", ["net/data/aotinductor/model/x.so", "net/../../x", "net/data/constants/opaque_obj_0"]
    )
    def test_foreign_members_are_refused(self, imported, tmp_path, program, name):
        path = self.rewritten(program, tmp_path / "net.pt2", lambda members: members.update({name: b"x"}))
        with pytest.raises(InputError, match="is not data of a program"):
            imported(path)

    def test_pickled_example_is_refused(self, imported, tmp_path, program):
        torch.save(((Path("x"),), {}), tmp_path / "example.pt")
        example = {"net/data/sample_inputs/model.pt": (tmp_path / "example.pt").read_bytes()}
        with pytest.raises(InputError, match="example inputs are pickled"):
            imported(self.rewritten(program, tmp_path / "net.pt2", lambda members: members.update(example)))

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04rubbish"])
    def test_what_is_no_program(self, imported, tmp_path, content):
        (tmp_path / "x.pt2").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.pt2: not a program"):
            imported(tmp_path / "x.pt2")


class TestInspect:
    def test_onnx(self, tmp_path):
        summary = onnx_format.inspect(ModelRef(str(saved(conv_graph(), tmp_path / "m.onnx"))), None)
        assert (summary.parameters, summary.macs, summary.precision) == (108, 4 * 64 * 27, "fp32")
        assert summary.operators == {"Conv": 1, "Relu": 1}
        assert summary.provenance["producer"] == "someone" and summary.provenance["opset"] == {"ai.onnx": 20}

    def test_torch_without_example(self, source):
        summary = torch_format.inspect(ModelRef(source(SMALL_NET)), None)
        assert (summary.inputs, summary.parameters, summary.macs) == ((), 137, None)

    def test_torch_with_example(self, source, samples):
        summary = torch_format.inspect(ModelRef(source(SMALL_NET)), samples(x=images()))
        assert str(summary.outputs[0]) == "output: float32[batch, 5]" and summary.macs == 3 * 4 * 9 * 64 + 20

    def test_openvino(self, tmp_path):
        openvino = pytest.importorskip("openvino")
        openvino.save_model(
            openvino.convert_model(saved(conv_graph(), tmp_path / "m.onnx")), tmp_path / "m.xml", compress_to_fp16=False
        )
        summary = openvino_format.inspect(ModelRef(str(tmp_path / "m.xml")), None)
        assert (summary.parameters, summary.macs, summary.precision) == (108, 4 * 64 * 27, "fp32")
        assert str(summary.inputs[0]) == "x: float32[batch, 3, 8, 8]" and summary.operators["Convolution"] == 1
        assert summary.size_bytes == sum((tmp_path / f"m.{suffix}").stat().st_size for suffix in ("xml", "bin"))

    @pytest.mark.parametrize("content", ["", "hello", "<html></html>"])
    def test_what_is_no_openvino(self, tmp_path, content):
        (tmp_path / "x.xml").write_text(content)
        with pytest.raises(InputError, match=r"x\.xml: not an OpenVINO model"):
            openvino_format.inspect(ModelRef(str(tmp_path / "x.xml")), None)

    def test_formats_that_cannot_be_imported_say_so(self):
        with pytest.raises(InputError, match="not optimized further"):
            formats.importer("model.xml")
