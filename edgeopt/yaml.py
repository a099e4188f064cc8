"""YAML as recipes and targets use it: plain values with the line of each, by the rules of YAML 1.2.

PyYAML reads YAML 1.1, in which 2:4 is 124 and `on` is true: here they are text. Aliases, deep nesting, duplicate keys
and huge files are refused, so that a stranger's file costs nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeopt.errors import InputError

LARGEST_FILE_BYTES = 1 << 20
DEEPEST = 40

Place = tuple[Any, ...]

_INTEGER = re.compile(r"[-+]?[0-9]+$")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_CONSTANTS = {"null": None, "~": None, "": None, "true": True, "false": False}


@dataclass
class Document:
    """A parsed file: `value`, and the 1-based line of each place in it, such as ("steps", 0, "quantize")."""

    name: str
    value: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def where(self, place: Place) -> str:
        """ "recipe.yaml:12" for the nearest place that has a line."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.lines:
                return f"{self.name}:{self.lines[place[:length]]}"
        return self.name


def load(path: Path) -> Document:
    """Read a YAML file. Raises InputError with the line where it is not YAML, or not the kind we take."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_FILE_BYTES + 1)
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if len(data) > LARGEST_FILE_BYTES:
        raise InputError(f"{path} is larger than {LARGEST_FILE_BYTES >> 20} MiB: not a recipe")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is not text in UTF-8") from None
    return parse(text, path.name)


def parse(text: str, name: str) -> Document:
    """Parse YAML text; `name` is what errors call it."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            line = f"{name}:{event.start_mark.line + 1}" if event.start_mark else name
            if isinstance(event, yaml.AliasEvent):
                raise InputError("aliases are not taken here", where=line)
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST:
                raise InputError("nested too deep", where=line)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"not YAML: {error.problem}", where=f"{name}:{line}") from None
    except (yaml.YAMLError, ValueError) as error:
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
                raise InputError(f"the key {key!r} is there twice", where=line)
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
    if _FLOAT.match(text):
        return float(text)
    return text
