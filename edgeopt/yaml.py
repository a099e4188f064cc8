"""YAML as recipes and targets use it: plain values with the line of each, by the rules of YAML 1.2.

PyYAML reads YAML 1.1, in which 2:4 is 124 and `on` is true: here they are text. So is a number that no float holds.
Aliases, tags, deep nesting, duplicate keys and huge files are refused, so that a stranger's file costs nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import InputError
from edgeopt.nearby import nearby

LARGEST_FILE_BYTES = 1 << 20
DEEPEST = 40

Place = tuple[Any, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}


@dataclass
class Document:
    """A parsed file: `value`, and the 1-based line of each place in it, such as ("steps", 0, "quantize").

    `flags` maps places that the command line has set to its option, such as ("target",) to "--target".
    """

    name: str
    value: Any
    lines: dict[Place, int] = field(default_factory=dict)
    flags: dict[Place, str] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """ "recipe.yaml:12" for the nearest place that has a line, "--target" where it comes from an option."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.flags:
                return self.flags[place[:length]]
            if place[:length] in self.lines:
                return f"{self.name}:{self.lines[place[:length]]}"
        return self.name


def load(path: Path) -> Document:
    """Read a YAML file. Raises InputError with the line where it is not YAML, or not the kind we take."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a file", remedy="Give a .yaml file.") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}", remedy=nearby(path)) from None
    except ValueError:
        raise InputError(f"{str(path)!r} is not the name of a file") from None
    if len(data) > LARGEST_FILE_BYTES:
        raise InputError(f"{path} is larger than {LARGEST_FILE_BYTES >> 20} MiB: not a recipe")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8", remedy="Save it as UTF-8, or give a recipe's file.") from None
    return parse(text, path.name)


def parse(text: str, name: str) -> Document:
    """Parse YAML text; `name` is what errors call it."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
            if isinstance(event, yaml.AliasEvent):
                raise InputError("aliases are not taken here", where=line, remedy="Write the value out again.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise InputError("nested too deep", where=line)
            if getattr(event, "tag", None) is not None:
                raise InputError("tags are not taken here", where=line)
            if isinstance(event, yaml.ScalarEvent) and any("\ud800" <= c <= "\udfff" for c in event.value):
                raise InputError("half of a surrogate pair is no character", where=line)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = f"{name}:{error.problem_mark.line + 1}" if error.problem_mark else name
        raise InputError(
            f"not YAML: {error.problem}", where=line, remedy="Check the brackets, quotes and indentation up to there."
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise InputError(f"not YAML: {str(error).splitlines()[0]}", where=name) from None
    document = Document(name, None)
    document.value = _plain(node, (), document) if node is not None else None
    return document


def _plain(node: Any, place: Place, document: Document) -> Any:
    import yaml

    document.lines[place] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, (*place, index), document) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, child in node.value:
            line = f"{document.name}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise InputError("a key must be plain text", where=line)
            key = key_node.value
            if key in mapping:
                first = document.where((*place, key))
                raise InputError(
                    f"the key {key!r} is there twice", where=line, remedy=f"Remove this one, or the one at {first}."
                )
            mapping[key] = _plain(child, (*place, key), document)
            document.lines[(*place, key)] = key_node.start_mark.line + 1
        return mapping
    return _scalar(node.value, quoted=node.style in ("'", '"', "|", ">"))


def _scalar(text: str, *, quoted: bool) -> Any:
    if quoted:
        return text
    if text.lower() in _CONSTANTS:
        return _CONSTANTS[text.lower()]
    if _INTEGER.match(text) and len(text) < 20:
        return int(text)
    if _FLOAT.match(text) and math.isfinite(number := float(text)):
        return number
    return text
