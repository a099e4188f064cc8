"""TorchScript archives (.pt, .pth, .ts, .torchscript) as torch.jit.save writes them, through the older ONNX exporter.

`torch.jit.load` unpickles nothing of Python's, but it compiles the archive's TorchScript and runs the parts of it that
restore objects. TorchScript can call any operator that torch has, and one of those maps files. So the archive's code is
read first: operators that touch files and those of other libraries are refused. What is then trusted is torch's own
reader and kernels.

torch.export takes no script modules (torch 2.13), so these are exported from their graph. A .pt that is a pickle, a
whole module or a state dict, is not read at all: it needs the model's code, and reading the first runs code.
"""

from __future__ import annotations

import io
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.artifact import TensorSpec
from edgeopt.errors import InputError, StageError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, canonical, exporting, require
from edgeopt.samples import Samples
from edgeopt.text import named_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

OPSET = 17
_CODE = re.compile(r"[^/]+/code/.*\.py")
_REFUSED = re.compile(
    r"\b(from_file|torch\.(?:save|load)|__torch__\.torch\.classes\.\w+|ops\.(?!aten\b|prim\b|quantized\b|torchvision\b)\w+)"
)


def tools() -> Sequence[str]:
    return ("torch", "onnx")


def to_onnx(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The canonical form of a script module. Raises InputError without samples: an archive tells no shapes."""
    require("torch", "onnx", extra="torch", purpose="importing a TorchScript archive")
    import numpy as np
    import torch

    path = Path(ref.model)
    progress(0.0, "reading the TorchScript archive")
    module = read(path)
    if samples is None:
        raise InputError(
            "a TorchScript archive does not tell the shapes of its inputs",
            where=path.name,
            remedy="Give samples: data in the recipe, or --data samples.npz.",
        )
    data = Samples(samples)
    feeds = _bound(module, data.batch(0, min(len(data), canonical.SAMPLES_CHECKED)), path.name)
    tensors = [torch.from_numpy(np.array(value)) for value in feeds.values()]
    progress(0.3, "running the source model")
    expected, notes = _run(module, tensors, len(tensors[0])), []
    if expected is None or any(value.shape[:1] != (len(tensors[0]),) for value in expected):
        notes.append("the batch is fixed at 1: the module takes one sample, or an output has another first dimension")
        expected = _run(module, tensors, 1)
    if expected is None:
        raise StageError("the module does not run on the samples")
    progress(0.5, "exporting to ONNX")
    model = _exported(module, [tensor[: 1 if notes else 2] for tensor in tensors], list(feeds), free=not notes)
    model, told = canonical.canonical(model, feeds)
    progress(0.8, "comparing with the source")
    found = canonical.run(model, feeds)
    check = canonical.difference(expected, list(found.values())) if found is not None else None
    return Imported(canonical.write(model, [*notes, *told], check, out), sources=())


def inspect(ref: ModelRef, example: Path | None) -> Summary:
    """What the archive says. Shapes and multiply-accumulates are not in it."""
    require("torch", extra="torch", purpose="reading a TorchScript archive")
    path = Path(ref.model)
    module = read(path)
    kinds: Counter[str] = Counter()
    for tensor in module.parameters():
        kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    called = Counter(
        node.kind() for node in module.inlined_graph.nodes() if not node.kind().startswith(("prim::", "aten::__"))
    )
    inputs: tuple[TensorSpec, ...] = ()
    if example is not None:
        inputs = _specs(_bound(module, Samples(example).batch(0, 1), path.name))
    return Summary(
        format="torchscript",
        inputs=inputs,
        outputs=(),
        parameters=sum(kinds.values()),
        macs=None,
        operators=dict(sorted(called.items(), key=lambda item: (-item[1], item[0]))),
        precision=exporting.PRECISIONS.get(kinds.most_common(1)[0][0]) if kinds else None,
        size_bytes=path.stat().st_size,
    )


def read(path: Path) -> Any:
    """The script module in evaluation mode on the CPU. Raises InputError for what is not one, or could touch files."""
    import torch

    _check(path)
    try:
        with _quiet():
            return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"torch {torch.__version__} cannot read it: {named_line(error)}", where=path.name) from error


def _check(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            code = {name: archive.read(name) for name in names if _CODE.fullmatch(name)}
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (zipfile.BadZipFile, zlib.error, UnicodeDecodeError, NotImplementedError, RuntimeError, EOFError):
        names, code = [], {}  # whatever a damaged archive makes of it
    if not code:
        saved = "a program of torch.export: call it .pt2" if any(n.endswith("models/model.json") for n in names) else ""
        weights = any(name.endswith("data.pkl") for name in names) or _is_pickle(path)
        what = saved or ("a pickle, of weights or of a whole module, not TorchScript" if weights else "not TorchScript")
        raise InputError(
            f"{path.name}: {what}",
            remedy="Save the weights alone (torch.save(model.state_dict(), ...)) and give them with the factory that "
            "makes the model: `model: model.py:build` and `weights: weights.pt`.",
        )
    for text in code.values():
        if found := _REFUSED.search(text.decode("utf-8", "replace")):
            raise InputError(
                f"refused, because running it could read or write files: its code has {found.group()}",
                where=path.name,
                remedy="Save a module that only computes, or give the torch factory and its weights.",
            )


def _is_pickle(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(1) == b"\x80"


def _bound(module: Any, feeds: dict[str, Array], name: str) -> dict[str, Array]:
    """The samples in the order of forward's arguments, where they have their names; else as they come."""
    arguments = module.forward.schema.arguments[1:]
    wanted = [argument.name for argument in arguments]
    least = sum(not argument.has_default_value() for argument in arguments)
    if not least <= len(feeds) <= len(wanted):
        raise InputError(
            f"the samples have {len(feeds)} arrays, {name} takes {least}: {', '.join(wanted)}",
            where=canonical.SAMPLES,
            remedy="Save one array for each input, under its name; class indices are named labels.",
        )
    if set(feeds) == set(wanted[: len(feeds)]):
        return {key: feeds[key] for key in wanted[: len(feeds)]}
    return dict(feeds)


def _specs(feeds: dict[str, Array]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(key, (canonical.BATCH, *value.shape[1:]), str(value.dtype)) for key, value in feeds.items())


def _run(module: Any, tensors: Sequence[Any], step: int) -> list[Array] | None:
    """The outputs, fed in batches of `step`; None where the module raises."""
    import numpy as np
    import torch

    pieces = []
    try:
        with torch.no_grad(), _quiet():
            for start in range(0, len(tensors[0]) - step + 1, step):
                outputs = module(*(tensor[start : start + step] for tensor in tensors))
                pieces.append([tensor.numpy() for tensor in exporting.flatten(outputs)[0]])
    except RuntimeError as error:
        if step == 1:
            raise StageError(f"the module does not run on the samples: {_last_line(error)}") from error
        return None
    return [
        np.concatenate([piece[i] for piece in pieces]) if pieces[0][i].ndim else pieces[0][i]
        for i in range(len(pieces[0]))
    ]


def _exported(module: Any, tensors: Sequence[Any], names: Sequence[str], *, free: bool) -> Any:
    import onnx
    import torch

    inner = [f"input_{i}" for i in range(len(names))]
    buffer = io.BytesIO()
    axes = {name: {0: canonical.BATCH} for name in inner} if free else None
    try:
        with _quiet():
            torch.onnx.export(
                module, tuple(tensors), buffer, dynamo=False, opset_version=OPSET, input_names=inner, dynamic_axes=axes
            )
    except Exception as error:  # the exporter runs hundreds of translations: they may raise anything
        raise StageError(
            f"torch.onnx cannot export this TorchScript: {named_line(error)}",
            remedy="Give the torch factory that it was made of: it goes through torch.export.",
        ) from error
    model = onnx.load_model_from_string(buffer.getvalue())
    for value in model.graph.output:  # names of free dimensions that the exporter made up
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.dim_param:
                dim.dim_param = canonical.BATCH if free and axis == 0 else ""
    exporting.rename(model, names, None)
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """TorchScript is deprecated, and so is its exporter: torch says so at each call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]
