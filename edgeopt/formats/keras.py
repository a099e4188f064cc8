"""Keras models, `.keras` and `.h5`, read without letting the file run anything.

Keras's own `safe_mode` refuses lambdas. What else a file may name is checked before Keras sees it (Keras 3.15): each
class has to be one of Keras's own modules, because Keras imports what the file names; layers that hold another
library's model (pickled torch modules, SavedModels, JAX functions) are refused, and so are vocabularies that are paths
of this machine and HDF5 data in other files. Weights alone are no model.

The model is run and converted with the TensorFlow backend: Keras's torch backend works too, and leaves two transposes
at each convolution (measured with Keras 3.15: eight instead of one for four convolutions).
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeopt.errors import InputError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, counting, exporting, require
from edgeopt.formats import tensorflow as common
from edgeopt.text import named_line

_OWN = re.compile(
    r"keras(\.src)?(\.(layers|models|ops|initializers|regularizers|constraints|activations|dtype_policies|optimizers"
    r"|losses|metrics|quantizers|random)(\.\w+)*)?"
)
_FUNCTIONS = re.compile(r"keras(\.src)?\.(activations|ops|losses|metrics)(\.\w+)*|builtins")
_REFUSED = ("Lambda", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "__lambda__")
_OF_KERAS_2 = ("keras.engine", "tensorflow.keras", "tensorflow.python.keras", "tf_keras")
_CONFIG = "config.json"
_REMEDY = "Write it with model.export('folder') and give that folder, or convert it to ONNX where its code is."


def tools() -> Sequence[str]:
    return ("keras", *common.tools())


def to_onnx(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The canonical form of a Keras model, its inputs as Keras has them: images channels last."""
    path = Path(ref.model)
    progress(0.0, "reading the Keras model")
    model = read(path)
    function, specs, outputs = _function(model, path)
    produced = common.produce(function, specs, outputs, samples, path.name, out, progress)
    return Imported(produced, sources=())


def inspect(ref: ModelRef, example: Path | None) -> Summary:  # noqa: ARG001
    """What Keras says of it. Multiply-accumulates are counted in the ONNX model that it becomes."""
    path = Path(ref.model)
    model = read(path)
    function, specs, outputs = _function(model, path)
    converted = common.to_model(function, specs, outputs)
    layers = Counter(type(layer).__name__ for layer in model._flatten_layers(include_self=False))
    return Summary(
        format="keras",
        inputs=specs,
        outputs=counting.signature(converted.graph.output),
        parameters=int(model.count_params()),
        macs=counting.macs(converted),
        operators=dict(sorted(layers.items(), key=lambda item: (-item[1], item[0]))),
        precision=exporting.PRECISIONS.get(str(model.dtype_policy.variable_dtype)),
        size_bytes=path.stat().st_size,
        provenance={"keras": _version(path)},
    )


def read(path: Path) -> Any:
    """The keras.Model. Raises InputError where the file is not one, holds code, or needs classes of its own."""
    require("keras", "h5py", extra="tensorflow", purpose="reading a Keras model")
    check(path)
    os.environ["KERAS_BACKEND"] = "tensorflow"
    common.load()
    with common.quiet():
        import keras
    try:
        with common.quiet():
            return keras.saving.load_model(path, compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, ImportError, NotImplementedError) as error:
        raise InputError(
            f"Keras {keras.__version__} cannot read it: {named_line(error)}", where=path.name, remedy=_REMEDY
        ) from error


def check(path: Path) -> None:
    """Raises InputError where the file is no Keras model, or has what Keras would run or read. Keras is not loaded."""
    for node in _walk(_config(path)):
        _check_class(path, node)


def _function(model: Any, path: Path) -> tuple[Any, Any, list[str]]:
    """The model as a function of tensors in a row, with the signatures of its inputs and the names of its outputs."""
    import keras

    inputs = model.inputs if model.built else None
    if not inputs:
        raise InputError("its inputs have no shape yet", where=path.name, remedy="Call the model once, and save it.")
    specs = common.specs_of([tensor.name for tensor in inputs], inputs, path.name)
    names = list(getattr(model, "output_names", ()))
    structure = inputs[0] if isinstance(model, keras.Sequential) else model.input

    def function(*tensors: Any) -> list[Any]:
        return list(keras.tree.flatten(model(keras.tree.pack_sequence_as(structure, tensors), training=False)))

    count = len(model.outputs)
    return function, specs, names if len(names) == count else [f"output_{i}" for i in range(count)]


def _config(path: Path) -> Any:
    """What the file says of its layers, as plain JSON."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return json.loads(archive.read(_CONFIG))
        import h5py

        with h5py.File(path, "r") as file:
            _check_links(path, file)
            text = file.attrs.get("model_config")
            weights_alone = text is None and bool(len(file.keys()))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path.name}: not a Keras model", remedy="Give a file that model.save('model.keras') wrote."
        ) from error
    if text is None:
        raise InputError(
            f"{path.name}: {'weights without a model' if weights_alone else 'not a Keras model'}",
            remedy="Save the whole model: model.save('model.keras').",
        )
    return json.loads(text)


def _check_links(path: Path, file: Any) -> None:
    import h5py

    def check(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and (item.external or item.is_virtual):
            raise _refused(path, f"{name!r} is kept in another file")

    def walk(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _refused(path, f"{name!r} is kept in another file")
            if isinstance(link, h5py.HardLink) and isinstance(item := group[name], h5py.Group):
                walk(item)

    walk(file)
    file.visititems(check)


def _walk(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for item in value.values():
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _check_class(path: Path, node: dict[str, Any]) -> None:
    kind, module = node.get("class_name"), node.get("module")
    if not isinstance(kind, str):
        return
    if kind in _REFUSED:
        raise _refused(path, f"it has a layer {kind}")
    if isinstance(module, str):
        own = _FUNCTIONS if kind == "function" else _OWN
        if not own.fullmatch(module) and not (module == "builtins" and kind in ("dict", "list", "tuple", "slice")):
            old = " (written by Keras 2)" if module.startswith(_OF_KERAS_2) else ""
            raise InputError(f"its {module}.{kind} is code of its own{old}", where=path.name, remedy=_REMEDY)
    for name in (kind, node.get("registered_name")):
        if isinstance(name, str) and ">" in name:  # "package>Class": a registered class of somebody's
            raise InputError(f"its class {name} is code of its own", where=path.name, remedy=_REMEDY)
    config = node.get("config")
    if isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        raise _refused(path, f"its layer {kind} reads the file {config['vocabulary']!r}")


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"refused, because reading it could run code or read other files: {what}", where=path.name, remedy=_REMEDY
    )


def _version(path: Path) -> str | None:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            version = json.loads(archive.read("metadata.json")).get("keras_version")
    else:
        import h5py

        with h5py.File(path, "r") as file:
            version = file.attrs.get("keras_version")
    return str(version) if version else None
