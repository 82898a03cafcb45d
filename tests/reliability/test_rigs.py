"""A minute of the rigs: each tries some of its cases here, loses none, and sees a mistake that was made for it."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asyncckpt
from reliability.crash_model import CrashModel, torn
from reliability.cut_mistakes import CUT_BUGS
from reliability.disks import Change, ShimDisk
from reliability.driver import Plan, tell
from reliability.fuzz_files import FILE_TARGETS, VALUES, write_good
from reliability.history import Event, History, KeyedHistory
from reliability.ledger import Ledger
from reliability.mistakes import BUGS, Bug, seed
from reliability.power_cut import FEW_PER_MOMENT, Cuts, Run, play
from reliability.report import GUARANTEE, lines
from reliability.rig import Result
from reliability.rigs import RIGS
from reliability.workload import same
from reliability.workloads import make_workload

ROOT = Path(__file__).parents[2]
UNITS = {
    "kill": ("msgpack/delete/0", "keyed-hdf5/recover/1"),
    "kill-syscall": ("msgpack/delete/0",),
    "chaos": ("keyed-msgpack",),
    "fault": ("msgpack/delete/0", "keyed-msgpack/reopen/1", "keyed-hdf5/create/1"),
    "fault-syscall": ("keyed-json/first/0",),
    "full-disk": ("limit:msgpack/save/0",),
    "power-cut": ("msgpack/delete/0/few", "keyed-msgpack/update/0", "keyed-hdf5/update/3", "keyed-npz/recover/0"),
    "record": ("msgpack/random/0", "keyed-hdf5/update/1"),
    "cancel": ("cancel/save/msgpack/0", "cancel/flush/keyed-npz/1", "cancel/evaluate_before/keyed-msgpack/1"),
    "concurrency": ("two-writers/0",),
    "cut": ("schedules/1",),
    "cut-kill": ("kills/1/40",),
    "soak": ("runs/6/msgpack/0", "runs/6/keyed-hdf5/0"),
}


def run_rig(folder: Path, name: str, *arguments: str) -> list[dict[str, object]]:
    """Run a rig as `make rigs` does, and return what it wrote down."""
    ledger = folder / "ledger.jsonl"
    command = [sys.executable, "-m", "tests.reliability", "--rigs", name, "--ledger", str(ledger), "--jobs", "2"]
    done = subprocess.run(  # noqa: S603 - our own interpreter
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in ledger.read_text().splitlines()]


@pytest.mark.rigs
@pytest.mark.parametrize("name", UNITS)
def test_a_unit_of_each_rig_loses_nothing(tmp_path: Path, name: str) -> None:
    """A rig tries a unit's cases and loses none; where it cannot run, it says why."""
    rig = next(rig for rig in RIGS if rig.name == name)
    entries = run_rig(tmp_path, name, "--units", *UNITS[name])
    if rig.missing() is not None:
        assert entries[-1]["skipped"] == rig.missing()
        pytest.skip(str(rig.missing()))
    tried = [entry for entry in entries if "tried" in entry]
    assert [entry["lost"] for entry in tried] == [0] * len(UNITS[name])
    assert all(entry["tried"] for entry in tried)


@pytest.mark.rigs
@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("swapped without the intermediate name", "kill"),
        ("the parent is not synced", "power-cut"),
        ("acknowledged before its rename", "chaos"),
        ("a waiting put is not the queue's", "cut"),
    ],
)
def test_a_mistake_is_seen(tmp_path: Path, name: str, by: str) -> None:
    """A mistake in a copy of the library is seen by the rig that must see it."""
    if (why := next(rig for rig in RIGS if rig.name == by).missing()) is not None:
        pytest.skip(why)
    entries = run_rig(tmp_path, "seeded-bugs", "--units", f"{name} | {by}")
    assert entries[-1]["counts"] == {"seen": 1}


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_patch_applies(tmp_path: Path, bug: Bug) -> None:
    """What a seeded bug replaces stands in the library, exactly once, and what it puts there uses names that exist."""
    shutil.copytree(ROOT / "asyncckpt", tmp_path / "asyncckpt")
    seed(bug, tmp_path / "asyncckpt")
    patched = {tmp_path / "asyncckpt" / file for file, _, _ in bug.edits}
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821"]
    done = subprocess.run([*command, *patched], capture_output=True, text=True, check=False)  # noqa: S603 - ruff
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_cut_patch_applies(tmp_path: Path) -> None:
    """So does each mistake about cuts, in a copy of its own."""
    patched = []
    for number, bug in enumerate(CUT_BUGS):
        package = tmp_path / str(number)
        shutil.copytree(ROOT / "asyncckpt" / "cut", package / "cut")
        seed(bug, package)
        patched += {package / file for file, _, _ in bug.edits}
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--no-cache", "--select", "F821"]
    done = subprocess.run([*command, *patched], capture_output=True, text=True, check=False)  # noqa: S603 - ruff
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_patch_that_does_not_apply_is_a_loss(tmp_path: Path) -> None:
    """A mistake that cannot be made any more is an error that names it."""
    file = tmp_path / BUGS[0].edits[0][0]
    file.parent.mkdir(parents=True)
    file.write_text("")
    with pytest.raises(ValueError, match="no longer applies"):
        seed(BUGS[0], tmp_path)


