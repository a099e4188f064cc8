"""One job in a process of its own: JSON in, progress and a result as JSON out, one object a line.

A worker that segfaults, hangs or takes all memory costs its own job alone: the parent gets a `WorkerCrashed` that says
what happened and where the log is. What vendors print goes to the log, never into the JSON. A worker dies with its
parent, however the parent dies.

    parent to worker    {"call": "module:function", "args": {...}}, then whatever the function receives
    worker to parent    {"progress": fraction or null, "text": "..."}, {"message": {...}},
                        and last {"result": {...}} or {"error": {...}}

A worker on another machine, whose parent is the client of a connection, is told {"alive": true} every 10 s: one that
hears nothing for 120 s takes the connection for lost.

A worker also dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG): use it in that thread alone. This
module knows nothing of models, stages or measurements.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import importlib
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, cast

from edgeopt.errors import EdgeoptError, InputError, StageError, WorkerCrashed, from_json
from edgeopt.text import named_line

Progress = Callable[[Optional[float], str], None]

POLL_SECONDS = 0.2
BEAT_SECONDS, SILENCE_SECONDS = 10.0, 120.0
LEAVE_SECONDS = 10.0  # for a worker that lost its connection to clear up, before it ends as it is
LONGEST_LINE_BYTES = 64 << 20
LONGEST_LOG_BYTES = 16 << 20
DISK = "disk"  # the `where` of the error of a full one: the parent knows what it gave the worker to write in
_SHORT_WRITE = re.compile(r"^\d+ requested and \d+ written")  # numpy's words for a full disk, without an errno
_PR_SET_PDEATHSIG = 1
_CODE_OF_ZIPAPP = """
import sys
if sys.path[0] == "":
    sys.path.append(sys.path.pop(0))
from edgeopt.worker import main
sys.exit(main())
"""
_CODE = """
import sys
if sys.path[0] == "":
    sys.path.append(sys.path.pop(0))
import importlib.util
spec = importlib.util.spec_from_file_location("edgeopt", {init!r}, submodule_search_locations=[{package!r}])
sys.modules["edgeopt"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["edgeopt"])
from edgeopt.worker import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Limits:
    """When a worker is stopped: wall-clock seconds for the whole job, bytes of resident memory. None is no limit."""

    seconds: Optional[float] = None
    memory_bytes: Optional[int] = None


class Channel:
    """The worker's end: what a job's function uses to tell and to be told."""

    def __init__(self, write: Callable[[Mapping[str, Any]], None], inbox: queue.Queue[Dict[str, Any]]) -> None:
        self._write = write
        self._inbox = inbox

    def progress(self, fraction: Optional[float], text: str) -> None:
        self._write({"progress": fraction, "text": text})

    def send(self, message: Mapping[str, Any]) -> None:
        self._write({"message": dict(message)})

    def receive(self) -> Dict[str, Any]:
        """The parent's next message. Blocks."""
        return self._inbox.get()


