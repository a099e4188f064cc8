"""Is a bundle whole, unchanged, and from whom it should be?

    edgeopt.json        holds the sha256 of every other file
    edgeopt.json.sig    optional: a signature of edgeopt.json (see `edgeopt.signing`), which so covers every file

Refused are a changed byte, a missing file, a file that is not listed, a link; and where a signer is asked for, a bundle
without a signature, with one of something else, or by anybody else. OpenSSH alone can check the signature too:
`ssh-keygen -Y verify -f SIGNERS -I NAME -n edgeopt-bundle -s edgeopt.json.sig < edgeopt.json`.

Without a signer digests show accidents, not malice: whoever changes a file can change the manifest as well. And an
older bundle of the same signer is as good as a newer one: compare `Verified.artifact` with what you expect.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from edgeopt import signing
from edgeopt.bundle import AGAIN, MANIFEST, Bundle, check_file, read_bundle
from edgeopt.errors import CorruptArtifact, InputError, UntrustedArtifact
from edgeopt.signing import Signer
from edgeopt.units import format_size

SIGNATURE = f"{MANIFEST}.sig"
BEST = "best"


@dataclass(frozen=True)
class Verified:
    """A bundle that is what its manifest says. `artifact` is the artifact's digest, `signer` who was asked for.

    `is_signed` says whether there is a signature; without a signer it was not checked.
    """

    folder: Path
    artifact: str
    files: int
    size_bytes: int
    is_signed: bool
    signer: Optional[Signer]

    def to_json(self) -> Dict[str, Any]:
        return {
            "schema": 1,
            "bundle": str(self.folder),
            "artifact": self.artifact,
            "files": self.files,
            "size_bytes": self.size_bytes,
            "is_signed": self.is_signed,
            "signer": asdict(self.signer) if self.signer else None,
        }

    def lines(self) -> Tuple[str, ...]:
        """For people."""
        what = f"{self.folder}: {self.files} files, {format_size(self.size_bytes)}, each as the manifest says, no other"
        if self.signer:
            name = f"{self.signer.name}, " if self.signer.name else ""
            return (what, f"signed by {name}key {self.signer.fingerprint}")
        return (what, "signed, not checked: --key or --signers says whom to trust" if self.is_signed else "not signed")


def verify(path: Path, *, key: Optional[Path] = None, signers: Optional[Path] = None) -> Verified:
    """Check a bundle (or the one of a run), and with `key` or `signers` who signed it.

    Raises InputError where it is no bundle, CorruptArtifact where a file is not what it should be, UntrustedArtifact
    where the signature is not, MissingDependency where there is nothing to check it with.
    """
    if key is not None and signers is not None:
        raise InputError("--key and --signers both say whom to trust", remedy="Give one of them.")
    folder = _bundle_folder(path)
    signer = None
    if key is not None or signers is not None:
        signer = _signer(folder, key, signers)
    bundle = read_bundle(folder)
    for entry in bundle.listed:
        check_file(folder, entry)
    _refuse_others(bundle)
    size_bytes = sum(entry.size_bytes for entry in bundle.listed)
    signed = (folder / SIGNATURE).exists()
    return Verified(folder, bundle.artifact.digest, len(bundle.listed), size_bytes, signed, signer)


def sign(path: Path, key: Path) -> Verified:
    """Sign a bundle that verifies; a signature that is there is replaced.

    Raises what `verify` raises, and InputError where the key signs nothing or the folder cannot be written.
    """
    verified = verify(path)
    signature = verified.folder / SIGNATURE
    partial = signature.with_name(f".{SIGNATURE}.{os.getpid()}.partial")
    data = signing.sign((verified.folder / MANIFEST).read_bytes(), key)
    try:
        partial.write_bytes(data)
        os.replace(partial, signature)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", where=str(signature)) from None
    finally:
        if partial.exists():
            partial.unlink()
    return verify(verified.folder, key=key)


def _signer(folder: Path, key: Optional[Path], signers: Optional[Path]) -> Signer:
    signature = folder / SIGNATURE
    if not signature.is_file():
        raise UntrustedArtifact("the bundle is not signed", where=str(folder), remedy="Get it signed by its maker.")
    return signing.check((folder / MANIFEST).read_bytes(), signature, key=key, signers=signers)


def _refuse_others(bundle: Bundle) -> None:
    known = {MANIFEST, SIGNATURE, *(entry.path for entry in bundle.listed)}
    others: List[str] = []
    for here, folders, files in os.walk(bundle.folder):
        links = [name for name in folders if (Path(here) / name).is_symlink()]
        others += [(Path(here) / name).relative_to(bundle.folder).as_posix() for name in (*links, *files)]
    for name in sorted(set(others) - known):
        raise CorruptArtifact("the manifest does not list this file", where=str(bundle.folder / name), remedy=AGAIN)


def _bundle_folder(path: Path) -> Path:
    return path / BEST if (path / BEST / MANIFEST).is_file() and not (path / MANIFEST).is_file() else path
