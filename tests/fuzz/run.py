"""Fuzz one reader with atheris, guided by coverage, until it is stopped: `pip install atheris`, then

    python tests/fuzz/run.py recipe -max_total_time=600

What libFuzzer takes (-runs=, -max_len=, -rss_limit_mb=) follows the reader's name (see `readers.READERS`). Its corpus
begins with the valid files of `corpus` and is kept in a temporary folder, whose name is printed. A file that ends in
anything else than `edgeopt.errors` with code 2 or 4 is written to crash-*. The reader runs in this process: one that
calls native code ends it where that crashes.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["edgeopt"]):
    import corpus
    import readers

    from edgeopt.errors import EdgeoptError


def main(name: str, options: list[str]) -> None:
    reader = readers.READERS[name]
    folder = Path(tempfile.mkdtemp(prefix="edgeopt-fuzz-"))
    with atheris.instrument_imports(include=["edgeopt"]):  # readers import what they need when they are called
        corpus.make(name, folder / "files")
        reader.read(folder / "files")
    (folder / "corpus").mkdir()
    target = folder / "files" / reader.files[0]
    (folder / "corpus" / "valid").write_bytes(target.read_bytes())
    print(f"corpus: {folder / 'corpus'}")

    def once(data: bytes) -> None:
        target.write_bytes(data)
        try:
            reader.read(folder / "files")
        except EdgeoptError as error:
            if error.exit_code not in (2, 4) or len(error.lines()) > 5:
                raise AssertionError(error.lines()) from error

    atheris.Setup([sys.argv[0], "-timeout=30", "-rss_limit_mb=4096", *options, str(folder / "corpus")], once)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in readers.READERS:
        sys.exit(f"{__doc__}\nReaders: {', '.join(readers.READERS)}")
    main(sys.argv[1], sys.argv[2:])
