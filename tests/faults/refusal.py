"""System calls that the kernel refuses to a process and to all that it starts, by a filter of seccomp(2)."""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Callable

# Numbers of <asm/unistd.h>; what an architecture lacks has none there.
CALLS = {
    "x86_64": {"link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "fsync": 74},
    "aarch64": {"linkat": 37, "symlinkat": 36, "fsync": 82},
}
LOAD_NUMBER, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # <linux/bpf_common.h>, <linux/seccomp.h>
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER = 38, 22, 2  # <linux/prctl.h>


def known() -> bool:
    """Whether the numbers of this machine's system calls are."""
    return platform.system() == "Linux" and platform.machine() in CALLS


def refusing(*names: str, error: int = errno.EPERM) -> Callable[[], None]:
    """For `preexec_fn`: from then on these calls fail with `error`."""
    numbers = [number for name, number in CALLS[platform.machine()].items() if name in names]
    program = [(LOAD_NUMBER, 0, 0, 0)]
    for number in numbers:
        program += [(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, FAIL | error)]
    code = b"".join(struct.pack("HBBI", *line) for line in [*program, (RETURN, 0, 0, ALLOW)])
    kept = ctypes.create_string_buffer(code, len(code))
    pointed = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(kept)))
    library = ctypes.CDLL(None, use_errno=True)

    def refuse() -> None:
        if library.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) or library.prctl(SET_SECCOMP, FILTER, pointed, 0, 0):
            raise OSError(ctypes.get_errno(), "no filter could be set")
        assert kept is not None  # the program lives as long as this function

    return refuse
