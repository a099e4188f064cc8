"""torch: runs a program of torch.export eagerly, or what AOTInductor compiled of one, on the CPU or a CUDA device.

Loading a compiled package runs its machine code, and a program is no mere data either: only the file that the artifact
names by its sha256 is loaded, which is what edgeopt wrote. A digest does not show who made a bundle: one with a torch
artifact in it is to be trusted like a program. This module knows nothing of how a file was made.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, Mapping, Sequence, Tuple

from edgeopt.artifact import TensorSpec, sha256_of_file
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
    call = _compiled(torch, main) if runtime["mode"] == "aot" else _eager(torch, main, runtime["device"])
    inputs, outputs = (tuple(TensorSpec.from_json(spec) for spec in runtime[side]) for side in ("inputs", "outputs"))
    return TorchSession(torch, call, runtime["device"], inputs, outputs)


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
        device: str,
        inputs: Tuple[TensorSpec, ...],
        outputs: Tuple[TensorSpec, ...],
    ) -> None:
        self._torch, self._call, self._device = torch, call, device
        self.inputs, self.outputs = inputs, outputs

    def run(self, feeds: Feeds) -> Dict[str, Array]:
        torch = self._torch
        with torch.inference_mode():
            found = leaves(torch, self._call(*(tensor.to(self._device) for tensor in self._tensors(feeds))))
        if len(found) != len(self.outputs):
            raise StageError(f"the program gives {len(found)} tensors, its artifact says {len(self.outputs)}")
        return {spec.name: tensor.cpu().numpy().copy() for spec, tensor in zip(self.outputs, found)}

    def bind(self, feeds: Feeds) -> Callable[[], object]:
        """Inputs as tensors, in pinned memory for a GPU: a call copies them there, and the outputs back."""
        torch, call = self._torch, self._call
        tensors = [tensor.clone() for tensor in self._tensors(feeds)]
        if self._device == "cpu":

            def on_cpu() -> None:
                with torch.inference_mode():
                    call(*tensors)

            return on_cpu
        pinned = [tensor.pin_memory() for tensor in tensors]

        def on_gpu() -> None:
            with torch.inference_mode():
                found = call(*(tensor.to("cuda", non_blocking=True) for tensor in pinned))
                for tensor in leaves(torch, found):
                    tensor.cpu()

        return on_gpu

    def _tensors(self, feeds: Feeds) -> List[Any]:
        import numpy as np

        return [self._torch.from_numpy(np.require(feeds[spec.name], requirements=["C", "W"])) for spec in self.inputs]


def leaves(torch: Any, outputs: Any) -> List[Any]:
    """The tensors among a program's outputs, in order."""
    found: Sequence[Any] = torch.utils._pytree.tree_leaves(outputs)
    return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]


def _eager(torch: Any, main: Path, device: str) -> Callable[..., Any]:
    try:
        with _quiet():
            program = torch.export.load(str(main))
            module = program.module(check_guards=False)
    except (RuntimeError, AssertionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifact(f"{main.name} is not a program that torch {torch.__version__} reads: {error}") from error
    call: Callable[..., Any] = module.to(device)
    return call


def _compiled(torch: Any, main: Path) -> Callable[..., Any]:
    try:
        with _quiet(), tempfile.TemporaryDirectory(prefix="edgeopt-aot-") as folder, environment(TMPDIR=folder):
            # It unpacks the machine code there. Once that is mapped its file may go, and would stay where a process is
            # ended from outside.
            call: Callable[..., Any] = torch._inductor.aoti_load_package(str(main))
    except (RuntimeError, ValueError, OSError) as error:
        raise StageError(
            f"{main.name} cannot be loaded by torch {torch.__version__}: {str(error).strip().splitlines()[0][:300]}",
            remedy="A compiled package belongs to one version of torch, and to processors like the one it was made on.",
        ) from error
    return call


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No pickled objects in what is read, and no word of torch's own deprecations."""
    with environment(TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        yield
