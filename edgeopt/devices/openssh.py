"""A connection to a device through the ordinary OpenSSH client: one for everything, with the user's own configuration.

The client rather than a library, because it is what the user has set up and proven by hand: aliases, jump hosts, agent,
hardware keys, known hosts; and a library would be one more thing to keep secure. One process of it holds the connection
(ControlMaster), all others go through it. It lives from the pipe of this process: however this one ends, so does the
connection, and with it whatever runs at the other end.

Host keys are always verified, whatever the user's configuration says, and nothing is ever asked (BatchMode). On the
device a POSIX shell starts Python; every word of its command line is quoted. What runs there is `edgeopt.kit.remote`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

from edgeopt import device_kit
from edgeopt.errors import (
    CorruptArtifact,
    EdgeoptError,
    InputError,
    Interrupted,
    MissingDependency,
    StageError,
    TargetUnreachable,
    WorkerCrashed,
)
from edgeopt.kit.transfer import read_files, write_files
from edgeopt.worker import SILENCE_SECONDS, Limits, Progress, Worker

CONNECT_SECONDS = 15
ANSWER_SECONDS = 60.0
OLDEST_PYTHON = (3, 9)
OPTIONS = {
    "BatchMode": "yes",
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": str(CONNECT_SECONDS),
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "ClearAllForwardings": "yes",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}
READY = b"edgeopt is connected\n"
FOLDER = "edgeopt-ssh-"  # and the number of the process, and some letters: where its socket is
# Runs in any Python, to be told that it is too old, and reads the kit from its input where it is not there yet.
BOOTSTRAP = """\
import json, sys
def tell(**told): print("edgeopt " + json.dumps(dict(told, python=list(sys.version_info[:3])))); sys.exit()
if sys.version_info < (3, 9): tell()
import hashlib, os, pathlib
os.umask(0o077)
cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
kit = cache / "edgeopt-device" / "kits" / (sys.argv[1] + ".pyz")
data = sys.stdin.buffer.read()
try:
    if data and hashlib.sha256(data).hexdigest() == sys.argv[1]:
        kit.parent.mkdir(parents=True, exist_ok=True)
        partial = kit.with_name(".%d.partial" % os.getpid())
        partial.write_bytes(data)
        partial.replace(kit)
    there = kit.is_file() and hashlib.sha256(kit.read_bytes()).hexdigest() == sys.argv[1]
    if there: os.utime(str(kit))
