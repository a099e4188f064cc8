"""ncnn: runs .param files (with .bin beside them) on the CPU, one sample at a time.

ncnn's tensors have no names of their own inputs but those of the converter (in0, in1, ...), no element type and no
batch: the artifact's settings tell names and shapes. Weights are in float32 or float16; INT8 models are not made for
it, because its quantizer is a program that no package brings. This module knows nothing of how a file was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterator, Mapping, Sequence, Set, Tuple

from edgeopt.artifact import TensorSpec
from edgeopt.backends import check_feeds
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, StageError, UnsupportedOperator
from edgeopt.placement import CPU, Placed

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "ncnn"
DISTRIBUTION = "ncnn"
IMPORTS = ("ncnn",)

MAGIC = "7767517"  # the first line of a .param file
SETTINGS = ("precision", "inputs", "outputs")
PRECISIONS = ("fp32", "fp16")
HALF = ("use_fp16", "use_bf16")  # how ncnn's options of 16 bits begin; which there are depends on its version


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> NcnnSession:
    """The session of the file `main` (.param, its .bin beside it) with `threads` threads.

    `runtime` holds "precision" ("fp32", or "fp16" where the CPU computes in it), and "inputs" and "outputs" in the
    file's order, as JSON, each of one sample.
    """
    try:
        import ncnn
    except ImportError as error:
        message = f"the backend ncnn cannot be loaded: {error}"
        raise MissingDependency(message, remedy=f"pip install {DISTRIBUTION}") from error
    if set(runtime) != set(SETTINGS) or runtime["precision"] not in PRECISIONS:
        unknown = sorted(set(runtime) - set(SETTINGS))
        what = f"has no runtime setting {', '.join(unknown)}" if unknown else f"needs {', '.join(SETTINGS)}"
        raise InputError(f"the backend ncnn {what}", remedy="Give the model to `edgeopt convert`.")
    missing = unknown_layers(ncnn, main)
    if missing:
        raise UnsupportedOperator(f"{main.name}: ncnn has no operator {', '.join(sorted(missing))}")
    net = ncnn.Net()
    net.opt.use_vulkan_compute, net.opt.num_threads = False, threads
    for setting in dir(net.opt):
        if setting.startswith(HALF):
            setattr(net.opt, setting, setting.startswith("use_fp16") and runtime["precision"] == "fp16")
    weights = main.with_suffix(".bin")
    if net.load_param(str(main)) != 0 or not weights.is_file() or net.load_model(str(weights)) != 0:
        raise CorruptArtifact(f"{main.name} and {weights.name} are not a model that ncnn {ncnn.__version__} reads")
    inputs, outputs = (tuple(TensorSpec.from_json(spec) for spec in runtime[side]) for side in ("inputs", "outputs"))
    return NcnnSession(ncnn, net, inputs, outputs)


def placement(main: Path, runtime: Mapping[str, Any], threads: int, feeds: Feeds) -> Iterator[Placed]:
    """The layers as they were loaded. Which of them compute in fp16, ncnn does not tell."""
    session = load(main, runtime, threads)
    for layer in session.net.layers():
        if layer.type not in ("Input", "Split"):  # Split hands the same memory on
            precision = "fp32" if runtime["precision"] == "fp32" else None
            yield Placed(layer.type, CPU, precision, names=(layer.name,))


def unknown_layers(ncnn: Any, main: Path) -> Set[str]:
    """The types of layers in a .param file that this ncnn lacks. Raises CorruptArtifact where it is none."""
    try:
        first, *lines = main.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, ValueError) as error:
        raise CorruptArtifact(f"{main.name} is not an ncnn model: {error}") from error
    if first.strip() != MAGIC:
        raise CorruptArtifact(f"{main.name} is not an ncnn model: its first line is not {MAGIC}")
    types = {line.split()[0] for line in lines[1:] if line.strip()}
    return {kind for kind in types if ncnn.layer_to_index(kind) < 0}


class NcnnSession:
    """One network. An inference is an extractor of its own, which computes nothing twice."""

    def __init__(self, ncnn: Any, net: Any, inputs: Tuple[TensorSpec, ...], outputs: Tuple[TensorSpec, ...]) -> None:
        self.net, self.inputs, self.outputs = net, inputs, outputs
        self._mat = ncnn.Mat

    def run(self, feeds: Feeds) -> Dict[str, Array]:
        call = self.bind(feeds)
        call()
        return call.outputs()

    def bind(self, feeds: Feeds) -> NcnnCall:
        """Inputs in memory that ncnn reads; a call makes its extractor anew, as one cannot be used again."""
        check_feeds(feeds, self.inputs)
        return NcnnCall(self.net, self._mat, self.inputs, self.outputs, feeds)


class NcnnCall:
    """One inference, whose outputs stay where ncnn puts them."""

    def __init__(
        self, net: Any, mat: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], feeds: Feeds
    ) -> None:
        self._net = net
        self._arrays = {spec.name: _one_sample(feeds[spec.name]) for spec in inputs}
        self._inputs = [(f"in{index}", mat(array)) for index, array in enumerate(self._arrays.values())]
        self._outputs = {f"out{index}": spec for index, spec in enumerate(outputs)}

    def fill(self, feeds: Feeds) -> None:
        for name, array in self._arrays.items():
            array[...] = feeds[name][0]

    def __call__(self) -> None:
        extractor = self._net.create_extractor()
        for name, mat in self._inputs:
            extractor.input(name, mat)
        self._found = [extractor.extract(name) for name in self._outputs]
        if any(code != 0 for code, _ in self._found):
            raise StageError("ncnn could not compute the model")

    def outputs(self) -> Dict[str, Array]:
        import numpy as np

        found = zip(self._outputs.values(), self._found)
        return {spec.name: np.array(mat).reshape(spec.shape) for spec, (_, mat) in found}


def _one_sample(value: Array) -> Array:
    """Without the batch. ncnn's integers have 32 bits."""
    import numpy as np

    return np.array(value[0], np.float32 if value.dtype.kind == "f" else np.int32, order="C")
