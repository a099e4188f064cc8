"""Torch models, named by a factory: "model.py:build" or "package.module:build", with the weights to load.

The factory's file is the user's own code and is run as such. Weights are data: safetensors, or a checkpoint that torch
loads with `weights_only=True`; pickled modules are refused, because loading one runs what it says.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import inspect as inspection
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import edgeopt
from edgeopt.errors import InputError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, canonical, exporting, require
from edgeopt.samples import Samples

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_WRAPPERS = ("module.", "_orig_mod.")  # nn.DataParallel, torch.compile
_CONTAINERS = ("state_dict", "model_state_dict", "model")


def tools() -> Sequence[str]:
    return exporting.TOOLS


def to_onnx(ref: ModelRef, samples: Path | None, out: Path, progress: Progress) -> Imported:
    """The factory's module, traced on the first samples; the export is compared with the module in onnxruntime."""
    if samples is None:
        raise InputError(
            f"{ref.model}: a torch model does not say what inputs it takes",
            remedy="Give data (in a recipe: data.calibration; on the command line: --data samples.npz).",
        )
    require("torch", "onnx", "onnxscript", extra="torch", purpose="importing a torch model")
    progress(0.0, "loading the torch model")
    with _user_code(ref) as user:
        module = user.module
        data = Samples(samples)
        feeds = data.batch(0, min(len(data), canonical.SAMPLES_CHECKED))
        inputs = _bind(module, feeds)
        progress(0.2, "tracing the torch model")
        outputs = _run(ref, module, inputs, feeds)
        _, output_names = exporting.flatten(outputs)
        program, reason = exporting.trace(module, *inputs.slice(0, 2))
        feeds = {name: feeds[name] for name in inputs.names}

        def eager(start: int, stop: int) -> list[Array]:
            args, kwargs = inputs.slice(start, stop)
            return [tensor.numpy() for tensor in exporting.flatten(_call(module, args, kwargs))[0]]

        notes = [f"the batch is fixed at 1: {reason}"] if reason else []
        produced = exporting.produce(program, eager, inputs.names, output_names, inputs.arrays(), notes, out, progress)
        return Imported(produced, sources=user.sources())