except OSError as error: tell(error=str(error))
tell(kit=str(kit), there=there)
"""


@dataclass(frozen=True)
class Address:
    """Where a device is: `host` as `ssh` takes it (user@host, or an alias), and what differs from its configuration."""

    host: str
    port: int | None = None
    key: str | None = None
    known_hosts: str | None = None
    python: str = "python3"

    def __str__(self) -> str:
        return self.host + (f", port {self.port}" if self.port else "")

    @property
    def by_hand(self) -> str:
        """The command by which a person comes there."""
        words = ["ssh", *(["-p", str(self.port)] if self.port else []), *(["-i", self.key] if self.key else [])]
        return shlex.join([*words, self.host])


@dataclass(frozen=True)
class Connection:
    """An open connection: the control socket of the process that holds it, and the kit's path on the device."""

    address: Address
    socket: str
    kit: str = ""

    @property
    def folder(self) -> Path:
        """For temporary files: gone with the connection, or by the next one where its process was killed."""
        return Path(self.socket).parent

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Connection:
        return Connection(**{**value, "address": Address(**value["address"])})

    def command(self, *words: str) -> list[str]:
        """The local command line that runs the device's Python with these arguments."""
        remote = " ".join(["exec", _python(self.address.python), *map(shlex.quote, words)])
        return [*_client(self.address, self.socket, "ControlMaster=no"), "--", self.address.host, remote]

    def call(
        self,
        function: str,
        args: Mapping[str, Any],
        *,
        log: Path,
        seconds: float | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """Run "module:function" of the kit as a worker on the device; `log` is what it prints there.

        Raises the job's error, WorkerCrashed, TargetUnreachable where the connection is lost.
        """
        command = self.command(self.kit, "remote", "worker")
        try:
            with Worker(function, args, log=log, limits=Limits(seconds=seconds), command=command) as worker:
                return worker.result(progress)
        except WorkerCrashed as error:
            self._check()
            if f"exit code {Interrupted.exit_code} " in error.message:
                raise TargetUnreachable(
                    f"{self.address} heard nothing from here for {SILENCE_SECONDS:.0f} s, and stopped",
                    remedy="This machine may have slept. The same command goes on from what is finished.",
                ) from None
            raise

    def put(self, files: Mapping[str, Path], tell: Callable[[float], None] = lambda _: None) -> None:
        """Send files, named by their sha256, to be kept there. `tell` is given the fraction that is sent."""
        total, sent = sum(path.stat().st_size for path in files.values()) or 1, 0

        def count(size: int) -> None:
            nonlocal sent
            sent += size
            tell(sent / total)

        with self._pipes("put", "receive files") as (stdin, _):
            write_files(stdin, files.items(), count)

    def get(self, results: str, folder: Path) -> None:
        """Fetch the results of a job into `folder`; they are removed there."""
        with self._pipes("get", "send its results") as (stdin, stdout):
            stdin.write(json.dumps({"results": results}).encode() + b"\n")
            stdin.flush()
            read_files(stdout, folder, by_content=False)

    @contextlib.contextmanager
    def _pipes(self, verb: str, what: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
        """Both ends of `remote <verb>` there. Raises TargetUnreachable, StageError where it fails."""
        broken: EdgeoptError | None = None
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                self.command(self.kit, "remote", verb),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                try:
                    yield process.stdin, process.stdout
                except BrokenPipeError:
                    pass  # it tells why
                except CorruptArtifact as error:
                    broken = error
                _shut(process.stdin)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=ANSWER_SECONDS)
            finally:
                process.kill()
                process.wait()
                _shut(process.stdin)
                _shut(process.stdout)
            errors.seek(0)
            told = _last_line(errors.read().decode(errors="replace"))
        if process.returncode or broken:
            self._check()
            told = told or (broken.message if broken else f"it ended with exit code {process.returncode}")
            raise StageError(f"{self.address.host} could not {what}: {told}")

    def _check(self) -> None:
        """Raise TargetUnreachable where the connection is gone."""
        alive = [*_client(self.address, self.socket, "ControlMaster=no"), "-O", "check", "--", self.address.host]
        for wait in (0.0, 0.5):  # its holder may be just about to notice
            time.sleep(wait)
            if subprocess.run(alive, capture_output=True, stdin=subprocess.DEVNULL, check=False).returncode:
                raise TargetUnreachable(
                    f"the connection to {self.address} was lost",
                    remedy="What ran there is stopped when it notices. The same command goes on from what is finished.",
                )


class Master:
    """The process that holds a connection. It ends with this object, or with the process that made it."""

    def __init__(self, address: Address) -> None:
        """Connect. Raises TargetUnreachable with the remedy, MissingDependency without the client."""
        if shutil.which("ssh") is None:
            raise MissingDependency(
                f"{address.host} is reached with ssh, which is not installed",
                remedy="Install the OpenSSH client: apt install openssh-client",
            )
        _check_file(address.key, "key")
        _check_file(address.known_hosts, "known_hosts")
        self.address = address
        # sun_path holds 108 bytes, and the client adds 17 while it makes the socket
        place = "/tmp" if len(tempfile.gettempdir()) > 50 else tempfile.gettempdir()
        _sweep(Path(place))
        folder = tempfile.mkdtemp(prefix=f"{FOLDER}{os.getpid()}-", dir=place)
        self.connection = Connection(address, str(Path(folder) / "c"))
        errors = open(Path(folder) / "errors", "w+b")  # noqa: SIM115
        command = [*_client(address, self.connection.socket, "ControlMaster=yes"), "--", address.host, "exec cat"]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        self._close = weakref.finalize(self, _close, process, errors, folder)
        try:
            self._wait(process, errors)
            kit = self._bootstrap()
        except BaseException:
            self._close()
            raise
        self.connection = replace(self.connection, kit=kit)

    def close(self) -> None:
        """Disconnect; whatever runs there ends."""
        self._close()

    def _wait(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        """Until the device has repeated what it was told."""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(READY)
            process.stdin.flush()
        heard, until = b"", time.monotonic() + CONNECT_SECONDS + ANSWER_SECONDS
        while READY not in heard:
            ready = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]
            piece = process.stdout.read1(1 << 16) if ready else b""  # type: ignore[attr-defined]
            heard += piece
            if not piece:
                process.kill()
                process.wait()
                errors.seek(0)
                raise refused(self.address, errors.read().decode(errors="replace"))
        if heard != READY:
            text = _last_line(heard.replace(READY, b"").decode(errors="replace"))
            raise TargetUnreachable(
                f"the shell of {self.address.host} prints text of its own ({text})",
                remedy="Let its start-up files (.bashrc) print only where there is a terminal; sftp needs that too.",
            )

    def _bootstrap(self) -> str:
        """Find Python there, and bring the kit. Returns its path."""
        path = self.connection.folder / "kit.pyz"
        device_kit.write(path)
        kit = path.read_bytes()
        sha256 = hashlib.sha256(kit).hexdigest()
        told = self._python(sha256, b"")
        if tuple(told["python"][:2]) < OLDEST_PYTHON:
            version = ".".join(map(str, told["python"]))
            raise TargetUnreachable(
                f"{self.address.python} on {self.address.host} is Python {version}, and 3.9 or newer is needed",
                remedy="Install a newer one there, and name it in the target: python: /usr/bin/python3.11",
            )
        if not told.get("there") and "error" not in told:
            told = self._python(sha256, kit)
        if not told.get("there"):
            raise TargetUnreachable(
                f"{self.address.host} could not keep the kit: {told.get('error', 'it arrived damaged')}",
                remedy="Its cache folder (XDG_CACHE_HOME, ~/.cache) must be writable, on a disk with some room.",
            )
        return str(told["kit"])

    def _python(self, sha256: str, data: bytes) -> dict[str, Any]:
        address = self.address
        try:
            done = subprocess.run(
                self.connection.command("-c", BOOTSTRAP, sha256),
                input=data,
                capture_output=True,
                check=False,
                timeout=ANSWER_SECONDS,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired:
            raise TargetUnreachable(
                f"Python on {address.host} gave no answer in {ANSWER_SECONDS:.0f} s",
                remedy=f"Try it by hand: {address.by_hand} {address.python} -V",
            ) from None
        told, _, answer = done.stdout.rpartition(b"edgeopt ")
        if done.returncode == 0 and not told:
            found: dict[str, Any] = json.loads(answer)
            return found
        if done.returncode in (126, 127):
            raise TargetUnreachable(
                f"there is no Python on {address.host}: {address.python} cannot be run",
                remedy="Install Python 3.9 or newer there, or name it in the target: python: /usr/bin/python3",
            )
        why = _last_line(done.stderr.decode(errors="replace")) or f"it ended with exit code {done.returncode}"
        raise TargetUnreachable(
            f"{address.python} on {address.host} does not work: {why}",
            remedy=f"Try it by hand: {address.by_hand} {address.python} -V",
        )


def refused(address: Address, told: str) -> TargetUnreachable:
    """Why the client could not connect, from what it told, and what to do."""
    host = address.host.rpartition("@")[2]
    port = f" -p {address.port}" if address.port else ""
    at = f"[{host}]:{address.port}" if address.port and address.port != 22 else host
    where = f" in {address.known_hosts}" if address.known_hosts else ""
    known = shlex.quote(address.known_hosts) if address.known_hosts else "~/.ssh/known_hosts"
    cases = [
        (
            "IDENTIFICATION HAS CHANGED",
            f"the host key of {address} is not the one that is known{where}: another machine may answer for it",
            f"Find out why. Where it was set up anew: ssh-keygen -R {shlex.quote(at)} -f {known}, and connect by hand.",
        ),
        (
            "Host key verification failed|No .* host key is known",
            f"the host key of {address} is not known{where}",
            f"Run ssh-keyscan{port} {host} >> {known} and compare it with the device's own (ssh-keygen -lf "
            f"/etc/ssh/ssh_host_ed25519_key.pub there), or connect once by hand: {address.by_hand}",
        ),
        (
            "UNPROTECTED PRIVATE KEY|bad permissions",
            f"others may read the key {address.key or 'for ' + str(address)}, so ssh does not use it",
            f"Close it: chmod 600 {shlex.quote(address.key or '~/.ssh/id_ed25519')}",
        ),
        (
            "Permission denied|Too many authentication failures|Load key",
            f"{address} does not let us in ({_last_line(told)})",
            f"Nothing can be asked here: give a key without a passphrase or one in an agent (key: in the target; "
            f"ssh-copy-id puts it there), until this works by itself: {address.by_hand} true",
        ),
        (
            "Could not resolve|Name or service not known",
            f"there is no host {host}",
            "Check the spelling of ssh: in the target, and that this network knows the name (or give its address).",
        ),
        (
            "Connection refused",
            f"{address} refuses the connection",
            "Check that an SSH server runs there (sudo systemctl enable --now ssh) and that port: is its port.",
        ),
        (
            "timed out|No route to host|unreachable",
            f"{address} does not answer",
            f"Check that it is switched on and in the same network: ping {host}",
        ),
    ]
    for pattern, message, remedy in cases:
        if re.search(pattern, told):
            return TargetUnreachable(message, remedy=remedy)
    return TargetUnreachable(
        f"{address} cannot be reached: {_last_line(told) or 'ssh ended without a word'}",
        remedy=f"Make this work first: {address.by_hand} true",
    )


def _client(address: Address, socket: str, *more: str) -> list[str]:
    """The client's command line, up to its options. Paths in them may hold spaces, and % stands for itself."""
    given = [f"{name}={value}" for name, value in OPTIONS.items()] + [f"ControlPath={_quoted(socket)}", *more]
    if address.known_hosts:
        given += [f"UserKnownHostsFile={_quoted(str(_local(address.known_hosts)))}", "GlobalKnownHostsFile=/dev/null"]
    if address.key:
        given += [f"IdentityFile={_quoted(str(_local(address.key)))}", "IdentitiesOnly=yes"]
    if address.port:
        given.append(f"Port={address.port}")
    return ["ssh", *(word for option in given for word in ("-o", option))]


def _quoted(path: str) -> str:
    """A path in ssh_config(5): quotes hold it together, tokens are escaped."""
    if '"' in path or "\n" in path or "${" in path:  # ssh would put a variable of the environment there
        raise InputError(f"{path!r}: ssh takes no path with a quotation mark or ${{", remedy="Rename it.")
    return '"' + path.replace("%", "%%") + '"'


def _local(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _check_file(path: str | None, field: str) -> None:
    if path is not None and not _local(path).is_file():
        raise InputError(f"no such file for {field}: in the target", where=path, remedy="Give a path on this machine.")


def _python(path: str) -> str:
    """The device's interpreter as a word for its shell, which alone knows what ~ is."""
    return f'"$HOME"/{shlex.quote(path[2:])}' if path.startswith("~/") else shlex.quote(path)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in io.StringIO(text) if line.strip()]
    return lines[-1][:200] if lines else ""


def _shut(pipe: IO[bytes] | None) -> None:
    if pipe is not None:
        with contextlib.suppress(OSError):
            pipe.close()


def _sweep(place: Path) -> None:
    """Remove the folders of this user's processes that were killed."""
    import psutil

    for folder in place.glob(f"{FOLDER}*-*"):
        pid = folder.name.removeprefix(FOLDER).partition("-")[0]
        with contextlib.suppress(OSError):
            mine = folder.lstat().st_uid == os.getuid() and not folder.is_symlink()
            if mine and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder, ignore_errors=True)


def _close(process: subprocess.Popen[bytes], errors: IO[bytes], folder: str) -> None:
    """End the master: its input closes, the device's `cat` ends, and so does the connection."""
    _shut(process.stdin)
    _shut(process.stdout)
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()
    errors.close()
    shutil.rmtree(folder, ignore_errors=True)


def address_of(reach: Mapping[str, Any], python: str | None) -> Address:
    """The address in a target's `reach`."""
    return Address(
        host=reach["ssh"],
        port=reach.get("port"),
        key=reach.get("key"),
        known_hosts=reach.get("known_hosts"),
        python=python or "python3",
    )
