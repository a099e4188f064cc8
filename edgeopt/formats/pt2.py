"""Programs saved by torch.export (.pt2), read without letting the file run anything.

`torch.export.load` alone is not safe (torch 2.13, torch/export/pt2_archive/_package.py and torch/_export/serde). It
unpickles weights marked `use_pickle`, opaque constants, custom objects, and example inputs that `weights_only` refuses;
it loads compiled code (data/aotinductor) as a shared library; symbolic shapes go through `sympy.sympify`, which
evaluates them as Python; guards are compiled as Python; and an operator may be any attribute that can be reached from
`torch`. So the archive is copied in memory into a new one that holds the known members alone, each of them checked, and
torch reads that copy.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
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

_MODEL = "models/model.json"
_EXAMPLE = "data/sample_inputs/model.pt"
_KEPT = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/version|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_DROPPED = re.compile(r"\.data/serialization_id|extra/.*|\.format_version|\.storage_alignment")
_OPERATOR = re.compile(
    r"torch\.ops\.(aten|prims|higher_order|quantized_decomposed|torchvision)\.[a-z_]\w*(\.\w+)?"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.sym_(int|float|max|min|not|ite|sqrt|sum)|torch\._sym_sqrt"
)
_REFUSED_OPERATORS = ("from_file",)
_SYMBOL = re.compile(r"[a-z]{1,4}\d+|oo|zoo|int_oo")
_NUMBER = re.compile(r"-?[0-9.]+(e[+-]?\d+)?")
_FUNCTION = re.compile(r"[A-Z]\w*|floor|ceiling")


def tools() -> Sequence[str]:
    return exporting.TOOLS


def to_onnx(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The canonical form of a saved program. Without samples its inputs keep their names and nothing is compared."""
    require("torch", "onnx", "onnxscript", extra="torch", purpose="importing a .pt2 program")
    import numpy as np
    import torch

    progress(0.0, "reading the program")
    path = Path(ref.model)
    program = read(path)
    specs = _inputs(program)
    names = [spec.name for spec in specs]
    feeds: dict[str, Array] | None = None
    eager = None
    if samples is not None:
        data = Samples(samples)
        given = data.batch(0, min(len(data), canonical.SAMPLES_CHECKED))
        ordered = canonical.fit(given, specs, path.name)
        if not set(given) & set(names):
            names = list(given)
        feeds = dict(zip(names, ordered.values()))
        tensors = [torch.from_numpy(np.array(value)) for value in ordered.values()]
        module = program.module()

        def eager(start: int, stop: int) -> list[Array]:
            with torch.no_grad():
                outputs = module(*(tensor[start:stop] for tensor in tensors))
            return [tensor.numpy() for tensor in exporting.flatten(outputs)[0]]

    produced = exporting.produce(program, eager, names, None, feeds, [], out, progress)
    return Imported(produced, sources=())


def inspect(ref: ModelRef, example: Path | None) -> Summary:
    """What the program says. Multiply-accumulates are counted by running it once: on the example, on zeros without."""
    require("torch", extra="torch", purpose="reading a .pt2 program")
    import numpy as np
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    path = Path(ref.model)
    program = read(path)
    specs = _inputs(program)
    kinds: Counter[str] = Counter()
    parameters = dict(program.named_parameters())
    for tensor in parameters.values():
        kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    called = Counter(str(node.target) for node in program.graph.nodes if node.op == "call_function")
    if example is not None:
        feeds = canonical.fit(Samples(example).batch(0, _batch(specs)), specs, path.name)
    else:
        feeds = {
            s.name: np.zeros([d if isinstance(d, int) else _batch(specs) for d in s.shape], s.dtype) for s in specs
        }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(*(torch.from_numpy(np.array(value)) for value in feeds.values()))
    macs = int(counter.get_total_flops()) // 2 // _batch(specs)
    return Summary(
        format="pt2",
        inputs=specs,
        outputs=_specs(program, program.graph_signature.user_outputs),
        parameters=sum(tensor.numel() for tensor in parameters.values()),
        macs=macs,
        operators=dict(sorted(called.items(), key=lambda item: (-item[1], item[0]))),
        precision=exporting.PRECISIONS.get(kinds.most_common(1)[0][0]) if kinds else None,
        size_bytes=path.stat().st_size,
        provenance={"torch": _torch_version(path)},
    )


def read(path: Path) -> Any:
    """The ExportedProgram. Raises InputError where the file is not one, or holds what could run when it is read."""
    import torch

    members = _members(path)
    members[_EXAMPLE] = _safe_example(path, members.get(_EXAMPLE))
    program = json.loads(members[_MODEL])
    _check_program(path, program)
    members[_MODEL] = json.dumps(program).encode()
    for kind in ("weights", "constants"):
        config = json.loads(members.get(f"data/{kind}/model_{kind}_config.json", b'{"config": {}}'))
        for name, entry in config["config"].items():
            if entry.get("use_pickle") or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
                raise _refused(path, f"the {kind[:-1]} {name!r} is a pickled object")
    try:
        return torch.export.load(_archive(members))
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"torch cannot read this program: {named_line(error)}",
            where=path.name,
            remedy=f"It was saved by torch {program.get('torch_version')}; this is torch {torch.__version__}.",
        ) from error


