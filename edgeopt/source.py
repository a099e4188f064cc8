"""Python code that a recipe names: "file.py:function" or "package.module:function". Runs in workers alone.

Which source files the code loaded is told too, so that a cache notices when one of them is edited.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from edgeopt.errors import EdgeoptError, InputError


@dataclass(frozen=True)
class UserFunction:
    """A function of the user's. `what` is what errors call it: "model factory"."""

    location: str
    what: str
    function: Callable[..., Any]
    loaded_before: frozenset[str]

    def call(self, *args: Any) -> tuple[Any, list[Path]]:
        """Its result, and every source file outside of the interpreter that was loaded for it, sorted.

        Raises InputError with the file and line of the user's code where it raises.
        """
        try:
            result = self.function(*args)
        except EdgeoptError:
            raise
        except (Exception, SystemExit) as error:
            name = self.location.rpartition(":")[2]
            raise _raised(error, f"the {self.what} {name}", self.location, len(args)) from error
        return result, _sources(self.loaded_before)


def load_function(location: str, *, what: str) -> UserFunction:
    """Import the module and find the function. Raises InputError when either is missing or the module raises."""
    file, _, name = location.rpartition(":")
    before = frozenset(sys.modules)
    try:
        module = _import_file(Path(file)) if file.endswith(".py") else importlib.import_module(file)
    except EdgeoptError:
        raise
    except ModuleNotFoundError as error:
        if error.name and f"{file}.".startswith(f"{error.name}."):
            raise InputError(
                f"there is no module {file}", remedy="Give a file, such as model.py:build, or install the package."
            ) from None
        raise _raised(error, "the module", file) from error
    except (Exception, SystemExit) as error:
        raise _raised(error, "the module", file) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        own = [key for key in known if getattr(vars(module)[key], "__module__", None) == module.__name__]
        hint = f"Did you mean {near[0]}?" if near else f"It has {', '.join(own[:8]) or 'no functions'}."
        raise InputError(f"{file} has no function {name!r}", remedy=hint)
    return UserFunction(location, what, function, before)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    sys.dont_write_bytecode = True  # the user's folder stays as it is, and an edit within a second is seen
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    standard = getattr(sys, "stdlib_module_names", ())  # Python 3.9 does not tell
    taken = path.stem in sys.modules or path.stem in standard
    name = f"edgeopt_user_{path.stem}" if taken else path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _raised(error: BaseException, what: str, place: str, arguments: int = 0) -> InputError:
    """The user's own frame nearest to the error, else `place`, and its text."""
    if isinstance(error, SyntaxError) and error.filename:
        return InputError(
            f"{error.filename}:{error.lineno}: not valid Python: {error.msg}",
            remedy="Correct that line, or the one above.",
        )
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_users(Path(f.filename))]
    if frames:
        place = f"{frames[-1].filename}:{frames[-1].lineno}"
    text = str(error).strip().splitlines()
    return InputError(
        f"{place}: {what} raised {type(error).__name__}" + (f": {text[0][:200]}" if text else ""),
        remedy="Correct that code: edgeopt runs it as it is, and calls the function "
        + (f"with {arguments} arguments." if arguments else "without arguments."),
    )


def _sources(before: frozenset[str]) -> list[Path]:
    files = set()
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name not in before and file and file.endswith(".py") and _is_users(Path(file)):
            files.add(Path(file).resolve())
    return sorted(files)


def _is_users(path: Path) -> bool:
    """Whether a file is the user's own: outside the interpreter, installed packages and edgeopt itself."""
    if not path.is_absolute() or not path.exists():
        return False
    own = Path(__file__).parent
    roots = {Path(value).resolve() for key, value in sysconfig.get_paths().items() if "lib" in key or key == "stdlib"}
    resolved = path.resolve()
    return not any(resolved.is_relative_to(root) for root in (*roots, own)) and "site-packages" not in resolved.parts
