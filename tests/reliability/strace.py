"""strace(1): the system calls of a process, recorded; and one of them failed or made deadly.

`-e inject=CALL:...:when=N` counts in each thread for itself. So a workload is played with one worker thread, and the N
of a call is told from a recording of the same workload.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import asyncckpt.runtime.jobs as jobs_module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_OPENING = ("open", "openat", "openat2", "open_by_handle_at")
"""They change something only with these flags:"""
_MAKING = ("O_CREAT", "O_TRUNC", "O_TMPFILE")
_UNSEEN = ("io_uring_setup", "io_uring_enter", "io_submit")
"""What they do is not seen: one of them is a change, whatever it is of."""
_CLONING = ("FICLONE", "FIDEDUPERANGE", "SETFLAGS", "FSSETXATTR", "FS_IOC", "EXT4_IOC", "XFS_IOC")
"""The ioctls that change a file."""
CHANGING = (
    *_OPENING,
    *_UNSEEN,
    *re.split(
        r"\s+",
        "creat mkdir mkdirat mknod mknodat link linkat symlink symlinkat "
        "rename renameat renameat2 unlink unlinkat rmdir "
        "write pwrite64 writev pwritev pwritev2 copy_file_range sendfile sendfile64 splice "
        "truncate truncate64 ftruncate ftruncate64 fallocate mmap mmap2 msync ioctl "
        "fsync fdatasync sync_file_range sync_file_range2 syncfs "
        "chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat "
        "utime utimes futimesat utimensat utimensat_time64 "
        "setxattr lsetxattr fsetxattr setxattrat removexattr lremovexattr fremovexattr removexattrat",
    ),
)
"""Every call that can change a directory or a file in it."""
_LINE = re.compile(r"(\d+) +(\w+)\((.*)$")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)$")
_UNFINISHED = " <unfinished ...>"
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"|<(/[^>]*)>')


class Call(NamedTuple):
    """A system call."""

    thread: int
    name: str
    number: int
    """Which call of this name in its thread, from 1 on: strace's `when`."""
    paths: tuple[Path, ...]
    text: str

    @property
    def is_changing(self) -> bool:
        """Whether it can change anything on a disk."""
        if self.name in _OPENING:
            return any(flag in self.text for flag in _MAKING)
        if self.name in ("mmap", "mmap2"):
            return "PROT_WRITE" in self.text and "MAP_SHARED" in self.text
        return self.name != "ioctl" or any(request in self.text for request in _CLONING)


def missing_strace() -> str | None:
    """Return why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    with contextlib.suppress(OSError):
        if subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0:  # noqa: S607
            return None
    return "strace may not trace processes here"


def traced(function: Callable[[], Any], folder: Path, *, inject: Sequence[str] = ()) -> tuple[int, list[Call]]:
    """Run a function in a process of its own under strace.

    Args:
        function: What to run. Managers in it have one worker thread.
        folder: For strace's own output.
        inject: Values of `-e inject`.

    Returns:
        How the process ended, and its system calls in order.
    """
    output = folder / "strace"
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            jobs_module._THREADS = 1  # type: ignore[misc]
            os.kill(os.getpid(), signal.SIGSTOP)
            function()
            status = 0
        finally:
            os._exit(status)
    os.waitpid(pid, os.WUNTRACED)
    options = [word for each in inject for word in ("-e", f"inject={each}")]
    command = ["strace", "-f", "-y", "-s", "0", "-o", str(output), "-e", f"trace=/^({'|'.join(CHANGING)})$"]
    tracer = subprocess.Popen([*command, *options, "-p", str(pid)], stderr=subprocess.PIPE, text=True)  # noqa: S603
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        tracer.wait()
        message = f"strace could not attach: {line}"
        raise RuntimeError(message)
    os.kill(pid, signal.SIGCONT)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    tracer.stderr.read()
    tracer.wait()
    return status, _parse(output.read_text(errors="replace"))


def _parse(text: str) -> list[Call]:
    numbers: dict[tuple[int, str], int] = {}
    calls: list[Call] = []
    cut_off: dict[int, int] = {}  # by its thread: the call whose end stands further down
    for line in text.splitlines():
        end = _RESUMED.match(line)
        if end is not None:
            at = cut_off.pop(int(end[1]), None)
            if at is not None:
                calls[at] = calls[at]._replace(text=calls[at].text.replace(_UNFINISHED, "") + end[2])
            continue
        found = _LINE.match(line)
        if found is None:
            continue
        thread, name, rest = int(found[1]), found[2], found[3]
        if _UNFINISHED in rest:
            cut_off[thread] = len(calls)
        numbers[thread, name] = numbers.get((thread, name), 0) + 1
        paths = tuple(Path(first or second) for first, second in _PATH.findall(rest.split(" = ")[0]))
        calls.append(Call(thread, name, numbers[thread, name], paths, line.split(" ", 1)[1]))
    return calls


def changes_below(calls: list[Call], root: Path) -> list[Call]:
    """Return those that change something at or below a directory, and those of which nobody sees what they do."""
    return [
        call
        for call in calls
        if call.name in _UNSEEN
        or (call.is_changing and any(path == root or root in path.parents for path in call.paths))
    ]
