"""Torch models, named by a factory: "model.py:build" or "package.module:build", with the weights to load.

The factory's file is the user's own code and is run as such. Weights are data: safetensors, or a checkpoint that torch
loads with `weights_only=True`; pickled modules are refused, because loading one runs what it says.
"""

from __future__ import annotations

import contextlib
import inspect as inspection
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeopt.errors import InputError
from edgeopt.formats import Imported, ModelRef, Progress, Summary, canonical, exporting, require
from edgeopt.samples import Samples
from edgeopt.source import UserFunction, load_function
from edgeopt.text import named_line

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

_WRAPPERS = ("module.", "_orig_mod.")  # nn.DataParallel, torch.compile
_SAVE = "Save the weights alone: torch.save(model.state_dict(), ...), or as .safetensors."
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
    import torch

    progress(0.0, "loading the torch model")
    with _user_code(ref) as user:
        module = user.module
        data = Samples(samples)
        feeds = data.batch(0, min(len(data), canonical.SAMPLES_CHECKED))
        inputs = bind(module, feeds)
        progress(0.2, "tracing the torch model")
        outputs, sources = user.run(inputs)
        _, output_names = exporting.flatten(outputs)
        program, reason = exporting.trace(module, *inputs.slice(0, 2))

        def eager(start: int, stop: int) -> list[Array]:
            args, kwargs = inputs.slice(start, stop)
            with torch.no_grad():
                return [tensor.numpy() for tensor in exporting.flatten(module(*args, **kwargs))[0]]

        notes = [f"the batch is fixed at 1: {reason}"] if reason else []
        produced = exporting.produce(program, eager, inputs.names, output_names, inputs.arrays(), notes, out, progress)
        return Imported(produced, sources=sources)


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
            inputs = bind(module, feeds)
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)  # its one fused operator is counted as nothing
            try:
                with FlopCounterMode(display=False) as counter:
                    outputs, _ = user.run(inputs)
            finally:
                torch.backends.mha.set_fastpath_enabled(fast)
            recurrent = any(isinstance(item, (torch.nn.RNNBase, torch.nn.RNNCellBase)) for item in module.modules())
            macs = None if recurrent else int(counter.get_total_flops()) // 2
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
            precision=exporting.PRECISIONS.get(kinds.most_common(1)[0][0]) if kinds else None,
            size_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            provenance={
                "class": type(module).__qualname__,
                "factory": ref.model,
                "weights": ref.weights,
                "torch": str(torch.__version__),
            },
        )


@dataclass(frozen=True)
class Inputs:
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
    """The module that the user's code made, in eval mode, and what was loaded before it."""

    module: Any
    factory: UserFunction
    made_from: tuple[Path, ...]

    def run(self, inputs: Inputs) -> tuple[Any, tuple[Path, ...]]:
        """One eager call on two samples; and every source file of the user's that was loaded up to now, sorted."""
        import torch

        def forward() -> Any:
            with torch.no_grad():
                args, kwargs = inputs.slice(0, 2)
                return self.module(*args, **kwargs)

        call = UserFunction(self.factory.location, "model from", forward, self.factory.loaded_before)
        try:
            outputs, loaded = call.call()
        except InputError as error:
            given = ", ".join(
                f"{n}: {v.dtype}[N, {', '.join(map(str, v.shape[1:]))}]" for n, v in inputs.arrays().items()
            )
            remedy = f"The samples are {given}; the model is forward{inspection.signature(self.module.forward)}."
            kinds = {str(value.dtype) for value in inputs.arrays().values()}
            if "uint8" in kinds and any(value.is_floating_point() for value in self.module.parameters()):
                remedy = f"The samples are {given}. {canonical.type_remedy('uint8', 'float32')}"
            raise InputError(error.message, where=error.where, remedy=remedy) from error
        return outputs, tuple(sorted({*loaded, *self.made_from}))


def load(ref: ModelRef) -> Any:
    """The factory's module with its weights, on the CPU, in evaluation mode.

    Modules of the user's code that it may import later stay importable, so call it in a worker that ends afterwards.
    Raises InputError as `to_onnx` does.
    """
    if not ref.model.rpartition(":")[0].endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
    return _made(ref).module


@contextlib.contextmanager
def _user_code(ref: ModelRef) -> Iterator[_User]:
    """Make the module and load its weights. On leaving, the user's modules can no longer be imported from there."""
    modules, path = dict(sys.modules), list(sys.path)
    if not ref.model.rpartition(":")[0].endswith(".py"):
        sys.path.insert(0, str(Path.cwd()))
    try:
        yield _made(ref)
    finally:
        sys.path[:] = path
        for name in [name for name, module in sys.modules.items() if modules.get(name) is not module]:
            file = getattr(sys.modules[name], "__file__", None)
            installed = file is None or any(Path(file).is_relative_to(root) for root in (sys.prefix, sys.base_prefix))
            if not installed and name.partition(".")[0] != "edgeopt":
                del sys.modules[name]


def _made(ref: ModelRef) -> _User:
    import torch

    torch.manual_seed(0)
    factory = load_function(ref.model, what="model factory")
    made, sources = factory.call()
    if not isinstance(made, torch.nn.Module):
        raise InputError(
            f"{ref.model} returns {type(made).__name__}, not a torch.nn.Module",
            remedy="The function must take no arguments and return the model.",
        )
    if ref.weights is not None:
        _load_weights(made, Path(ref.weights))
    location = ref.model.rpartition(":")[0]
    own = [Path(location).resolve()] if location.endswith(".py") else []
    return _User(made.to("cpu").eval(), factory, (*own, *sources))


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
        raise InputError(
            f"not a safetensors file ({str(error).rpartition(': ')[2]})",
            where=str(path),
            remedy="Save it with safetensors.torch.save_file(model.state_dict(), ...).",
        ) from error
    return state


def _read_checkpoint(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        what = "not a torch checkpoint"
        if path.read_bytes()[:1] in (b"P", b"\x80"):  # how an archive and a pickle begin
            what = "holds Python objects, not tensors alone: loading it could run anything"
        raise InputError(what, where=str(path), remedy=_SAVE) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(f"not a torch checkpoint: {named_line(error)}", where=str(path), remedy=_SAVE) from error
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


def bind(module: Any, feeds: Mapping[str, Array]) -> Inputs:
    """The samples as forward's arguments: by name where all names are parameters of it, else by position."""
    import numpy as np
    import torch

    wide = any(parameter.dtype == torch.float64 for parameter in module.parameters())
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in feeds.items()}
    if not wide:
        tensors = {name: value.float() if value.dtype == torch.float64 else value for name, value in tensors.items()}
    parameters = inspection.signature(module.forward).parameters
    if not set(tensors) <= set(parameters):
        return Inputs(tensors, {})
    ordered = [name for name in parameters if name in tensors]
    leading = 0
    for name, wanted in zip(ordered, parameters):
        if name != wanted or parameters[name].kind is inspection.Parameter.KEYWORD_ONLY:
            break
        leading += 1
    return Inputs(
        {name: tensors[name] for name in ordered[:leading]}, {name: tensors[name] for name in ordered[leading:]}
    )