def inspect(ref: ModelRef, example: Path | None) -> Summary:
    """The module's parameters and layers. Inputs, outputs and multiply-accumulates are known with an example alone."""
    require("torch", extra="torch", purpose="reading a torch model")
    from collections import Counter

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from edgeopt.artifact import TensorSpec

    with _user_code(ref) as user:
        module = user.module
        tensors = [*module.parameters(), *module.buffers()]
        kinds: Counter[str] = Counter()
        for tensor in module.parameters():
            kinds[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
        layers = Counter(type(item).__name__ for item in module.modules() if not list(item.children()))
        specs: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())
        macs = None
        if example is not None:
            feeds = Samples(example).batch(0, 1)
            inputs = _bind(module, feeds)
            with FlopCounterMode(display=False) as counter:
                outputs = _run(ref, module, inputs, feeds)
            macs = int(counter.get_total_flops()) // 2
            leaves, names = exporting.flatten(outputs)
            names = names or (["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))])
            specs = (
                tuple(
                    TensorSpec(name, (canonical.BATCH, *value.shape[1:]), str(value.dtype))
                    for name, value in inputs.arrays().items()
                ),
                tuple(
                    TensorSpec(name, (canonical.BATCH, *leaf.shape[1:]), str(leaf.dtype).removeprefix("torch."))
                    for name, leaf in zip(names, leaves)
                ),
            )
        return Summary(
            format="torch",
            inputs=specs[0],
            outputs=specs[1],
            parameters=sum(tensor.numel() for tensor in module.parameters()),
            macs=macs,
            operators=dict(sorted(layers.items(), key=lambda item: (-item[1], item[0]))),
            precision=_PRECISIONS.get(kinds.most_common(1)[0][0]) if kinds else None,
            size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            provenance={
                "class": type(module).__qualname__,
                "factory": ref.model,
                "weights": ref.weights,
                "torch": str(torch.__version__),
            },
        )


_PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "int8": "int8"}


@dataclass(frozen=True)
class _Inputs:
    """Tensors in the order of forward's parameters: the first ones by position, the others by name."""

    positional: Mapping[str, Any]
    keyword: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return [*self.positional, *self.keyword]

    def slice(self, start: int, stop: int) -> tuple[list[Any], dict[str, Any]]:
        return (
            [value[start:stop] for value in self.positional.values()],
            {name: value[start:stop] for name, value in self.keyword.items()},
        )

    def arrays(self) -> dict[str, Array]:
        return {name: value.numpy() for name, value in {**self.positional, **self.keyword}.items()}


@dataclass(frozen=True)
class _User:
    """The module that the user's code made, and the modules that were there before it."""

    module: Any
    own: Path | None
    before: frozenset[str]

    def sources(self) -> tuple[Path, ...]:
        """Python files of the user's that were loaded, sorted: none of an installed package, none of Python's own."""
        found = {self.own} if self.own else set()
        for name, module in list(sys.modules.items()):
            file = getattr(module, "__file__", None)
            if name not in self.before and isinstance(file, str) and file.endswith(".py") and _is_users(file):
                found.add(Path(file).resolve())
        return tuple(sorted(found))


@contextlib.contextmanager
def _user_code(ref: ModelRef) -> Iterator[_User]:
    """Load the module with its weights. While in the context, the factory's folder can be imported from."""
    import torch

    before = frozenset(sys.modules)
    location, _, function = ref.model.rpartition(":")
    is_file = location.endswith(".py")
    folder = Path(location).resolve().parent if is_file else Path.cwd()
    sys.path.insert(0, str(folder))
    try:
        torch.manual_seed(0)
        module = _load_file(Path(location).resolve()) if is_file else _load_package(location)
        made = _make(_factory(module, function, ref), ref)
        if ref.weights is not None:
            _load_weights(made, Path(ref.weights))
        own = getattr(module, "__file__", None)
        yield _User(made.to("cpu").eval(), Path(own).resolve() if own else None, before)
    finally:
        sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if isinstance(file, str) and _is_users(file):
                del sys.modules[name]


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError("there is no such file", where=str(path))
    taken = path.stem in sys.modules or path.stem in sys.stdlib_module_names
    name = f"edgeopt_user_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _told_as_the_users(f"{path.name} cannot be loaded", str(path)):
        spec.loader.exec_module(module)
    return module


def _load_package(name: str) -> ModuleType:
    with _told_as_the_users(f"{name} cannot be imported", name):
        return importlib.import_module(name)


def _factory(module: ModuleType, function: str, ref: ModelRef) -> Callable[[], Any]:
    found = getattr(module, function, None)
    if callable(found):
        made: Callable[[], Any] = found
        return made
    names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
    near = difflib.get_close_matches(function, names, n=1)
    own = [name for name in names if getattr(getattr(module, name), "__module__", None) == module.__name__]
    raise InputError(
        f"{ref.model}: there is no function {function!r}",
        remedy=f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(own) or 'no functions'}.",
    )


def _make(factory: Callable[[], Any], ref: ModelRef) -> Any:
    import torch

    code = getattr(factory, "__code__", None)
    with _told_as_the_users(f"{ref.model} failed", f"{code.co_filename}:{code.co_firstlineno}" if code else ref.model):
        made = factory()
    if not isinstance(made, torch.nn.Module):
        raise InputError(
            f"{ref.model} returns {type(made).__name__}, not a torch.nn.Module",
            remedy="The function must take no arguments and return the model.",
        )
    return made


