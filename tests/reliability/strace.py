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

import asyncckpt.saving.jobs as jobs_module

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHANGING = tuple(
    re.split(
        " ",
        "mkdir mkdirat open openat creat write pwrite64 writev pwritev pwritev2 fsync fdatasync "
        "sync_file_range syncfs rename renameat renameat2 unlink unlinkat rmdir truncate ftruncate fallocate "
        "link linkat symlink symlinkat mknod mknodat copy_file_range sendfile splice msync chmod fchmod "
        "fchmodat utimensat setxattr fsetxattr",
    )
)
"""Every call that can change a directory or a file in it."""
_OPENING = ("open", "openat")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)$")
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
        return self.name not in _OPENING or "O_CREAT" in self.text or "O_TRUNC" in self.text


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
    return status, list(_parse(output.read_text(errors="replace")))


def _parse(text: str) -> Iterator[Call]:
    numbers: dict[tuple[int, str], int] = {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if found is None or "resumed>" in line:
            continue
        thread, name, rest = int(found[1]), found[2], found[3]
        numbers[thread, name] = numbers.get((thread, name), 0) + 1
        paths = tuple(Path(first or second) for first, second in _PATH.findall(rest.split(" = ")[0]))
        yield Call(thread, name, numbers[thread, name], paths, line.split(" ", 1)[1])


def changes_below(calls: list[Call], root: Path) -> list[Call]:
    """Return those that change something at or below a directory."""
    return [
        call for call in calls if call.is_changing and any(path == root or root in path.parents for path in call.paths)
    ]
