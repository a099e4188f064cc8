"""Signatures of files by OpenSSH's own tool: keys that people have already, and nothing to install.

A signature is that of `ssh-keygen -Y sign` (OpenSSH's PROTOCOL.sshsig) in the namespace "edgeopt-bundle", so that one
made for another purpose does not count here. Keys may be in an agent or on a hardware token; whom to trust is a public
key, or a file of allowed signers (ssh-keygen(1), ALLOWED SIGNERS). This module knows nothing of bundles, and not when
something was signed.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

from edgeopt.errors import InputError, MissingDependency, UntrustedArtifact
from edgeopt.nearby import nearby

TOOL = "ssh-keygen"
NAMESPACE = "edgeopt-bundle"
ANYONE = "signer"  # what the holder of a single trusted key is called
PRIVATE = "-----BEGIN "


@dataclass(frozen=True)
class Signer:
    """Who signed: the key's fingerprint, and the name that the allowed signers have for it; None for a single key."""

    fingerprint: str
    name: Optional[str]


def sign(data: bytes, key: Path) -> bytes:
    """The signature of `data`, armored. `key` is a private key, or a public one whose private half is in an agent.

    A passphrase is asked for on the terminal. Raises InputError, MissingDependency.
    """
    _check(key, "--key")
    done = _run(["sign", "-q", "-f", str(key), "-n", NAMESPACE], data)
    if done.returncode:
        raise InputError(
            f"the key signs nothing: {_last_line(done.stderr)}",
            where=str(key),
            remedy="Give a private key of OpenSSH, or its .pub where it is in an agent (ssh-add).",
        )
    return done.stdout


def check(data: bytes, signature: Path, *, key: Optional[Path] = None, signers: Optional[Path] = None) -> Signer:
    """Who signed `data`: the holder of the public `key`, or one of the allowed `signers`.

    Raises UntrustedArtifact where the signature is not of this data, or of nobody who is trusted; InputError,
    MissingDependency.
    """
    found = _run(["check-novalidate", "-n", NAMESPACE, "-s", str(signature)], data)
    if found.returncode:
        raise UntrustedArtifact(
            "the signature does not fit: what was signed has changed, or the signature has", where=str(signature)
        )
    fingerprint = _fingerprint(found.stdout)
    if key is not None:
        with tempfile.NamedTemporaryFile("w", suffix=".signers") as allowed:
            allowed.write(f"{ANYONE} {public(key)}\n")
            allowed.flush()
            names = [ANYONE] if _allows(Path(allowed.name), ANYONE, data, signature) else []
    else:
        assert signers is not None
        _check(signers, "--signers")
        told = _run(["find-principals", "-f", str(signers), "-s", str(signature)], b"").stdout.decode(errors="replace")
        names = [name for name in told.splitlines() if _allows(signers, name, data, signature)]
    if not names:
        raise UntrustedArtifact(
            f"signed with the key {fingerprint}, which is {'another' if key else 'no key of the allowed signers'}",
            where=str(signature),
            remedy=f"Trusted is {key or signers}: ask who signed, and get the bundle from its maker again.",
        )
    return Signer(fingerprint, None if key is not None else names[0])


def public(key: Path) -> str:
    """Type and key of a file of a public key; that of a private key is looked for beside it."""
    _check(key, "--key")
    text = key.read_text(errors="replace")
    if text.startswith(PRIVATE):
        beside = key.with_name(f"{key.name}.pub")
        if not beside.is_file():
            raise InputError("is a private key", where=str(key), remedy="Give the public one, whose name ends in .pub.")
        text = beside.read_text(errors="replace")
    words = text.split()
    if len(words) < 2 or not re.fullmatch(r"[\w@.+-]+", words[0]) or not re.fullmatch(r"[\w+/=]+", words[1]):
        raise InputError("is no public key of OpenSSH", where=str(key), remedy="Give a file such as id_ed25519.pub.")
    return " ".join(words[:2])


def _allows(signers: Path, name: str, data: bytes, signature: Path) -> bool:
    done = _run(["verify", "-f", str(signers), "-I", name, "-n", NAMESPACE, "-s", str(signature)], data)
    return done.returncode == 0


def _run(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run([TOOL, "-Y", *arguments], input=data, capture_output=True, check=False)
    except FileNotFoundError:
        raise MissingDependency(
            f"signatures need {TOOL}, which is not on the search path",
            remedy="Install the OpenSSH client, 8.9 or newer: apt install openssh-client",
        ) from None


def _check(path: Path, option: str) -> None:
    if not path.is_file():
        raise InputError(f"{option}: no such file", where=str(path), remedy=nearby(path))


def _fingerprint(told: bytes) -> str:
    found = re.search(r"SHA256:\S+", told.decode(errors="replace"))
    return found.group() if found else "of unknown fingerprint"


def _last_line(told: bytes) -> str:
    lines = told.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no reason given"
