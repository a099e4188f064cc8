"""The Coral Edge TPU: runs .tflite files that its compiler made, through the delegate of the Edge TPU runtime.

Three things may be missing, and each is told apart: the runtime's library, the device, and the compiled part of the
model. Operators that the compiler left to the CPU run there, in LiteRT.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

from edgeopt.backends.tflite import LiteRTSession
from edgeopt.errors import CorruptArtifact, InputError, MissingDependency, NoAccelerator, StageError

FORMAT = "edgetpu"
RUNTIMES = (("ai-edge-litert", "ai_edge_litert"), ("tflite-runtime", "tflite_runtime"))  # newest first
CUSTOM = "edgetpu-custom-op"
LIBRARIES = {"linux": "libedgetpu.so.1", "darwin": "libedgetpu.1.dylib", "win32": "edgetpu.dll"}

ATTACH = "Plug it in, and see that its user may open it (a new USB rule needs plugging in again)."


def _interpreter() -> Tuple[str, str]:
    """Distribution and module of the interpreter that is installed; the newest one's where none is."""
    found = (pair for pair in RUNTIMES if importlib.util.find_spec(pair[1]) is not None)
    distribution, package = next(found, RUNTIMES[0])
    return distribution, f"{package}.interpreter"


DISTRIBUTION, _MODULE = _interpreter()
IMPORTS = (_MODULE,)


def devices() -> Dict[str, List[str]]:
    """The Edge TPUs that are attached, {"usb /sys/...": []}. Raises MissingDependency without the runtime's library,
    NoAccelerator without a device."""
    import ctypes

    class Device(ctypes.Structure):  # edgetpu_c.h of libedgetpu: struct edgetpu_device
        _fields_ = (("type", ctypes.c_int), ("path", ctypes.c_char_p))

    library, count = _library(), ctypes.c_size_t()
    library.edgetpu_list_devices.restype = ctypes.POINTER(Device)
    listed = library.edgetpu_list_devices(ctypes.byref(count))
    kinds = ("pci", "usb")
    found: Dict[str, List[str]] = {f"{kinds[one.type]} {one.path.decode()}": [] for one in listed[: count.value]}
    library.edgetpu_free_devices(listed)
    if not found:
        raise NoAccelerator("no Edge TPU is attached, or this user may not open it", remedy=ATTACH)
    return found


def _library() -> Any:
    import ctypes

    name = LIBRARIES.get(sys.platform, LIBRARIES["linux"])
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise MissingDependency(
            f"the backend edgetpu needs the Edge TPU runtime: {error}",
            remedy="Install libedgetpu1-std from the Debian repository that coral.ai names; it is in no registry.",
        ) from error


def load(main: Path, runtime: Mapping[str, Any], threads: int) -> LiteRTSession:
    """The session of the compiled file `main`. `runtime` may name the "device": "usb", "pci", "usb:0" and so on.

    Raises CorruptArtifact for what is no TFLite file, MissingDependency without the library, NoAccelerator without a
    device, StageError for a model that is not compiled: it would run on the CPU alone, and its times would be taken for
    the chip's.
    """
    unknown = sorted(runtime.keys() - {"device"})
    if unknown:
        raise InputError(f"the backend edgetpu has no runtime setting {', '.join(unknown)}")
    if not main.is_file():
        raise CorruptArtifact(f"{main.name} is not there")
    try:
        litert = importlib.import_module(_MODULE)
    except ImportError as error:
        raise MissingDependency(f"the backend edgetpu: {error}", remedy=f"pip install {DISTRIBUTION}") from error
    try:
        litert.Interpreter(model_path=str(main))  # it checks the file, and needs no chip for that
    except ValueError as error:
        raise CorruptArtifact(f"{main.name} is not a TFLite file: {' '.join(str(error).split())}") from error
    if CUSTOM.encode() not in main.read_bytes():
        raise StageError(
            f"{main.name} is not compiled for the Edge TPU: nothing of it would run there",
            remedy="Compile it (compile: edgetpu in a recipe), or run it with the backend tflite.",
        )
    _library()
    device = str(runtime.get("device", "usb"))
    try:
        delegate = litert.load_delegate(LIBRARIES.get(sys.platform, LIBRARIES["linux"]), {"device": device})
    except ValueError as error:
        raise NoAccelerator(
            f"no Edge TPU answers at {device}: {' '.join(str(error).split())}",
            remedy=ATTACH,
        ) from error
    try:
        interpreter = litert.Interpreter(model_path=str(main), experimental_delegates=[delegate], num_threads=threads)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:  # such as a model that was compiled for a newer runtime
        raise StageError(f"{main.name}: the Edge TPU runtime refuses it: {' '.join(str(error).split())}") from error
    return LiteRTSession(interpreter)
