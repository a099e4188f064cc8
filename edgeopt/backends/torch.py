"""torch: runs a program of torch.export eagerly, or what AOTInductor compiled of one, on the CPU or a CUDA device.

Loading a compiled package runs its machine code, and a program is no mere data either: only the file that the artifact
names by its sha256 is loaded, which is what edgeopt wrote. A digest does not show who made a bundle: one with a torch
artifact in it is to be trusted like a program. This module knows nothing of how a file was made.
"""

from __future__ import annotations

import contextlib
import copy
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from edgeopt.artifact import TensorSpec, sha256_of_file
from edgeopt.backends import check_feeds
from edgeopt.environment import environment
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, NoAccelerator, StageError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Feeds = Mapping[str, "np.ndarray[Any, Any]"]

FORMAT = "torch"
DISTRIBUTION = "torch"
IMPORTS = ("torch",)

SETTINGS = ("mode", "device", "sha256", "inputs", "outputs")
MODES = ("eager", "aot")

FlatCall = Callable[[Any], Any]  # of a list of tensors, to one tensor or more


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> TorchSession:
    """The session of the file `main` with `threads` intra-op threads, which are the process's.

    `runtime` holds "mode" ("eager", "aot"), "device" ("cpu", "cuda"), "sha256" of the file, and "inputs" and "outputs"
    in the program's order, as JSON. Raises CorruptArtifact where the file is another, NoAccelerator without the device.
    """
    try:
        import torch
    except ImportError as error:
        message = f"the backend torch cannot be loaded: {error}"
        raise MissingDependency(message, remedy=f"pip install {DISTRIBUTION}") from error
    unknown = sorted(set(runtime) - set(SETTINGS))
    if unknown:
        raise InputError(f"the backend torch has no runtime setting {', '.join(unknown)}")
    if set(runtime) != set(SETTINGS) or runtime["mode"] not in MODES:
        raise InputError(
            f"{main.name}: the backend torch loads only what edgeopt compiled, because loading it runs code",
            remedy="Give the model to `edgeopt convert`, with torch among the compile steps.",
        )
    if not main.is_file():
        raise CorruptArtifact(f"{main.name} is not there")
    if sha256_of_file(main) != runtime["sha256"]:
        raise CorruptArtifact(f"{main.name} is not the file that edgeopt wrote: its sha256 is another")
    check_device(torch, runtime["device"])
    torch.set_num_threads(threads)
    call, flat = _compiled(torch, main) if runtime["mode"] == "aot" else _eager(torch, main, runtime["device"])
    inputs, outputs = (tuple(TensorSpec.from_json(spec) for spec in runtime[side]) for side in ("inputs", "outputs"))
    return TorchSession(torch, call, flat, runtime["device"], inputs, outputs)


def smallest(runtime: Mapping[str, Any], threads: int) -> Optional[TorchSession]:
    """The session of one Relu of four floats, eager; None for a compiled one, which a compiler would have to make."""
    if runtime["mode"] != "eager":
        return None
    import torch

    torch.set_num_threads(threads)
    with _quiet():
        program = torch.export.export(torch.nn.ReLU(), (torch.zeros(4),))
        call, flat = _calls(torch, program, runtime["device"])
    return TorchSession(torch, call, flat, runtime["device"], *((TensorSpec(n, (4,), "float32"),) for n in "xy"))


def check_device(torch: Any, device: str) -> None:
    """Raises NoAccelerator where this torch cannot compute on a device."""
    if device == "cuda" and not torch.cuda.is_available():
        built = "this torch is built for the CPU alone" if torch.version.cuda is None else "there is no usable GPU"
        raise NoAccelerator(f"torch cannot run on CUDA here: {built}", remedy="Leave out `device: cuda` here.")