def _load_weights(module: Any, path: Path) -> None:
    """Put a state dict into the module, name for name. Raises InputError naming what is missing or does not fit."""
    state = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    for prefix in _WRAPPERS:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    own = module.state_dict()
    present = {value.data_ptr() for name, value in own.items() if name in state}
    missing = [name for name in own if name not in state and own[name].data_ptr() not in present]
    unexpected = [name for name in state if name not in own]
    misshapen = [name for name in own if name in state and own[name].shape != state[name].shape]
    told = [
        f"{what}: {_some(names)}" for what, names in (("missing", missing), ("not in the model", unexpected)) if names
    ]
    told += [
        f"{name}: {list(state[name].shape)} in the file, {list(own[name].shape)} in the model" for name in misshapen[:1]
    ]
    if told:
        raise InputError(
            "\n".join(["the weights do not fit the model", *told]),
            where=str(path),
            remedy="Give the weights that were saved from this model.",
        )
    module.load_state_dict(state, strict=False)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _read_safetensors(path: Path) -> dict[str, Any]:
    require("safetensors", extra="torch", purpose="reading .safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Any] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"not a safetensors file: {error}", where=str(path)) from error
    return state


def _read_checkpoint(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise InputError(
            "holds Python objects, not tensors alone: loading it could run anything",
            where=str(path),
            remedy="Save the weights alone: torch.save(model.state_dict(), ...), or as .safetensors.",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"not a torch checkpoint: {exporting.first_line(error)}", where=str(path)) from error
    for name in _CONTAINERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise InputError(
            f"holds {type(found).__name__}, not a state dict",
            where=str(path),
            remedy='Save torch.save(model.state_dict(), ...), or a dict with it under "state_dict" or "model".',
        )
    return dict(found)


def _bind(module: Any, feeds: Mapping[str, Array]) -> _Inputs:
    """The samples as forward's arguments: by name where all names are parameters of it, else by position."""
    import numpy as np
    import torch

    wide = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
    if not wide:
        tensors = {name: value.float() if value.dtype == torch.float64 else value for name, value in tensors.items()}
    parameters = inspection.signature(module.forward).parameters
    if not set(tensors) <= set(parameters):
        return _Inputs(tensors, {})
    ordered = [name for name in parameters if name in tensors]
    leading = 0
    for name, wanted in zip(ordered, parameters):
        if name != wanted or parameters[name].kind is inspection.Parameter.KEYWORD_ONLY:
            break
        leading += 1
    return _Inputs(
        {name: tensors[name] for name in ordered[:leading]}, {name: tensors[name] for name in ordered[leading:]}
    )


def _call(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    import torch

    with torch.no_grad():
        return module(*args, **kwargs)


def _run(ref: ModelRef, module: Any, inputs: _Inputs, feeds: Mapping[str, Array]) -> Any:
    """One eager call, whose failure is told with the samples' shapes."""
    given = ", ".join(
        f"{name}: {value.dtype}[N, {', '.join(map(str, value.shape[1:]))}]" for name, value in feeds.items()
    )
    remedy = f"Samples: {given}; forward{inspection.signature(module.forward)}."
    with _told_as_the_users(f"{ref.model}: the model does not take these samples", ref.model, remedy):
        return _call(module, *inputs.slice(0, 2))


@contextlib.contextmanager
def _told_as_the_users(what: str, where: str, remedy: str | None = None) -> Iterator[None]:
    """What the user's code raises, as an InputError that points into the user's code."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename}:{error.lineno}"
        else:
            frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
            where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else where
        raise InputError(f"{what}: {exporting.first_line(error)}", where=where, remedy=remedy) from error


def _is_users(file: str) -> bool:
    """Whether a source file is the user's: no installed package's, not Python's own, not edgeopt's."""
    path = Path(file).resolve()
    if not path.is_file() or {"site-packages", "dist-packages"} & set(path.parts):
        return False
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = [Path(folder).resolve() for folder in installed] + [Path(edgeopt.__file__).resolve().parent]
    return not any(path.is_relative_to(folder) for folder in folders)
