"""What the rigs excuse and what not: a failure in silence, a change in no record, a loss that needs no mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from reliability import chaos
from reliability.changes import Made, is_made_good, of_call, of_change
from reliability.disks import Change
from reliability.faults import CODES, OTHERS, Faults, codes_at
from reliability.ledger import Ledger
from reliability.mistakes import BUGS
from reliability.report import lines
from reliability.rig import Result
from reliability.rigs import RIGS
from reliability.seeded import SEPARATOR, control_of
from reliability.strace import _parse, missing_strace
from reliability.workloads import NAMED, make_workload, split_unit, workload_names

ROOT = Path(__file__).parents[2]
FILE, SIBLING, LOCK = Path("/r/woof.h5"), Path("/r/.woof.h5.tmp"), Path("/r/.woof.h5.lock")


def test_what_strace_saw_and_what_was_asked_for_are_the_same() -> None:
    """Names, both paths, offsets, lengths and sizes, also of a call whose end stands further down."""
    text = """\
10 mkdir("/r/a", 0777) = 0
10 openat(AT_FDCWD</w>, "/r/a/b", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0666) = 5</r/a/b>
10 pwritev2(5</r/a/b>, [...], 2, 4096, 0 <unfinished ...>
11 fsync(6</r/c>) = 0
10 <... pwritev2 resumed>) = 100
10 ftruncate(5</r/a/b>, 20)  = 0
10 rename("/r/a", "/r/d") = 0
10 renameat2(AT_FDCWD</w>, "/r/d", AT_FDCWD</w>, "/r/e", RENAME_EXCHANGE) = 0
10 pwrite64(5</r/a/b>(deleted), ""..., 3, 5) = -1 ENOSPC (No space left on device) (INJECTED)
"""
    made = [of_call(call) for call in _parse(text)]
    file = Path("/r/a/b")
    asked = [
        Change(0, "mkdir", Path("/r/a")),
        Change(1, "create", file),
        Change(2, "write", file, offset=4096, data=bytes(100)),
        Change(3, "sync", Path("/r/c")),
        Change(4, "truncate", file, offset=20),
        Change(5, "rename", Path("/r/a"), Path("/r/d")),
        Change(6, "exchange", Path("/r/d"), Path("/r/e")),
        Change(7, "write", file.with_name("b (deleted)"), offset=5, data=bytes(3), has_failed=True),
    ]
    assert [one.equals(of_change(other)) for one, other in zip(made, asked, strict=True)] == [True] * len(asked)
    assert made[2].nbytes == 100
    assert made[-1].has_failed
    for other in (
        Change(2, "write", file, offset=4097, data=bytes(100)),
        Change(2, "write", file, offset=4096, data=bytes(99)),
        Change(2, "write", Path("/r/c"), offset=4096, data=bytes(100)),
    ):
        assert not made[2].equals(of_change(other))
    assert not made[5].equals(of_change(Change(5, "rename", Path("/r/a"), Path("/r/e"))))


@pytest.mark.parametrize(
    ("after", "is_good"),
    [
        ([Made("write", FILE, None, 10, 20)], True),
        ([Made("fsync", SIBLING), Made("write", FILE, None, 20, 10), Made("write", FILE, None, 0, 20)], True),
        ([Made("truncate", FILE, None, 10), Made("fsync", FILE)], True),
        ([Made("truncate", FILE, None, 11), Made("fsync", FILE)], False),
        ([Made("truncate", FILE, None, 10, has_failed=True), Made("fsync", FILE)], False),
        ([Made("write", FILE, None, 10, 19)], False),
        ([Made("write", FILE, None, 11, 30)], False),
        ([Made("write", SIBLING, None, 10, 20)], False),
        ([Made("write", FILE, None, 10, 20, has_failed=True)], False),
        ([Made("fsync", FILE), Made("write", FILE, None, 10, 20)], False),
        ([], False),
    ],
)
def test_a_failed_write_is_made_good_by_one_of_all_its_bytes_or_cut_off(after: list[Made], *, is_good: bool) -> None:
    """Before anything else is done with the file, and by writes that do not fail."""
    failed = Made("write", FILE, None, 10, 20, has_failed=True)
    assert is_made_good([failed, *after], 0) == is_good


def test_a_failed_sync_of_a_file_is_made_good_by_no_other_but_by_another_file() -> None:
    """A directory is synced again; a file never is, but one that is written anew may take its name."""
    folder = Path("/r")
    failed = Made("fsync", FILE, has_failed=True)
    again, replaced = Made("fsync", FILE), Made("rename", SIBLING, FILE)
    assert not is_made_good([failed, again], 0)
    assert is_made_good([failed, again, replaced], 0)
    assert not is_made_good([failed, replaced._replace(has_failed=True)], 0)
    assert not is_made_good([failed, Made("rename", FILE, SIBLING)], 0)
    failed = Made("fsync", folder, has_failed=True)
    assert is_made_good([failed, Made("write", FILE), Made("fsync", folder)], 0)
    assert not is_made_good([failed, Made("write", FILE), Made("fsync", folder, has_failed=True)], 0)
    assert not is_made_good([failed, Made("write", FILE), Made("fsync", FILE)], 0)


def test_a_failure_of_a_sibling_is_excused_only_if_it_never_gets_the_name() -> None:
    """One that is given up, or begun again, harms nobody; one that gets its name has swallowed the failure."""
    workload = make_workload("keyed-hdf5/compact/1")
    failed = Made("fsync", SIBLING, has_failed=True)
    write, renamed = Made("write", SIBLING, None, 0, 9), Made("rename", SIBLING, FILE)
    assert workload.is_tidying([failed, write, Made("unlink", SIBLING), Made("open", SIBLING), renamed], 0)
    assert workload.is_tidying([failed, Made("open", SIBLING), write, renamed], 0)
    assert workload.is_tidying([failed], 0)
    assert not workload.is_tidying([failed, write, renamed], 0)
    assert not workload.is_tidying([failed, renamed, Made("unlink", SIBLING)], 0)


def test_only_the_sync_before_the_lock_goes_is_for_others() -> None:
    """A failed sync or write of a commit is never excused, whatever follows it."""
    workload = make_workload("keyed-hdf5/update/1")
    sync, gone = Made("fsync", FILE, has_failed=True), Made("unlink", LOCK)
    assert workload.is_tidying([sync, gone], 0)
    assert workload.is_tidying([Made("truncate", FILE, None, 9, has_failed=True), gone], 0)
    assert not workload.is_tidying([sync, Made("write", FILE, None, 0, 48), gone], 0)
    assert not workload.is_tidying([Made("write", FILE, None, 0, 48, has_failed=True), gone], 0)
    assert not make_workload("keyed-msgpack/update/1").is_tidying([sync._replace(path=FILE.with_suffix(".msgpack"))], 0)


def test_every_errno_is_tried_at_each_change() -> None:
    """By the two units of a workload together, and none by both."""
    for number in range(8):
        assert sorted((*codes_at(number, ""), *codes_at(number, OTHERS))) == sorted(CODES)
    units = list(Faults().units(1))
    assert {split_unit(unit)[0] for unit in units} == set(workload_names(1, randoms=20))
    assert len(set(units)) == len(units) == 2 * len({split_unit(unit)[0] for unit in units})


def test_the_first_workloads_are_of_all_forms() -> None:
    """A short run meets checkpoints and all kinds of keyed files, each doing something else."""
    forms = {form for form, _ in NAMED}
    first = NAMED[: len(forms)]
    assert {form for form, _ in first} == forms
    assert len({kind for _, kind in first}) >= len(forms) - 1
    assert len(set(NAMED)) == len(NAMED)


_UNRECORDED = {
    "a time": "os.utime(fd)",
    "an attribute": "os.setxattr(fd, 'user.x', b'1')",
    "a link": "os.link(f'/proc/self/fd/{fd}', f'{os.readlink(f\"/proc/self/fd/{fd}\")}.more', follow_symlinks=True)",
    "room": "os.posix_fallocate(fd, 0, 1 << 20)",
    "a copy": "os.copy_file_range(fd, fd, 1, 0, 100_000)",
    "a mapping": "mmap.mmap(fd, 1)",
}
_SCRIPT = """
import json, mmap, os, sys, tempfile
from pathlib import Path
from asyncckpt.disk.ops import DiskOps
from tests.reliability.syscalls import Record