class TorchSession:
    """One program. Any batch size will do where the model's is free."""

    def __init__(
        self,
        torch: Any,
        call: Callable[..., Any],
        flat: FlatCall,
        device: str,
        inputs: Tuple[TensorSpec, ...],
        outputs: Tuple[TensorSpec, ...],
    ) -> None:
        self.torch, self._call, self.flat, self._device = torch, call, flat, device
        self.inputs, self.outputs = inputs, outputs

    def run(self, feeds: Feeds) -> Dict[str, Array]:
        torch = self.torch
        with torch.inference_mode():
            found = leaves(torch, self._call(*(tensor.to(self._device) for tensor in self.tensors(feeds))))
        return self.named(found)

    def bind(self, feeds: Feeds) -> TorchCall:
        """A call on tensors of its own, past what torch checks and unpacks around every call: that is done once."""
        self.run(feeds)
        tensors = [tensor.clone() for tensor in self.tensors(feeds)]
        if self._device == "cpu":
            return TorchCall(self, tensors)
        return CudaCall(self, [tensor.pin_memory() for tensor in tensors])

    def named(self, found: Sequence[Any]) -> Dict[str, Array]:
        """Copies of the tensors that a program gave, by the names of the outputs."""
        if len(found) != len(self.outputs):
            raise StageError(f"the program gives {len(found)} tensors, its artifact says {len(self.outputs)}")
        return {spec.name: tensor.cpu().numpy().copy() for spec, tensor in zip(self.outputs, found)}

    def tensors(self, feeds: Feeds) -> List[Any]:
        import numpy as np

        check_feeds(feeds, self.inputs)
        return [self.torch.from_numpy(np.require(feeds[spec.name], requirements=["C", "W"])) for spec in self.inputs]


class TorchCall:
    """One inference on `tensors`. Outputs stay where torch puts them."""

    def __init__(self, session: TorchSession, tensors: Sequence[Any]) -> None:
        self._session, self._tensors = session, tensors
        self._call, self._mode = session.flat, session.torch.inference_mode()
        self._outputs: Any = ()

    def fill(self, feeds: Feeds) -> None:
        for tensor, given in zip(self._tensors, self._session.tensors(feeds)):
            tensor.copy_(given)

    def __call__(self) -> None:
        with self._mode:
            self._outputs = self._call(self._tensors)

    def outputs(self) -> Dict[str, Array]:
        return self._session.named(leaves(self._session.torch, self._outputs))


class CudaCall(TorchCall):
    """One inference from pinned memory to pinned memory: inputs are copied to the GPU, and outputs back."""

    def __init__(self, session: TorchSession, tensors: Sequence[Any]) -> None:
        super().__init__(session, tensors)
        self._there = [tensor.cuda() for tensor in tensors]
        with self._mode:
            self._outputs = [out.cpu().pin_memory() for out in leaves(session.torch, self._call(self._there))]

    def __call__(self) -> None:
        torch = self._session.torch
        with self._mode:
            for there, tensor in zip(self._there, self._tensors):
                there.copy_(tensor, non_blocking=True)
            for kept, out in zip(self._outputs, leaves(torch, self._call(self._there))):
                kept.copy_(out, non_blocking=True)
            torch.cuda.synchronize()


def leaves(torch: Any, outputs: Any) -> List[Any]:
    """The tensors among a program's outputs, in order."""
    found: Sequence[Any] = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]


def _eager(torch: Any, main: Path, device: str) -> Tuple[Callable[..., Any], FlatCall]:
    try:
        with _quiet():
            return _calls(torch, torch.export.load(str(main)), device)
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{main.name} is not a program that torch {torch.__version__} reads: {error}") from error


def _calls(torch: Any, program: Any, device: str) -> Tuple[Callable[..., Any], FlatCall]:
    """A program as torch calls it, its inputs checked and its structures packed and unpacked around every call (33 us),
    and the same graph without any of that."""
    module = program.module(check_guards=False).to(device)
    graph = copy.deepcopy(module.graph)
    graph.set_codegen(torch.fx.CodeGen())
    plain = torch.fx.GraphModule(module, graph).forward
    return module, lambda tensors: plain(*tensors)


def _compiled(torch: Any, main: Path) -> Tuple[Callable[..., Any], FlatCall]:
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="edgeopt-aot-") as folder, environment(TMPDIR=folder):
            # It unpacks the machine code there. Once that is mapped its file may go, and would stay where a process is
            # ended from outside.
            package = torch._inductor.aoti_load_package(str(main))
    except (RuntimeError, ValueError, OSError) as error:
        raise StageError(
            f"{main.name} cannot be loaded by torch {torch.__version__}: {str(error).strip().splitlines()[0][:300]}",
            remedy="A compiled package belongs to one version of torch, and to processors like the one it was made on.",
        ) from error
    return package, package.loader.run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No pickled objects in what is read, and no word of torch's own deprecations."""
    with environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