def test_a_control_that_sees_nothing_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake that a rig must see, and has not, fails the run."""
    control = next(rig for rig in RIGS if rig.must_lose)
    ledger = Ledger(tmp_path / "ledger", "one")
    ledger.add(control, "a", Result(tried=60), 1.0)
    plan = Plan(control, ledger, 1, 1, [])
    assert not tell(plan, ledger, must_reach=False)
    assert "BLIND" in capsys.readouterr().out
    ledger.add(control, "b", Result(tried=60, losses=["gone"]), 1.0)
    assert tell(plan, ledger, must_reach=False)


@pytest.mark.parametrize("target", FILE_TARGETS)
def test_what_is_fuzzed_begins_as_a_good_file(tmp_path: Path, target: str) -> None:
    """A good file, taken apart into an input and made again with its digests, has all its values."""
    extension, join, split = FILE_TARGETS[target]
    good = tmp_path / f"good{extension}"
    again = tmp_path / f"again{extension}"
    again.write_bytes(join(split(write_good(good))))
    for path in (good, again):
        with asyncckpt.Checkpointer.from_file(path) as chk:
            assert same(dict(chk), VALUES)


# --- what the rigs rest on --------------------------------------------------------------------------------------------


def states_of(model: CrashModel) -> set[tuple[tuple[str, bytes | None], ...]]:
    """Give all states, with contents in the place of digests."""
    return {
        tuple((path, None if digest is None else model.store[digest]) for path, digest in state)
        for state in model.states(10_000, random.Random(0))  # noqa: S311 - seeded on purpose
    }


def test_the_model_forgets_what_was_not_synced(tmp_path: Path) -> None:
    """Of a new file in a new directory, each part may be missing; what was synced may not."""
    model = CrashModel(tmp_path)
    folder, file = tmp_path / "a", tmp_path / "a" / "b"
    model.apply(Change(0, "mkdir", folder))
    assert states_of(model) == {(), (("a", None),)}
    model.apply(Change(1, "create", file))
    model.apply(Change(2, "write", file, data=b"xy"))
    assert states_of(model) == {(), (("a", None),), *((("a", None), ("a/b", data)) for data in (b"", b"xy", b"\0\0"))}
    model.apply(Change(3, "sync", file))
    model.apply(Change(4, "sync_directory", folder))
    assert states_of(model) == {(), (("a", None), ("a/b", b"xy"))}
    model.apply(Change(5, "sync_directory", tmp_path))
    assert states_of(model) == {(("a", None), ("a/b", b"xy"))}


@pytest.mark.rigs
def test_each_sync_of_a_save_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model tells a protocol that forgets one sync: each one left out of a save is a loss."""
    monkeypatch.setattr(Result, "enough", 1)
    workload = make_workload("msgpack/save/0")
    source = tmp_path / "source"
    asyncio.run(workload.fill(source))
    root = tmp_path / "root"
    shutil.copytree(source, root)
    whole = play(root, workload)
    names = [change.name for change in whole.record]
    first, last = names.index("mkdir"), names.index("rename") + 1
    syncs = [at for at in range(first, last + 1) if names[at].startswith("sync")]
    assert len(syncs) == 6  # two small files, the state, the manifest; the directory; the parent
    for left_out in [None, *syncs]:
        shutil.rmtree(root)
        shutil.copytree(source, root)
        cuts = Cuts(workload, tmp_path / str(left_out), random.Random(0), FEW_PER_MOMENT)  # noqa: S311 - seeded on purpose
        record = [change for change in whole.record if change.number != left_out]
        shifted = [(at - (left_out is not None and at > left_out), event) for at, event in whole.events]
        cuts.try_run(CrashModel(root), Run(record, shifted), workload.history)
        assert bool(cuts.result.losses) == (left_out is not None), left_out
    assert cuts.result.tried > 50


