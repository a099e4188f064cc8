"""ONNX to torch: a graph of static shapes as a `torch.fx.GraphModule` of real layers, that can be pruned and exported.

onnxslim folds and simplifies the graph first, so that the operators that are left are few and their shapes are known;
`onnx_operators` says what each becomes. Control flow, recurrent networks and shapes that depend on data are refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError, StageError, UnsupportedOperator
from edgeopt.formats.onnx_node import Node, Value, as_tensor
from edgeopt.formats.onnx_operators import OPERATORS
from edgeopt.formats.onnx_quantizers import QUANTIZERS

if TYPE_CHECKING:
    import onnx
    from torch import fx, nn

Translations = Mapping[str, Callable[[Node], Any]]

# A batch norm is what pruning recalibrates; and a Gemm of tokens would stand between reshapes to fixed sizes.
KEPT_APART = ["FusionConvBN", "FusionConvTransposeBN", "FusionGemm"]
KEPT_AS_THEY_ARE = ["graph_fusion", "weight_tying"]  # what is alike stays apart: training makes it unlike


def import_onnx(path: Path, batch: int = 1) -> nn.Module:
    """The model in evaluation mode; it takes the graph's inputs in order and returns a tensor, or a tuple of several.

    `batch` stands for a free first dimension. Raises InputError for a file that is not ONNX, StageError for other free
    dimensions, UnsupportedOperator that lists every operator which is missing, with its number.
    """
    module = _built(_simplified(path, batch, skip_fusion_patterns=KEPT_APART), path, OPERATORS)[0]
    _give_biases(module)
    return module


def import_quantized(path: Path, batch: int = 1) -> tuple[fx.GraphModule, dict[str, str]]:
    """A Q/DQ model whose quantizers are fake, to be trained: as `import_onnx`, and what its parameters are.

    The second maps each parameter or buffer to the initializer of the file that it stands for: the integers of a
    weight, of which it is the real value, or a tensor that it holds as it is (a bias, a norm's scale). Others are made
    from several or changed ones.
    """
    simplified = _simplified(path, batch, skip_optimizations=KEPT_AS_THEY_ARE)
    module, held = _built(simplified, path, {**OPERATORS, **QUANTIZERS})
    module.graph.eliminate_dead_code()
    module.recompile()
    return module, held


def _built(model: onnx.ModelProto, path: Path, operators: Translations) -> tuple[fx.GraphModule, dict[str, str]]:
    import torch
    from torch import fx

    graph, opset = model.graph, next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    missing = Counter(_qualified(node) for node in graph.node if _qualified(node) not in operators)
    if missing:
        listed = ", ".join(f"{name} ({count})" for name, count in missing.most_common())
        raise UnsupportedOperator(f"ONNX import lacks operators of this model: {listed}", where=path.name)
    values: dict[str, Value] = {"": None, **_initializers(model, path)}
    shapes, dtypes = _types(graph)
    root, out, held = torch.nn.Module(), fx.Graph(), dict[str, str]()
    for entry in graph.input:
        if entry.name not in values:
            values[entry.name] = out.placeholder(_identifier(entry.name))
    for position, onnx_node in enumerate(graph.node):
        node = Node(onnx_node, opset, values, shapes, dtypes, root, out, position, held)
        own = onnx_node.op_type in QUANTIZERS  # a constant weight keeps its quantizer
        made = (None if own else node.folded()) or operators[onnx_node.op_type](node)
        values.update(zip(onnx_node.output, made if isinstance(made, (list, tuple)) else [made]))
    results = tuple(as_tensor(values[entry.name], f"output_{i}", root, out) for i, entry in enumerate(graph.output))
    out.output(results[0] if len(results) == 1 else results)
    return fx.GraphModule(root, out, class_name="ImportedModel").eval(), held


def _give_biases(module: fx.GraphModule) -> None:
    """A constant that is added to what a linear layer without a bias gives, and to nothing else, becomes its bias."""
    import operator

    import torch

    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in (torch.add, operator.add) or len(node.args) != 2:
            continue
        for found, constant in (node.args, node.args[::-1]):
            if not (isinstance(found, torch.fx.Node) and isinstance(constant, torch.fx.Node)):
                continue
            if found.op != "call_module" or constant.op != "get_attr" or len(found.users) > 1:
                continue
            layer, value = module.get_submodule(found.target), module._buffers.get(constant.target)
            fits = isinstance(layer, torch.nn.Linear) and value is not None and value.shape == (layer.out_features,)
            if fits and layer.bias is None:
                layer.bias = torch.nn.Parameter(value.clone())
                node.replace_all_uses_with(found)
                module.graph.erase_node(node)
                if not constant.users:
                    module.graph.erase_node(constant)
                    delattr(module, constant.target)
                break
    module.recompile()


def _simplified(path: Path, batch: int, **options: Any) -> onnx.ModelProto:
    import onnx
    import onnxslim
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except (DecodeError, OSError) as error:
        raise InputError(f"{path}: not an ONNX file that can be read: {error}") from error
    _fix_shapes(model.graph, batch)
    slim = onnxslim.slim(model, **options)
    del slim.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(slim, data_prop=True)


def _fix_shapes(graph: onnx.GraphProto, batch: int) -> None:
    """Give each free first dimension of an input the size `batch`, and forget all that was said of other shapes."""
    constants = {entry.name for entry in graph.initializer}
    for entry in graph.input:
        if entry.name in constants:
            continue
        for axis, dimension in enumerate(entry.type.tensor_type.shape.dim):
            if dimension.HasField("dim_value") and dimension.dim_value > 0:
                continue
            if axis:
                raise StageError(
                    f"the input {entry.name} leaves dimension {axis} ({dimension.dim_param or '?'}) free",
                    remedy="Export the model with fixed dimensions; only the batch may be free.",
                )
            dimension.dim_value = batch
    del graph.value_info[:]
    for entry in graph.output:
        entry.type.tensor_type.ClearField("shape")


def _initializers(model: onnx.ModelProto, path: Path) -> dict[str, Value]:
    from onnx import numpy_helper

    return {entry.name: numpy_helper.to_array(entry, str(path.parent)) for entry in model.graph.initializer}


def _types(graph: onnx.GraphProto) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    shapes, dtypes = {}, {}
    for entry in (*graph.input, *graph.value_info, *graph.output):
        tensor = entry.type.tensor_type
        dtypes[entry.name] = tensor.elem_type
        dimensions = tensor.shape.dim
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in dimensions):
            shapes[entry.name] = tuple(d.dim_value for d in dimensions)
    return shapes, dtypes


def _qualified(node: onnx.NodeProto) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() and c.isascii() else "_" for c in name)