class Worker:
    """The parent's end of one worker process.

    `log` receives what the worker and its libraries print: of more than 16 MiB the first and the last 4 MiB. `command`
    starts a worker elsewhere, in place of one in `python` here: its pipes are the connection. Use it as a context
    manager: on leaving, the process is gone.
    """

    def __init__(
        self,
        call: str,
        args: Mapping[str, Any],
        *,
        log: Path,
        limits: Limits = Limits(),
        python: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        command: Optional[Sequence[str]] = None,
    ) -> None:
        self.log = log
        self._limits = limits
        self._is_elsewhere = command is not None
        self._started = self._beaten = time.monotonic()
        self._buffer = bytearray()
        self._lines: List[bytes] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        code, more = _program()
        environment = {**os.environ, **(env or {}), **({} if command else more), "PYTHONUNBUFFERED": "1"}
        with open(log, "ab") as log_file:
            self._process = subprocess.Popen(
                command or [python or sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=environment,
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.send({"call": call, "args": dict(args)})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def send(self, message: Mapping[str, Any]) -> None:
        """A message for the job's `Channel.receive`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._last_words() from None

    def receive(self, progress: Optional[Progress] = None, *, seconds: Optional[float] = None) -> Dict[str, Any]:
        """The job's next message. Raises the job's error, or WorkerCrashed, also after `seconds` without any."""
        while True:
            event = self._next_event(seconds)
            if "message" in event:
                message: Dict[str, Any] = event["message"]
                return message
            if "error" in event:
                raise self._error(event["error"])
            if "progress" in event and progress:
                progress(event["progress"], event["text"])
            if "result" in event:
                raise self._crashed("ended before it was asked to")

    def result(self, progress: Optional[Progress] = None) -> Dict[str, Any]:
        """What the job's function returned. Raises the job's error, or WorkerCrashed."""
        while True:
            event = self._next_event()
            if "result" in event:
                result: Dict[str, Any] = event["result"]
                return result
            if "error" in event:
                raise self._error(event["error"])
            if "progress" in event and progress:
                progress(event["progress"], event["text"])

    def kill(self) -> None:
        """End the process and its children, now; the thread that uses this worker finds it crashed."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()

    def stop(self) -> None:
        """End the process and its children, and let go of its pipes. For the thread that uses this worker alone."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        _shorten(self.log)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _next_event(self, seconds: Optional[float] = None) -> Dict[str, Any]:
        assert self._process.stdout is not None
        started = time.monotonic()
        descriptor = self._process.stdout.fileno()
        while not self._lines:
            self._check_limits()
            self._beat()
            if seconds is not None and time.monotonic() - started > seconds:
                raise self._crashed(f"gave no sign of life for {seconds:.0f} s and was stopped")
            ended = self._process.poll() is not None
            if not select.select([descriptor], [], [], POLL_SECONDS)[0]:
                if ended:  # and a process that it forked holds the pipe open
                    raise self._crashed(None)
                continue
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise self._crashed(None)
            self._buffer += piece
            if len(self._buffer) > LONGEST_LINE_BYTES:
                raise self._crashed(f"sent a line of more than {LONGEST_LINE_BYTES >> 20} MiB")
            if b"\n" in piece:
                *self._lines, rest = bytes(self._buffer).split(b"\n")
                self._buffer = bytearray(rest)
        try:
            event = json.loads(self._lines.pop(0))
        except (ValueError, RecursionError):
            event = None
        if not _is_event(event):
            raise self._crashed("sent something other than its messages")
        return cast(Dict[str, Any], event)

    def _check_limits(self) -> None:
        _shorten(self.log)
        seconds, memory = self._limits.seconds, self._limits.memory_bytes
        if seconds is not None and time.monotonic() - self._started > seconds:
            raise self._crashed(f"ran past its limit of {seconds:.0f} s and was stopped")
        used = resident_bytes(self.pid) if memory is not None else None
        if memory is not None and used is not None and used > memory:
            raise self._crashed(f"took {used >> 20} MiB, more than its limit of {memory >> 20} MiB, and was stopped")

    def _beat(self) -> None:
        """Tell a worker elsewhere that the connection is there."""
        if self._is_elsewhere and time.monotonic() - self._beaten > BEAT_SECONDS:
            self._beaten = time.monotonic()
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):  # its output tells why it is gone
                self._process.stdin.write(b'{"alive": true}\n')
                self._process.stdin.flush()

    def _last_words(self) -> EdgeoptError:
        """Why a process that takes no more messages ended: its own error, or how it died."""
        try:
            while True:
                event = self._next_event(5)
                if "error" in event:
                    return self._error(event["error"])
                if "result" in event:
                    return self._crashed("ended before it was asked to")
        except WorkerCrashed as crash:
            return crash

    def _error(self, error: Mapping[str, Any]) -> EdgeoptError:
        self.stop()
        return from_json(error)

    def _crashed(self, what: Optional[str]) -> WorkerCrashed:
        if what is None:
            try:
                code = self._process.wait(timeout=5)
                what = _describe_exit(code)
            except subprocess.TimeoutExpired:
                what = "closed its output"
        self.stop()
        return WorkerCrashed(f"the worker process {what}", remedy=f"Log: {self.log}")


def _is_event(event: object) -> bool:
    """Whether what a worker sent has the form of its messages: a library may have written to the wrong pipe."""
    if not isinstance(event, dict):
        return False
    if "progress" in event:
        return isinstance(event.get("text"), str) and isinstance(event["progress"], (int, float, type(None)))
    return any(isinstance(event.get(kind), dict) for kind in ("message", "result", "error"))


def _shorten(log: Path) -> None:
    """Cut the middle out of a log that has grown too long. The worker may be writing to its end."""
    kept = LONGEST_LOG_BYTES // 4
    with contextlib.suppress(OSError):
        size = log.stat().st_size
        if not log.is_file() or size <= LONGEST_LOG_BYTES:
            return
        with open(log, "r+b") as file:
            file.seek(size - kept)
            end = file.read(kept)
            file.seek(kept)
            file.write(b"\n[... %d MiB left out ...]\n" % ((size - 2 * kept) >> 20))
            file.write(end)
            file.truncate()


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code} and no result"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _program() -> Tuple[str, Dict[str, str]]:
    """What an interpreter runs to be a worker, and the environment that it needs.

    This very package is imported, and nothing that lies beside it: site-packages of this interpreter would break
    another one. Only a zipapp, which holds nothing else, goes onto the path. Modules in the current folder come last,
    so that a user's queue.py does not stand for the standard library's.
    """
    package = Path(__file__).resolve().parent
    if package.is_dir():
        return _CODE.format(init=str(package / "__init__.py"), package=str(package)), {}
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    return _CODE_OF_ZIPAPP, {"PYTHONPATH": path}


def resident_bytes(pid: int) -> Optional[int]:
    """Resident memory of a process, None where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def peak_memory_bytes() -> Optional[int]:
    """The most memory that was resident in this process so far (VmHWM); None where the system does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            found = next((line for line in status if line.startswith("VmHWM:")), None)
    except OSError:
        return None
    return int(found.split()[1]) * 1024 if found else None


def call(
    function: str,
    args: Mapping[str, Any],
    *,
    log: Path,
    limits: Limits = Limits(),
    progress: Optional[Progress] = None,
    python: Optional[str] = None,
    env: Optional[Mapping[str, str]] = None,
) -> Dict[str, Any]:
    """Run "module:function" in a worker and return its result."""
    with Worker(function, args, log=log, limits=limits, python=python, env=env) as worker:
        return worker.result(progress)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _be_first_to_go() -> None:
    """Where memory runs out, the kernel takes this process rather than its parent or a bystander (proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _listen(descriptor: int, inbox: queue.Queue[Dict[str, Any]], seconds: Optional[float]) -> None:
    """Put the parent's lines into `inbox`, until it is gone or has been silent for `seconds`."""
    rest = b""
    while select.select([descriptor], [], [], seconds)[0]:
        piece = os.read(descriptor, 1 << 16)
        if not piece:
            return
        *lines, rest = (rest + piece).split(b"\n")
        for message in map(json.loads, lines):
            if "alive" not in message:
                inbox.put(message)


def _follow(descriptor: int, inbox: queue.Queue[Dict[str, Any]], far: bool) -> None:
    """Listen to the parent; when it is gone, so is this process.

    A worker on another machine gets a while to stop its own workers and clear up, by a KeyboardInterrupt of its job.
    """
    try:
        _listen(descriptor, inbox, SILENCE_SECONDS if far else None)
    finally:
        if far:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            time.sleep(LEAVE_SECONDS)
        os._exit(1)


def main(*, far: bool = False) -> int:
    """The worker's own main: one job, then the end.

    `far` is for a worker at the other end of a connection: raises KeyboardInterrupt in its job when that is lost.
    """
    if not far:
        _die_with_parent()
        _be_first_to_go()
    faulthandler.enable()  # a segfault leaves the Python line that led to it in the log
    signal.signal(signal.SIGINT, signal.default_int_handler if far else signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    commands = os.dup(0)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)

    lock = threading.Lock()

    def write(event: Mapping[str, Any]) -> None:
        data = json.dumps(event, allow_nan=False).encode() + b"\n"
        with lock:
            view = memoryview(data)
            while view:
                view = view[out.write(view) or 0 :]

    inbox: queue.Queue[Dict[str, Any]] = queue.Queue()
    threading.Thread(target=_follow, args=(commands, inbox, far), daemon=True).start()
    job = inbox.get()
    module, _, function = job["call"].partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(job["args"], Channel(write, inbox))
        write({"result": result})
    except Exception as error:
        with contextlib.suppress(OSError):  # a full disk takes no log, and the error is told all the same
            traceback.print_exc()
        write({"error": _told(error).to_json()})
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)  # vendors' threads and destructors may hang or crash at interpreter shutdown; the work is done


def _told(error: BaseException) -> EdgeoptError:
    """An exception of a job as the parent is told it."""
    if isinstance(error, EdgeoptError):
        return error
    if isinstance(error, MemoryError):
        return WorkerCrashed("the worker process ran out of memory")
    if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or _SHORT_WRITE.search(str(error))):
        remedy = "Free some, run `edgeopt cache gc`, or point EDGEOPT_CACHE to another disk."
        return InputError("no space left for what the worker writes", where=DISK, remedy=remedy)
    return StageError(named_line(error))