def test_a_rename_is_whole_or_not_at_all(tmp_path: Path) -> None:
    """After a crash a renamed file has one of its two names."""
    (tmp_path / "a").write_bytes(b"1")
    model = CrashModel(tmp_path)
    model.apply(Change(0, "rename", tmp_path / "a", tmp_path / "b"))
    assert states_of(model) == {(("a", b"1"),), (("b", b"1"),)}
    (tmp_path / "c").write_bytes(b"2")
    model = CrashModel(tmp_path)
    model.apply(Change(0, "exchange", tmp_path / "a", tmp_path / "c"))
    assert states_of(model) == {(("a", b"1"), ("c", b"2")), (("a", b"2"), ("c", b"1"))}


def test_a_failed_sync_is_never_made_good(tmp_path: Path) -> None:
    """A second sync of a file whose first has failed makes nothing durable."""
    model = CrashModel(tmp_path)
    file = tmp_path / "a"
    model.apply(Change(0, "create", file))
    model.apply(Change(1, "sync_directory", tmp_path))
    model.apply(Change(2, "write", file, data=b"x"))
    model.apply(Change(3, "sync", file, has_failed=True))
    model.apply(Change(4, "sync", file))
    assert (("a", b""),) in states_of(model)


def test_what_is_written_again_after_a_failed_sync_is_dirty_again(tmp_path: Path) -> None:
    """The next sync makes those bytes durable, and no others; what is cut off is in nobody's doubt."""
    (tmp_path / "a").write_bytes(b"abc")
    model = CrashModel(tmp_path)
    file = tmp_path / "a"
    model.apply(Change(0, "write", file, offset=1, data=b"xyz"))
    model.apply(Change(1, "sync", file, has_failed=True))
    model.apply(Change(2, "write", file, offset=2, data=b"y"))
    model.apply(Change(3, "write", file, offset=5, data=b"w"))
    model.apply(Change(4, "sync", file))
    assert (("a", b"aby\0\0w"),) in states_of(model)  # a, b and y, and the hole; z is in doubt
    model.apply(Change(5, "truncate", file, offset=3))
    model.apply(Change(6, "write", file, offset=1, data=b"x"))
    model.apply(Change(7, "sync", file))
    assert states_of(model) == {(("a", b"axy"),)}


def test_what_a_torn_write_leaves() -> None:
    """Old, new, zeros, and cuts at sectors and pages with the size advanced or not."""
    new = bytes(range(1, 251)) * 4
    found = set(torn(b"", new))
    assert {b"", new, bytes(1000), new[:512], new[:512] + bytes(488), bytes(512) + new[512:]} <= found
    assert set(torn(new, new)) == {new}
    longer = new + bytes(range(1, 201))
    found = set(torn(new, longer))
    assert {new, longer, new + bytes(200), longer[:1024], longer[:1024] + bytes(176)} <= found
    assert all(each.startswith(new) for each in found)  # what was there, and is the same, stays


def test_the_oracle() -> None:
    """Acknowledged versions must be there unless retention let go of them; others must have been begun."""
    events = [Event("begin", 1), Event("ack", 1), Event("begin", 2), Event("ack", 2), Event("begin", 2, 1)]
    history = History.of(events)
    assert history.judge({1: 0, 2: 0}) is None
    assert history.judge({1: 0, 2: 1}) is None
    for wrong in ({1: 0}, {1: 0, 2: -1}, {1: 0, 2: 2}, {1: 0, 2: 0, 3: 0}):
        assert history.judge(wrong) is not None
    history.take(Event("ack", 2, 1))
    assert history.judge({1: 0, 2: 0}) is not None
    history.take(Event("delete", 1))
    assert history.judge({2: 1}) is None
    assert history.judge({1: 0, 2: 1}) is None
    history.take(Event("deleted", 1))
    assert history.judge({1: 0, 2: 1}) is not None
    kept = History.of([Event("keep", 1), *events])
    assert kept.judge({2: 0}) is None
    assert kept.judge({1: 0}) is not None


