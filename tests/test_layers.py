"""Who may import whom, read off the source, and no call that runs code which comes with data."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "edgeopt"

# From the lowest layer to the highest. A name covers all below it; what is not named is of the layer HOST.
LAYERS: dict[str, tuple[str, ...]] = {
    "values": (
        "edgeopt",  # __init__.py alone: the version
        "edgeopt.errors",
        "edgeopt.units",
        "edgeopt.text",
        "edgeopt.jsontext",
        "edgeopt.fields",
        "edgeopt.artifact",
        "edgeopt.target",
        "edgeopt.statistics",
        "edgeopt.conditions",
        "edgeopt.measurement",
        "edgeopt.profile",
        "edgeopt.caveats",
        "edgeopt.budget",
        "edgeopt.placement",
    ),
    "device": (
        "edgeopt.backends",
        "edgeopt.measuring",
        "edgeopt.isa",
        "edgeopt.samples",
        "edgeopt.worker",
        "edgeopt.bundle",
        "edgeopt.signing",
        "edgeopt.verify",
        "edgeopt.environment",
        "edgeopt.nearby",
        "edgeopt.source",
        "edgeopt.data",
        "edgeopt.kit",
    ),
    "host": (),
    "cli": ("edgeopt.cli", "edgeopt.commands", "edgeopt.__main__"),
}

# Folders whose files never import each other, with the files below their siblings, lowest first.
SIBLINGS: dict[str, tuple[str, ...]] = {
    "edgeopt.backends": ("edgeopt.backends.tflite",),
    "edgeopt.measuring": ("edgeopt.measuring.machine", "edgeopt.measuring.memory", "edgeopt.measuring.candidate"),
    "edgeopt.compilers": ("edgeopt.compilers.checking", "edgeopt.compilers.tflite"),
    "edgeopt.edgetpu": (
        "edgeopt.edgetpu.operators",
        "edgeopt.edgetpu.compiled",
        "edgeopt.edgetpu.partition",
    ),
    "edgeopt.lowering": ("edgeopt.lowering.graph",),
    "edgeopt.stages": (),
    "edgeopt.formats": (
        "edgeopt.formats.counting",
        "edgeopt.formats.canonical",
        "edgeopt.formats.exporting",
        "edgeopt.formats.tensorflow",
        "edgeopt.formats.onnx_node",
        "edgeopt.formats.onnx_quantizers",
        "edgeopt.formats.onnx_layers",
        "edgeopt.formats.onnx_operators",
    ),
    "edgeopt.kit": (
        "edgeopt.kit.subjects",
        "edgeopt.kit.alone",
        "edgeopt.kit.rows",
        "edgeopt.kit.measure",
        "edgeopt.kit.comparison",
        "edgeopt.kit.usable",
        "edgeopt.kit.transfer",
        "edgeopt.kit.remote",
        "edgeopt.kit.table",
    ),
    "edgeopt.devices": ("edgeopt.devices.openssh",),
    "edgeopt.cli": (),
    "edgeopt.report": (
        "edgeopt.report.cells",
        "edgeopt.report.snippet",
        "edgeopt.report.ablation",
        "edgeopt.report.charts",
        "edgeopt.report.markup",
        "edgeopt.report.provenance",
    ),
    "edgeopt.quantization": (
        "edgeopt.quantization.histograms",
        "edgeopt.quantization.ranges",
        "edgeopt.quantization.layers",
        "edgeopt.quantization.execution",
        "edgeopt.quantization.sensitivity",
    ),
    "edgeopt.pruning": (),
    "edgeopt.tracing": (),
    "edgeopt.training": (
        "edgeopt.training.augmentation",
        "edgeopt.training.objective",
        "edgeopt.training.checkpoint",
        "edgeopt.training.features",
        "edgeopt.training.loop",
        "edgeopt.training.teacher",
    ),
}

STANDARD_LIBRARY_ALONE = ("values",)
DEVICE_LIBRARIES = {"numpy"}
VENDORS = (
    "torch", "tensorflow", "keras", "onnx", "onnxruntime", "onnxslim", "onnxscript", "openvino", "nncf", "jax",
    "litert_torch", "ai_edge_litert", "ai_edge_quantizer", "litert", "tflite_runtime", "safetensors", "tensorrt",
    "tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_bindings", "cuda",
    "tf2onnx", "h5py", "ncnn", "pnnx",
)  # fmt: skip
PICKLES = ("pickle", "_pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal")


class Import(NamedTuple):
    """One import statement. `deferred` ones are inside a function."""

    target: str
    line: int
    deferred: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def walk(node: ast.AST, deferred: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that runs, with whether it is inside a function. Blocks of TYPE_CHECKING do not run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for other in child.orelse:
                yield from walk(other, deferred)
            continue
        yield child, deferred
        yield from walk(child, deferred or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def imports(name: str) -> Iterator[Import]:
    """What a module imports: "from edgeopt import units" is edgeopt.units."""
    for node, deferred in walk(TREES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, deferred)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(whole if whole in MODULES else str(node.module), node.lineno, deferred)


OWN = {name: [one for one in imports(name) if one.target.partition(".")[0] == "edgeopt"] for name in MODULES}


def is_below(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}.")


def layer_of(name: str) -> str:
    for layer, names in LAYERS.items():
        if name in names or any(is_below(name, one) for one in names if one != "edgeopt"):
            return layer
    return "host"


ORDER = list(LAYERS)


def test_the_tables_name_modules_that_are_there() -> None:
    named = {name for names in LAYERS.values() for name in names}
    named |= SIBLINGS.keys() | {name for helpers in SIBLINGS.values() for name in helpers}
    assert named <= MODULES.keys()
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py" and name != "edgeopt"}
    assert packages == SIBLINGS.keys(), "each folder stands in the table of siblings"


def test_imports_go_down_only() -> None:
    upwards = [
        f"{name}:{one.line} ({layer_of(name)}) imports {one.target} ({layer_of(one.target)})"
        for name, found in OWN.items()
        for one in found
        if ORDER.index(layer_of(one.target)) > ORDER.index(layer_of(name))
    ]
    assert not upwards


@pytest.mark.parametrize("deferred", [False, True], ids=["at module level", "inside functions too"])
def test_no_import_goes_in_a_circle(deferred: bool) -> None:
    """A folder's __init__ that looks one of its own files up in a function is a registry, and no circle."""
    edges = {
        name: {
            one.target
            for one in found
            if one.target != name and (not one.deferred or (deferred and not is_below(one.target, name)))
        }
        for name, found in OWN.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"circle: {' -> '.join([*path[path.index(name) :], name])}"
        if name not in done:
            for target in sorted(edges[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("folder", SIBLINGS)
def test_siblings_do_not_import_each_other(folder: str) -> None:
    helpers = SIBLINGS[folder]
    wrong = []
    for name in (name for name in MODULES if name.startswith(f"{folder}.")):
        allowed = helpers[: helpers.index(name)] if name in helpers else helpers
        wrong += [
            f"{name}:{one.line} imports {one.target}"
            for one in OWN[name]
            if one.target.startswith(f"{folder}.") and one.target not in (name, *allowed)
        ]
    assert not wrong


def test_no_vendor_library_is_imported_at_module_level() -> None:
    wrong = [
        f"{name}:{one.line} imports {one.target}"
        for name in MODULES
        for one in imports(name)
        if not one.deferred and one.target.partition(".")[0] in VENDORS
    ]
    assert not wrong


@pytest.mark.parametrize(("layer", "allowed"), [("values", set()), ("device", DEVICE_LIBRARIES)])
def test_low_layers_import_little(layer: str, allowed: set[str]) -> None:
    wrong = [
        f"{name}:{one.line} imports {one.target}"
        for name in MODULES
        if layer_of(name) == layer
        for one in imports(name)
        if not (layer == "device" and one.deferred)
        and one.target.partition(".")[0] not in {*sys.stdlib_module_names, "edgeopt", *allowed}
    ]
    assert not wrong


def names_of(tree: ast.Module) -> dict[str, str]:
    """What each imported name of a file stands for, wherever it is imported."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dangers(tree: ast.Module) -> Iterator[str]:
    """Calls that may run code that comes with data, or a shell."""
    known = names_of(tree)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Load):
            first, _, rest = ast.unparse(node).partition(".")
            whole = f"{known.get(first, first)}.{rest}".rstrip(".")
            module, _, function = whole.rpartition(".")
            if module in PICKLES and not function.endswith("Error"):
                yield f"{node.lineno}: {whole}"
            if module == "yaml" and "load" in function.lower() and function != "SafeLoader":
                yield f"{node.lineno}: {whole}"
            if whole in ("eval", "exec", "__import__", "os.system", "os.popen", "runpy.run_path"):
                yield f"{node.lineno}: {whole}"
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            whole = f"{known.get(first, first)}.{rest}".rstrip(".")
            flags = {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg}
            if whole == "torch.load" and flags.get("weights_only") != "True":
                yield f"{node.lineno}: torch.load without weights_only=True"
            if flags.get("shell", "False") != "False" or flags.get("allow_pickle", "False") != "False":
                yield f"{node.lineno}: {ast.unparse(node)[:60]}"
            if whole == "numpy.load" and flags.get("allow_pickle") != "False":
                yield f"{node.lineno}: numpy.load without allow_pickle=False"
            if whole.endswith("load_model") and "keras" in whole and flags.get("safe_mode") != "True":
                yield f"{node.lineno}: {whole} without safe_mode=True"


@pytest.mark.parametrize("name", MODULES)
def test_nothing_runs_code_that_comes_with_data(name: str) -> None:
    assert not list(dangers(TREES[name]))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "import torch\ntorch.load(file)",
        "import torch as t\nt.load(file, weights_only=False)",
        "from torch import load\nload(file)",
        "import yaml\nyaml.load(text, Loader=yaml.FullLoader)",
        "import yaml\nyaml.unsafe_load(text)",
        "eval(text)",
        "def f():\n    exec(text)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
        "import numpy as np\nnp.load(file)",
        "import numpy as np\nnp.load(file, allow_pickle=True)",
    ],
)
def test_the_dangers_are_seen(code: str) -> None:
    assert list(dangers(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(file, map_location='cpu', weights_only=True)",
        "from edgeopt import yaml\nyaml.load(path)",
        "import yaml\nyaml.compose(text, Loader=yaml.SafeLoader)",
        "model.eval()",
        "spec.loader.exec_module(module)",
        "import numpy as np\nnp.load(file, allow_pickle=False)",
        "import subprocess\nsubprocess.run([text])",
    ],
)
def test_what_is_safe_is_not_taken_for_a_danger(code: str) -> None:
    assert not list(dangers(ast.parse(code)))
