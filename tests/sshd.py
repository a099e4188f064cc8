"""A device for tests: an sshd of our own on loopback, behind it Python, numpy and one runtime."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
from test_device_kit import environment

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needed = pytest.mark.skipif(
    not (SSHD and shutil.which("ssh")), reason="needs OpenSSH: apt install openssh-server openssh-client"
)


@contextlib.contextmanager
def serving(folder: Path, prepare: Callable[[], None] = processes.as_usual) -> Iterator[SimpleNamespace]:
    """An sshd of our own, on a port of its own: its target as a recipe writes it, and what is behind it.

    `prepare` is called in its process before it starts.
    """
    for name in ("host", "other", "id", "stranger", "chatty"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    chatty = (folder / "chatty.pub").read_text()
    (folder / "authorized").write_text(
        f'{(folder / "id.pub").read_text()}command="echo Welcome; eval $SSH_ORIGINAL_COMMAND" {chatty}'
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
        f"PermitRootLogin prohibit-password\nSetEnv XDG_CACHE_HOME={folder}/cache\n"
    )
    for known, key in (("known", "host"), ("changed", "other")):
        words = (folder / f"{key}.pub").read_text().split()[:2]
        (folder / known).write_text(f"[127.0.0.1]:{port} {' '.join(words)}\n")
    (folder / "unknown").touch()
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [SSHD, "-D", "-e", "-f", folder / "config"],
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        preexec_fn=prepare,
    )
    assert b"listening" in server.stderr.readline()
    target = {
        "ssh": f"{pwd.getpwuid(os.getuid()).pw_name}@127.0.0.1",
        "port": port,
        "key": str(folder / "id"),
        "known_hosts": str(folder / "known"),
        "python": str(environment("onnxruntime")),
    }
    try:
        yield SimpleNamespace(folder=folder, target=target, cache=folder / "cache" / "edgeopt-device", pid=server.pid)
    finally:
        server.terminate()
        server.communicate(timeout=10)


def on_device(device: SimpleNamespace) -> list[int]:
    """The processes of the kit that run there: their environment names the device's cache."""
    mark, found = f"XDG_CACHE_HOME={device.folder}/cache".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes()
            if b"edgeopt" in command and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found
