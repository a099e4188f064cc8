"""Files through a pipe: a line of JSON with name and size, then the bytes, file after file, and last an end.

Both ends of a connection use it. A stream that breaks off is told by its missing end; what the bytes are is not known
here, but that they are what was promised is, where a file is named by its sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import IO, Callable, Iterable, Optional, Tuple

from edgeopt import jsontext
from edgeopt.errors import CorruptArtifact

PIECE_BYTES = 1 << 18
LONGEST_HEADER_BYTES = 1 << 16
LONGEST_NAME = 200  # bytes of one part of a path: what file systems take, less what a partial file's name adds

Tell = Callable[[int], None]


def write_files(stream: IO[bytes], files: Iterable[Tuple[str, Path]], tell: Tell = lambda _: None) -> None:
    """Write the files under the names given with them. `tell` is called with the number of bytes just written."""
    for name, path in files:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            stream.write(json.dumps({"name": name, "size": left}).encode() + b"\n")
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                if not piece:
                    raise CorruptArtifact(f"{path} became shorter while it was read")
                stream.write(piece)
                left -= len(piece)
                tell(len(piece))
    stream.write(b'{"end": true}\n')
    stream.flush()


def read_files(stream: IO[bytes], folder: Path, *, by_content: bool) -> int:
    """Write what `write_files` sent below `folder`, each in one rename; returns how many.

    `by_content` says that names are sha256 digests of the contents. Raises CorruptArtifact where the stream breaks off
    (the files that were complete are kept) or is no such stream, where a digest is another, or a name leads out of the
    folder.
    """
    count = 0
    while (header := _header(stream)) is not None:
        name, left = header
        place = folder.joinpath(*inside(name).parts)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise CorruptArtifact(f"{name!r} is below what came as a file") from None
        if place.is_dir():
            raise CorruptArtifact(f"{name!r} came as a folder before")
        partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
        digest = hashlib.sha256()
        try:
            with open(partial, "wb") as file:
                while left:
                    piece = stream.read(min(left, PIECE_BYTES))
                    if not piece:
                        raise CorruptArtifact("the transfer broke off")
                    digest.update(piece)
                    file.write(piece)
                    left -= len(piece)
            if by_content and digest.hexdigest() != name:
                raise CorruptArtifact(f"{name[:12]} arrived with other content: {digest.hexdigest()[:12]}")
            os.replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)
        count += 1
    return count


def _header(stream: IO[bytes]) -> Optional[Tuple[str, int]]:
    """Name and size of the next file, None at the end."""
    line = stream.readline(LONGEST_HEADER_BYTES)
    if not line.endswith(b"\n"):
        raise CorruptArtifact("the transfer broke off")
    try:
        header = jsontext.parse(line)
    except ValueError:
        header = None
    if isinstance(header, dict) and header.get("end") is True:
        return None
    name, size = (header.get("name"), header.get("size")) if isinstance(header, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise CorruptArtifact("the transfer is damaged")
    return name, size


def inside(name: str) -> PurePosixPath:
    """A relative path that stays below its folder. Raises CorruptArtifact."""
    path = PurePosixPath(name)
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0) if name.isprintable() else 0
    if path.is_absolute() or ".." in path.parts or not 0 < longest <= LONGEST_NAME:
        raise CorruptArtifact(f"{name[:LONGEST_NAME]!r} is no name below a folder")
    return path