def test_the_oracle_of_a_keyed_file() -> None:
    """It holds the last completed flush or one that was begun later, all keys together."""
    history = KeyedHistory()
    for event in (Event("set", 1, 10), Event("set", 2, 20), Event("begin", 0)):
        history.take(event)
    assert history.judge({}) is None
    assert history.judge({1: 10, 2: 20}) is None
    history.take(Event("ack", 0))
    assert history.judge({}) is not None
    for event in (Event("set", 1, 11), Event("unset", 2), Event("begin", 0)):
        history.take(event)
    assert history.judge({1: 10, 2: 20}) is None
    assert history.judge({1: 11}) is None
    for wrong in ({1: 11, 2: 20}, {1: 10}, {1: 10, 2: -1}):
        assert history.judge(wrong) is not None
    for event in (Event("clear", 0), Event("found", 1, 11), Event("begin", 0), Event("ack", 0)):
        history.take(event)
    assert history.judge({1: 10, 2: 20}) is None  # whoever has changed nothing has made nothing durable
    for event in (Event("set", 2, 21), Event("begin", 0), Event("ack", 0)):
        history.take(event)
    assert history.judge({1: 10, 2: 20}) is not None


def test_the_guarantee_is_the_same_everywhere() -> None:
    """The README, the page about guarantees and the report have the same sentence."""
    for page in ("README.md", "docs/guarantees.md", "docs/reliability.md"):
        assert GUARANTEE in " ".join((ROOT / page).read_text().split()), page


def test_the_report_hides_nothing(tmp_path: Path) -> None:
    """It says what was tried and lost, what was not run and why, and which mistakes nobody has seen."""
    kill, fault = RIGS[0], next(rig for rig in RIGS if rig.name == "fault")
    ledger = Ledger(tmp_path / "ledger", "one")
    ledger.add(kill, "a", Result(tried=1234, losses=["step 3 is lost"], counts={"in mid-write": 7}), 1.0)
    ledger.skip(fault, "no disk here")
    text = "\n".join(lines(ledger))
    assert "| kill | 1,234 kill points | 1,234 | 1 |" in text
    assert "LOST in `a`: step 3 is lost" in text
    assert "7 in mid-write" in text
    assert "**not run: no disk here**" in text
    assert f"| {BUGS[0].name} | **no rig** |" in text


def test_the_ledger_counts_nothing_twice(tmp_path: Path) -> None:
    """Of a unit the last line counts, a torn line is left out, and what was lost is run again with other sources."""
    rig = RIGS[0]
    ledger = Ledger(tmp_path / "ledger", "one")
    ledger.add(rig, "a", Result(tried=3), 1.0)
    ledger.add(rig, "b", Result(tried=2, losses=["gone"]), 1.0)
    with ledger.path.open("a") as file:
        file.write('{"rig": "torn')
    later = Ledger(ledger.path, "two")
    assert later.has(rig, "a")
    assert not later.has(rig, "b")
    later.add(rig, "b", Result(tried=2), 1.0)
    total = Ledger(ledger.path, "two").sum(rig.name, rig.subject)
    assert (total.tried, total.tried_now, total.lost) == (5, 2, 0)


def test_a_disk_records_what_it_does(tmp_path: Path) -> None:
    """Each change is in the record, with the bytes that were written; one that raised is marked."""

    def refuse(change: Change) -> int | None:
        if change.name == "mkdir":
            raise OSError(5, "no")
        return 1 if change.name == "write" else None

    disk = ShimDisk(refuse, keeps_data=True)
    with pytest.raises(OSError, match="no"):
        disk.mkdir(tmp_path / "d")
    fd = disk.create(tmp_path / "f")
    with open(fd, "rb"):  # noqa: PTH123 - a descriptor
        assert disk.write(fd, [b"xy"], 0) == 1
    assert [(each.name, each.data, each.has_failed) for each in disk.record] == [
        ("mkdir", b"", True),
        ("create", b"", False),
        ("write", b"x", False),
    ]
