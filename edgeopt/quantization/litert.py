"""What ai-edge-quantizer makes of a float .tflite file: integers all through, or weights alone.

A range is {"min": array, "max": array} for a tensor by its name in the file: what ai-edge-quantizer calls a QSV. It
knows nothing of where a model came from. https://github.com/google-ai-edge/ai-edge-quantizer
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.backends import tflite as runtime
from edgeopt.formats import tflite

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Ranges = Mapping[str, Mapping[str, Array]]

WITH_WEIGHTS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "CONV_2D_TRANSPOSE", "EMBEDDING_LOOKUP")
PASSING = ("MAX_POOL_2D", "PAD", "RESHAPE", "SLICE", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE", "EXPAND_DIMS")

WITH_CONSTANT = ("ADD", "DIV", "MUL", "SUB")


@dataclass(frozen=True)
class Integers:
    """The form of an integer file.

    `io` is the type of its inputs and outputs: "float32", "int8" or "uint8". `products_per_tensor`: the weights of
    FULLY_CONNECTED have one scale, as the Edge TPU wants, and not one a channel. `inline`: weights are inside the
    flatbuffer, for readers older than the field `Buffer.offset`.
    """

    io: str = "float32"
    products_per_tensor: bool = False
    inline: bool = False


def to_int8(
    model: Path,
    ranges: Ranges,
    in_float: Mapping[str, str] = {},
    integers: Integers = Integers(),
) -> bytes:
    """Integers all through, but for the network's inputs and outputs, which are as `integers.io` says.

    Weights are symmetric, one scale a channel; activations have one scale and zero point a tensor. `ranges` has every
    activation; a weight that it lacks is quantized over the largest magnitude of each channel. `in_float` are operators
    that stay in float, their types by the name of the tensor that they write; the outputs then stay in float too.
    """
    from ai_edge_quantizer import qtyping, quantizer

    recipe, given = _static_recipe(), {name: dict(value) for name, value in ranges.items()}
    if integers.io != "float32":
        names = qtyping.TFLOperationName
        for boundary in (names.INPUT,) if in_float else (names.INPUT, names.OUTPUT):
            recipe.add_static_config(".*", boundary, activation_num_bits=8, weight_num_bits=8)
    if integers.products_per_tensor:
        whole, product = qtyping.QuantGranularity.TENSORWISE, qtyping.TFLOperationName.FULLY_CONNECTED
        recipe.add_static_config(".*", product, activation_num_bits=8, weight_num_bits=8, weight_granularity=whole)
        for name in _weights_of_products(model):
            given.pop(name, None)  # a range for each channel
    for name, operator in in_float.items():
        recipe.add_quantization_config(
            re.escape(name), qtyping.TFLOperationName[operator], algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE
        )
    made = quantizer.Quantizer(str(model), recipe.get_quantization_recipe())
    result = bytes(made.quantize(given, enable_progress_bar=False, enable_progress_report=False).quantized_model)
    if integers.inline or integers.io == "uint8":
        result = _rewritten(result, unsigned=integers.io == "uint8")
    return result


def _rewritten(content: bytes, *, unsigned: bool) -> bytes:
    """The same model with every buffer inside the flatbuffer and, where `unsigned`, uint8 inputs and outputs.

    A QUANTIZE stands between those and the int8 tensors: their zero point is 128 higher, so that it changes no number.
    """
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content)
    for buffer in model.buffers:
        if buffer.offset > 1:  # 0 and 1 are said of buffers inside
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    if unsigned:
        _with_unsigned_boundary(model, schema)
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=tflite.IDENTIFIER)
    return bytes(builder.Output())


def _with_unsigned_boundary(model: Any, schema: Any) -> None:
    graph = model.subgraphs[0]
    quantize = schema.OperatorCodeT()
    quantize.builtinCode = quantize.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    quantize.version = 1
    model.operatorCodes.append(quantize)
    signed = [entry for entry in model.signatureDefs or () if entry.subgraphIndex == 0]
    for side, is_input in (("inputs", True), ("outputs", False)):
        ends, moved = [int(index) for index in getattr(graph, side)], {}
        for position, index in enumerate(ends):
            inner = graph.tensors[index]
            if tflite.dtype_name(inner) != "int8" or inner.quantization is None:
                continue
            outer = copy.deepcopy(inner)
            outer.type = schema.TensorType.UINT8
            outer.name = inner.name + b"_uint8"
            outer.buffer = 0
            outer.quantization.zeroPoint = [int(zero) + 128 for zero in inner.quantization.zeroPoint]
            graph.tensors.append(outer)
            moved[index] = ends[position] = len(graph.tensors) - 1
            operator = schema.OperatorT()
            operator.opcodeIndex = len(model.operatorCodes) - 1
            pair = [ends[position], index] if is_input else [index, ends[position]]
            operator.inputs, operator.outputs = pair[:1], pair[1:]
            graph.operators.insert(0 if is_input else len(graph.operators), operator)
        setattr(graph, side, ends)
        for entry in signed:
            for tensor in getattr(entry, side):
                tensor.tensorIndex = moved.get(tensor.tensorIndex, tensor.tensorIndex)


def calibrated(model: Path, feeds: Iterable[Mapping[str, Array]]) -> dict[str, dict[str, Array]]:
    """The whole range that each activation takes over `feeds`.

    The whole range, not ai-edge-quantizer's moving average of each sample's: that clips what few samples reach.
    """
    from ai_edge_quantizer import calibrator
    from ai_edge_quantizer.utils import qsv_utils

    recipe = _static_recipe()
    observer = calibrator.Calibrator(
        str(model),
        num_threads=1,
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,  # as exact, and 3 to 4 times as fast
        qsv_update_func=qsv_utils.min_max_update,
    )
    for feed in feeds:
        observer.calibrate({runtime.DEFAULT_SIGNATURE: [dict(feed)]}, recipe)
    return dict(observer.get_model_qsvs())


def to_fp16(model: Path) -> bytes:
    """The weights of convolutions and matrix products in float16, computed with in float32."""
    from ai_edge_quantizer import qtyping, quantizer

    made = quantizer.Quantizer(str(model))
    config = qtyping.OpQuantizationConfig(
        weight_tensor_config=qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT),
        compute_precision=qtyping.ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    for operator in WITH_WEIGHTS:
        made.update_quantization_recipe(
            ".*", qtyping.TFLOperationName[operator], config, quantizer.AlgorithmName.FLOAT_CASTING
        )
    return bytes(made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def weights_to_int8(model: Path) -> bytes:
    """8-bit weights, one scale a channel, dequantized when the file is loaded: everything computes in float32."""
    from ai_edge_quantizer import quantizer, recipe

    made = quantizer.Quantizer(str(model), recipe.weight_only_wi8_afp32())
    return bytes(made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def to_dynamic(model: Path, group_size: int = 0) -> bytes:
    """8-bit weights, one scale a channel; activations are quantized at run time, by the range of each.

    With a `group_size`, the weights of matrix products have 4 bits and one scale for so many; 8 where the sum of a
    product has no whole number of groups.
    """
    from ai_edge_quantizer import qtyping, quantizer, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8)
    if group_size:
        granularity = qtyping.QuantGranularity[f"BLOCKWISE_{group_size}"]
        product = qtyping.TFLOperationName.FULLY_CONNECTED
        manager.add_dynamic_config(".*", product, num_bits=4, granularity=granularity)
        for name in _undivided(model, group_size):
            manager.add_dynamic_config(f"^{re.escape(name)}(;|$)", product, num_bits=8)
    made = quantizer.Quantizer(str(model), manager.get_quantization_recipe())
    return bytes(made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def tensors(model: Path, feed: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Every float tensor of the main graph by name, (activations, constants), as they are on one sample."""
    from ai_edge_litert import interpreter as litert

    interpreter = litert.Interpreter(
        model_path=str(model),
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.get_signature_runner(runtime.DEFAULT_SIGNATURE)(**feed)
    computed = activations(model)
    changing: dict[str, Array] = {}
    constant: dict[str, Array] = {}
    for index, tensor in enumerate(tflite.read(model).subgraphs[0].tensors):
        if tflite.dtype_name(tensor) == "float32":
            name = tensor.name.decode()
            (changing if name in computed else constant)[name] = interpreter.get_tensor(index)
    return changing, constant


def activations(model: Path) -> set[str]:
    """The float tensors of the main graph that are computed or given, by name."""
    graph = tflite.read(model).subgraphs[0]
    indices = {int(index) for operator in graph.operators for index in operator.outputs} | set(graph.inputs)
    tensors = [graph.tensors[index] for index in indices]
    return {tensor.name.decode() for tensor in tensors if tflite.dtype_name(tensor) == "float32"}


def passed_on(model: Path, ranges: Ranges) -> dict[str, Mapping[str, Array]]:
    """`ranges`, and those of tensors whose numbers are all among another's (or 0), as a padded or reshaped one's."""
    read, known = tflite.read(model), dict(ranges)
    graph = read.subgraphs[0]
    for operator in graph.operators:
        if tflite.operator_name(read, operator) in PASSING:
            source = graph.tensors[operator.inputs[0]].name.decode()
            for index in operator.outputs:
                if source in known:
                    known.setdefault(graph.tensors[index].name.decode(), known[source])
    return known


def before_outputs(model: Path, *, heads: bool) -> dict[str, str]:
    """What joins, scales or shifts by constants, or moves the numbers of an output: types by the tensor written.

    With `heads` also the operators with weights that compute those numbers, where nothing joins them.
    """
    read = tflite.read(model)
    graph = read.subgraphs[0]
    writers = {int(index): operator for operator in graph.operators for index in operator.outputs}
    found: dict[str, str] = {}
    stack = [int(index) for index in graph.outputs]
    while stack:
        operator = writers.get(stack.pop())
        if operator is None:
            continue
        name = tflite.operator_name(read, operator)
        computed = [int(index) for index in operator.inputs if int(index) in writers]
        joins = name == "CONCATENATION"
        if heads and name in WITH_WEIGHTS:
            found[graph.tensors[operator.outputs[0]].name.decode()] = name
        elif joins or name in PASSING or (name in WITH_CONSTANT and len(computed) == 1):
            found[graph.tensors[operator.outputs[0]].name.decode()] = name
            stack += [] if joins else computed  # what a join reads has scales of its own
    return found


def _undivided(model: Path, group_size: int) -> list[str]:
    """The outputs of matrix products whose sum has no whole number of groups, by name."""
    read = tflite.read(model)
    graph = read.subgraphs[0]
    return [
        graph.tensors[operator.outputs[0]].name.decode()
        for operator in graph.operators
        if tflite.operator_name(read, operator) == "FULLY_CONNECTED"
        and int(graph.tensors[operator.inputs[1]].shape[-1]) % group_size
    ]


def _weights_of_products(model: Path) -> list[str]:
    read = tflite.read(model)
    graph = read.subgraphs[0]
    products = [o for o in graph.operators if tflite.operator_name(read, o) == "FULLY_CONNECTED"]
    return [graph.tensors[operator.inputs[1]].name.decode() for operator in products]


def _static_recipe() -> Any:
    from ai_edge_quantizer import qtyping, quantizer, recipe, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(recipe.static_wi8_ai8())
    for boundary in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        manager.add_quantization_config(".*", boundary, algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE)
    return manager