def _members(path: Path) -> dict[str, bytes]:
    """The members of the archive by name below its one folder. Raises InputError for names that do not belong."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            roots = {name.split("/", 1)[0] for name in names}
            below = [name.split("/", 1)[-1] for name in names]
            if len(roots) != 1 or len(set(below)) != len(below) or ".." in roots or _MODEL not in below:
                raise _no_program(path)
            for name in below:
                if not _KEPT.fullmatch(name) and not _DROPPED.fullmatch(name):
                    raise _refused(path, f"its member {name!r} is not data of a program")
            return {
                name: archive.read(full)
                for full, name in zip(names, below)
                if _KEPT.fullmatch(name) and not name.endswith("/")
            }
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise _no_program(path) from error


def _safe_example(path: Path, stored: bytes | None) -> bytes:
    import pickle

    import torch

    try:
        example = torch.load(io.BytesIO(stored or b""), weights_only=True, map_location="cpu") if stored else ((), {})
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _refused(path, "its example inputs are pickled objects, not tensors") from error
    buffer = io.BytesIO()
    torch.save(example, buffer)
    return buffer.getvalue()


def _check_program(path: Path, program: Any) -> None:
    """Check operators, symbolic shapes and tree specifications; take out guards (code) and metadata (paths)."""
    program["guards_code"] = []
    for key, value in _walk(program):
        if key == "target" and isinstance(value, str):
            if not _OPERATOR.fullmatch(value) or value.split(".")[-1] in _REFUSED_OPERATORS:
                raise _refused(path, f"the operator {value!r} is not torch's own")
        elif key == "expr_str":
            if not _is_arithmetic(value):
                raise _refused(path, f"the shape {str(value)[:60]!r} is not arithmetic")
        elif key == "range_constraints" and isinstance(value, dict):
            if not all(_is_arithmetic(name) for name in value):
                raise _refused(path, "a shape's range is not arithmetic")
        elif key == "metadata" and isinstance(value, dict):
            value.clear()
        elif isinstance(value, str) and "__enum__" in value:
            raise _refused(path, "its inputs or outputs are Python objects")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in list(value.items()):
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield "", item
            yield from _walk(item)


def _is_arithmetic(text: object) -> bool:
    """Whether a symbolic expression, in sympy's own notation, holds symbols, numbers and functions of them alone."""
    try:
        tree = ast.parse(str(text).strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _is_term(tree.body)


def _is_term(node: ast.expr) -> bool:
    match node:
        case ast.Name(id=name):
            return _SYMBOL.fullmatch(name) is not None
        case ast.Constant(value=value):
            return isinstance(value, (int, float))
        case ast.UnaryOp(operand=operand):
            return _is_term(operand)
        case ast.BinOp(left=left, right=right):
            return _is_term(left) and _is_term(right)
        case ast.Compare(left=left, comparators=others):
            return all(map(_is_term, (left, *others)))
        case ast.Call(func=ast.Name(id=("Symbol" | "Float") as kind), args=[ast.Constant(value=str(value))]):
            pattern = _SYMBOL if kind == "Symbol" else _NUMBER
            return pattern.fullmatch(value) is not None and all(map(_is_flag, node.keywords))
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTION.fullmatch(name) is not None and all(map(_is_term, node.args)) and not node.keywords
    return False


def _is_flag(keyword: ast.keyword) -> bool:
    return isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, (bool, int))


def _archive(members: dict[str, bytes]) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
    buffer.seek(0)
    return buffer


def _no_program(path: Path) -> InputError:
    return InputError(
        f"{path.name}: not a program saved by torch.export",
        remedy="Save it with torch.export.save; of plain weights, give the torch factory (model.py:build) with them.",
    )


def _refused(path: Path, what: str) -> InputError:
    return InputError(
        f"refused, because reading it could run code: {what}",
        where=path.name,
        remedy="Save it with torch.export.save from plain tensors, or give the torch factory and its weights.",
    )


def _inputs(program: Any) -> tuple[TensorSpec, ...]:
    return _specs(program, program.graph_signature.user_inputs)


def _specs(program: Any, names: Sequence[Any]) -> tuple[TensorSpec, ...]:
    """Signatures of values of the graph: a free first dimension is the batch, other free ones keep their symbols."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    specs = []
    for name in names:
        value = values.get(name) if isinstance(name, str) else None
        if value is None or not hasattr(value, "dtype"):
            raise StageError(f"the program takes or gives {name!r}, which is not a tensor")
        shape = tuple(
            size if isinstance(size, int) else canonical.BATCH if axis == 0 else str(size)
            for axis, size in enumerate(value.shape)
        )
        specs.append(TensorSpec(name, shape, str(value.dtype).removeprefix("torch.")))
    return tuple(specs)


def _batch(specs: Sequence[TensorSpec]) -> int:
    first = specs[0].shape[:1] if specs else ()
    return first[0] if first and isinstance(first[0], int) else 1


def _torch_version(path: Path) -> str | None:
    version = json.loads(_members(path)[_MODEL]).get("torch_version")
    return str(version) if version else None