sync = DiskOps.sync
def changed(self, fd):
    try:
        {change}
    except OSError:
        pass  # where it cannot be done, it was asked for
    sync(self, fd)
DiskOps.sync = changed
with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(Record().run("msgpack/save/0", Path(folder)).losses))
"""


@pytest.mark.rigs
@pytest.mark.parametrize("change", ["pass", *_UNRECORDED.values()], ids=["nothing", *_UNRECORDED])
def test_a_change_that_nobody_records_is_seen(change: str) -> None:
    """Whatever a library does to a disk behind the back of its own operations, strace sees."""
    if (why := missing_strace()) is not None:
        pytest.skip(why)
    done = subprocess.run(  # noqa: S603 - in a process of its own: it forks, and must not have threads then
        [sys.executable, "-c", _SCRIPT.replace("{change}", change)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert bool(json.loads(done.stdout)) == (change != "pass"), done.stdout


def test_what_ckpt_chaos_did_not_kill_is_no_case(tmp_path: Path) -> None:
    """Nor is its run without a kill; what it calls a failure is a loss, also of that run; to kill nothing is one."""
    verdicts = tmp_path / "verdicts.xml"
    passed = "".join(f'<testcase name="{name}"/>' for name in ("no crash (control)", "#1 open:a [before]", "#2 b"))
    failed = '<testcase name="#3 c"><failure message="HARD_FAIL">it raised</failure></testcase>'
    output = "no crash (control)   PASS\n#1 open:a [before]   PASS\n#2 b    PASS  [DID NOT CRASH]\n#3 c   HARD_FAIL\n"
    verdicts.write_text(f"<testsuite>{passed}{failed}</testsuite>")
    found = chaos._judge("msgpack", verdicts, output)
    assert (found.tried, found.losses) == (2, ["#3 c: HARD_FAIL: it raised"])
    verdicts.write_text('<testsuite><testcase name="it"><error message="not run">no</error></testcase></testsuite>')
    found = chaos._judge("msgpack", verdicts, "it broke")
    assert (found.tried, found.losses[0]) == (0, "it: not run: no")
    verdicts.unlink()
    assert "killed nothing: it broke" in chaos._judge("msgpack", verdicts, "it broke").losses[0]


def test_what_is_lost_without_a_mistake_proves_nothing(tmp_path: Path) -> None:
    """A mistake counts as seen if its unit loses something with it, and nothing without."""
    rig = next(each for each in RIGS if each.name == "seeded-bugs")
    bug, by = BUGS[0], BUGS[0].seen_by[0][0]
    ledger = Ledger(tmp_path / "ledger", "one")
    seen, unseen = f"| {bug.name} | {by} |", f"| {bug.name} | **no rig** |"
    ledger.add(rig, f"{bug.name}{SEPARATOR}{by}", Result(tried=1, counts={"seen": 1}), 1.0)
    assert unseen in "\n".join(lines(ledger))
    ledger.add(rig, control_of(bug, by), Result(tried=1, counts={"controls": 1}), 1.0)
    assert seen in "\n".join(lines(ledger))
    ledger.add(rig, control_of(bug, by), Result(tried=1, losses=["lost without"], counts={"controls": 1}), 1.0)
    assert unseen in "\n".join(lines(ledger))


def test_an_older_ledger_is_read(tmp_path: Path) -> None:
    """Its lines have the sources by another name."""
    rig = RIGS[0]
    line = {"rig": rig.name, "subject": rig.subject, "unit": "a", "tried": 3, "lost": 0, "losses": [], "counts": {}}
    (tmp_path / "ledger").write_text(json.dumps(line | {"seconds": 1.0, "library": "one"}) + "\n")
    ledger = Ledger(tmp_path / "ledger", "one")
    assert ledger.has(rig, "a")
    assert ledger.sum(rig.name, rig.subject).tried_now == 3
