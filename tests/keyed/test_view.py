"""The asynchronous view: the same for every kind, and never blocking the loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from helpers.gates import Gate
from helpers.support import assert_same, descriptors_below, own_threads

import asyncckpt
from asyncckpt.testing import FaultyDisk

if TYPE_CHECKING:
    from helpers.kinds import Place


async def contents(place: Place) -> dict[str, Any]:
    """Read everything, as a new process would."""
    return await asyncio.to_thread(place.contents)


async def test_the_example_of_the_issue(place: Place) -> None:
    """Captured on the spot or off the loop, stored in order, and there for the blocking twin."""
    grid = np.arange(1 << 20, dtype=float)
    value = [np.ones((1000, 5, 5)), np.array(0), np.array(0)]
    async with place.open() as chk:
        chk["why"] = value
        await chk.save_parameter("grid", grid)
        grid += 1
        value[0] += 1
        grid = await chk.load_parameter("grid")
        assert_same(grid, np.arange(1 << 20, dtype=float))
        await chk.flush()
        assert "why" in chk
        assert list(chk) == ["why", "grid"]
        assert "(open)" in repr(chk)
        assert chk.is_open
    assert "(closed)" in repr(chk)
    found = await contents(place)
    assert list(found) == ["why", "grid"]
    assert_same(found["why"], [np.ones((1000, 5, 5)), np.array(0), np.array(0)])
    assert not chk.is_open


async def test_every_method(place: Place) -> None:
    """Coroutines do what the mapping's methods do; the index answers at once."""
    async with place.open() as chk:
        await chk.update({"a": 1}, b=2)
        await chk.update([("c", {"x": {"y": [3]}})])
        assert await chk.keys() == ["a", "b", "c"]
        assert chk.keys() == ["a", "b", "c"]
        assert len(chk) == 3
        assert await chk["a"] == 1
        assert await chk.get("z") is None
        assert await chk.get("b") == 2
        assert ("c", "x", "y") in chk
        assert ("c", "x", "z") not in chk
        assert ("c", "x", "y", 0) not in chk
        assert 5 not in chk
        assert ("c", []) not in chk
        assert await chk["c", "x"] == {"y": [3]}
        chk["c", "x", "z"] = 4
        assert ("c", "x", "z") in chk
        chk["new", "path"] = 5
        assert await chk["new"] == {"path": 5}
        del chk["c", "x", "y"]
        assert await chk["c"] == {"x": {"z": 4}}
        assert await chk.pop("a") == 1
        assert await chk.pop("a", 9) == 9
        with pytest.raises(asyncckpt.CheckpointKeyError):
            await chk.pop("a")
        assert await chk.get_keys(["b", ("c", "x", "z")]) == [2, 4]
        del chk["b"]
        assert "b" not in chk
        await chk.delete_parameter("new")
        chk["c"] = 6
        chk["b"] = 7
        assert list(chk) == ["c", "b"]
    assert await contents(place) == {"c": 6, "b": 7}


async def test_paths_of_values_stored_before(place: Place) -> None:
    """The index knows the keys of dicts in a file just opened, or says that it does not."""
    big = {f"k{n}": n for n in range(5000)}
    async with place.open() as chk:
        chk["small"] = {"x": {"y": 1}, "z": [1], "t": (1, {"q": 2}), "last": 5}
        await chk.save_parameter("big", big)
    async with place.open() as chk:
        assert ("small", "x", "y") in chk
        assert ("small", "last") in chk
        assert ("small", "t", "q") not in chk
        with contextlib.suppress(asyncckpt.CheckpointerUsageError):
            assert ("big", "k7") in chk
        assert await chk["big", "k7"] == 7


async def test_the_index_of_a_large_file_knows_the_dicts_in_small_values(place: Place) -> None:
    """However large the others are."""
    async with place.open() as chk:
        await chk.save_parameter("large", np.zeros(1 << 20))
        chk["small"] = {"x": {"y": 1}}
    async with place.open() as chk:
        assert ("small", "x", "y") in chk
        del chk["small", "x", "y"]
    assert (await contents(place))["small"] == {"x": {}}


async def test_reads_see_the_writes_before_them(place: Place) -> None:
    """And only those: a write called after a load does not show in it."""
    async with place.open() as chk:
        for n in range(20):
            chk["a"] = n
            load = asyncio.ensure_future(chk.load_parameter("a"))
            await asyncio.sleep(0)
            chk["a"] = -1
            assert await load == n
        load = asyncio.ensure_future(chk.pop("a"))
        await asyncio.sleep(0)
        assert "a" not in chk
        chk["a"] = "later"
        assert await load == -1
        assert await chk["a"] == "later"


async def test_missing_and_forbidden_keys(place: Place) -> None:
    """As in the blocking mode, and for `del` at once."""
    async with place.open(omitted_keys=["no"]) as chk:
        chk["grid"] = 1
        with pytest.raises(asyncckpt.CheckpointKeyError, match=r"'gird'.*'grid'"):
            await chk["gird"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match=r"'gird'.*'grid'"):
            del chk["gird"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'gird'"):
            await chk.delete_parameter("gird")
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'no'"):
            chk["no"] = 1
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'no'"):
            await chk.save_parameter(("no", "x"), 1)
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'no'"):
            chk.check_allowed_key("no")
        assert "no" not in chk
        with pytest.raises(TypeError, match="a key must be a str"):
            chk[5] = 1


async def test_the_inline_bound(place: Place) -> None:
    """What is too large for the loop is refused by `chk[key] = value`, and taken by save_parameter."""
    async with place.open() as chk:
        for value in (np.zeros(1 << 18), list(map(str, range(1000)))):
            with pytest.raises(asyncckpt.CheckpointerUsageError, match="save_parameter"):
                chk["a"] = value
            assert "a" not in chk
            await chk.save_parameter("a", value)
            assert_same(await chk["a"], value)
            del chk["a"]


async def test_the_budget(file: Place) -> None:
    """At the budget `chk[key] = value` raises, save_parameter waits, and what is larger than it is written at once."""
    disk = FaultyDisk()
    gate = Gate()
    value = np.ones(1 << 14)
    async with file.open(disk=disk, max_staged_nbytes=4 * value.nbytes) as chk:
        chk["first"] = 1
        await chk.flush()
        disk.fail("write" if file.kind == "msgpack" else None, gate)
        for n in range(20):
            try:
                chk[f"k{n}"] = value
            except asyncckpt.QueueFullError as error:
                assert "save_parameter" in str(error)  # noqa: PT017 - it is caught to leave the loop
                break
        else:
            pytest.fail("the budget was never full")
        waiting = asyncio.ensure_future(chk.save_parameter("waits", value))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.open()
        await waiting
        large = np.arange(1 << 20)
        await chk.save_parameter("large", large)
        large += 1
        assert_same(await chk["large"], np.arange(1 << 20))
    found = await contents(file)
    assert list(found) == ["first", *(f"k{i}" for i in range(n)), "waits", "large"]
    assert_same(found["waits"], value)
    assert_same(found["large"], np.arange(1 << 20))


async def test_a_path_into_an_object_of_a_dict_type(place: Place) -> None:
    """The index does not know its keys, so it says so, and what asks the file finds them."""
    value = OrderedDict(x=1)
    value.note = "of its own"  # type: ignore[attr-defined]
    async with place.open() as chk:
        chk["a"] = value
        await chk.save_parameter("b", {"c": value, "d": 1})
        for path in (("a", "x"), ("b", "c", "x")):
            with pytest.raises(asyncckpt.CheckpointerUsageError, match="does not have the keys"):
                assert path in chk
            assert await chk.get(path) == 1
            chk[path] = 2
        assert ("b", "d") in chk
        await chk.flush()
        assert (await chk["a"])["x"] == (await chk["b"])["c"]["x"] == 2


async def test_cached_eval(place: Place) -> None:
    """Awaits a coroutine function, takes a plain one, and computes once for all who ask at the same time."""
    calls = []

    async def generator(x: int, *, y: int = 0) -> dict[str, int]:
        calls.append(x)
        await asyncio.sleep(0)
        return {"sum": x + y}

    async with place.open() as chk:
        found = await asyncio.gather(
            *(chk.cached_eval("a", generator, args=(1,), kwargs={"y": 1}) for _ in range(5)),
            chk.cached_eval("b", lambda: 7),
        )
        assert found == [{"sum": 2}] * 5 + [7]
        assert calls == [1]
        assert len({id(each) for each in found[:5]}) == 5
        again = [chk.cached_eval("a", generator, condition=lambda v: v["sum"] > 2, args=(5,)) for _ in range(3)]
        assert await asyncio.gather(*again) == [{"sum": 5}] * 3
        assert calls == [1, 5]
    async with place.open() as chk:
        assert await chk.cached_eval("a", generator, args=(9,)) == {"sum": 5}
    assert calls == [1, 5]


async def test_cached_eval_that_fails_or_is_cancelled_is_tried_by_the_next(place: Place) -> None:
    """Whoever waited for a computation that came to nothing computes."""
    gate = asyncio.Event()
    calls = []

    async def generator() -> int:
        calls.append(1)
        if len(calls) == 1:
            await gate.wait()
        if len(calls) == 2:
            raise ZeroDivisionError
        return 5

    async with place.open() as chk:
        first, second, third = (asyncio.ensure_future(chk.cached_eval("a", generator)) for _ in range(3))
        while not calls:
            await asyncio.sleep(0)
        first.cancel()
        results = await asyncio.gather(first, second, third, return_exceptions=True)
        assert type(results[0]) is asyncio.CancelledError
        assert type(results[1]) is ZeroDivisionError
        assert results[2] == 5
        assert len(calls) == 3


async def test_null_keeps_nothing() -> None:
    """The same program runs without checkpoints."""
    calls = []

    async def generator() -> int:
        calls.append(1)
        await asyncio.sleep(0)
        return 5

    async with asyncckpt.NullCheckpointer() as chk:
        chk["a"] = np.ones(3)
        await chk.save_parameter("b", np.ones(1 << 20))
        chk["d", "x"] = 1
        assert "a" not in chk
        assert list(chk) == []
        assert len(chk) == 0
        await chk.flush()
        with pytest.raises(asyncckpt.CheckpointKeyError):
            del chk["a"]
        assert await chk.pop("a", 7) == 7
        assert await chk.get("a", 7) == 7
        assert await asyncio.gather(*(chk.cached_eval("c", generator) for _ in range(3))) == [5] * 3
        assert len(calls) == 1


async def test_modes_do_not_mix(place: Place) -> None:
    """The error says what to do, and the file that is open goes on."""
    chk = place.open()
    async with chk as view:
        view["a"] = 1
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="asynchronous mode"):
            await asyncio.to_thread(lambda: chk["a"])
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="the view that `async with` returned"):
            chk["a"]
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="another event loop"):
            await asyncio.to_thread(lambda: view.__setitem__("a", 1))
        assert await view["a"] == 1
    with pytest.raises(asyncckpt.CheckpointerUsageError, match="closed"):
        await view["a"]
    with pytest.raises(asyncckpt.CheckpointerUsageError, match="closed"):
        view["a"] = 1
    blocking = threading.Event()
    done = threading.Event()

    def script() -> None:
        with chk:
            blocking.set()
            done.wait()

    thread = threading.Thread(target=script)
    thread.start()
    await asyncio.to_thread(blocking.wait)
    try:
        with pytest.raises(asyncckpt.CheckpointerUsageError, match="blocking mode"):
            async with chk:
                pass
    finally:
        done.set()
        await asyncio.to_thread(thread.join)
    async with chk as view:
        assert await view["a"] == 1


async def test_blocks_may_be_nested_and_shared_by_tasks(place: Place) -> None:
    """The outermost closes, in whatever order they begin and end; the same object can be opened again."""
    chk = place.open()

    async def task(n: int) -> None:
        async with chk as view:
            view[f"k{n}"] = n
            await asyncio.sleep(0)
            async with chk as inner:
                assert await inner[f"k{n}"] == n

    await asyncio.gather(*map(task, range(8)))
    assert not chk.is_open
    await task(9)
    assert sorted(await contents(place)) == [*(f"k{n}" for n in range(8)), "k9"]


async def test_a_block_entered_while_another_is_being_left(place: Place) -> None:
    """It waits for the file to be closed, and opens it again."""
    chk = place.open()

    async def task(n: int) -> None:
        for _ in range(n):
            await asyncio.to_thread(int)
        async with chk as view:
            view[f"k{n}"] = n

    await asyncio.gather(*map(task, range(12)))
    assert len(await contents(place)) == 12


async def test_a_file_that_cannot_be_opened(file: Place) -> None:
    """The error comes out, whoever enters, and nothing stays open."""
    file.path.write_bytes(b"garbage")
    chk = file.open()
    for result in await asyncio.gather(*(chk.__aenter__() for _ in range(3)), return_exceptions=True):
        assert isinstance(result, asyncckpt.CheckpointError)
    assert not chk.is_open
    with pytest.raises(asyncckpt.CheckpointError):
        await contents(file)


async def test_the_bodys_exception_comes_out_and_what_was_saved_is_kept(place: Place) -> None:
    """Leaving flushes, however the block is left."""
    with pytest.raises(ZeroDivisionError):
        async with place.open() as chk:
            chk["a"] = 1
            raise ZeroDivisionError
    assert await contents(place) == {"a": 1}


async def test_nothing_is_left_running(file: Place) -> None:
    """When the block is left, tasks, threads, lock and temporary file are gone."""
    tasks = asyncio.all_tasks()
    async with file.open() as chk:
        chk["a"] = 1
        await chk.save_parameter("b", np.ones(1 << 20))
    assert asyncio.all_tasks() == tasks
    assert own_threads() == []
    assert descriptors_below(file.directory) == []
    assert [each.name for each in file.directory.iterdir()] == [file.path.name]


async def test_a_cancelled_task_still_closes(file: Place) -> None:
    """A task cancelled at any of its awaits leaves a file that holds what was saved before, and no lock."""
    for steps in range(16):
        file.name = f"cancelled{steps}"
        reached = []

        async def program(reached: list[str] = reached) -> None:
            async with file.open() as chk:
                chk["a"] = 1
                reached.append("a")
                await chk.save_parameter("b", np.ones(1 << 17))
                reached.append("b")
                await chk.flush()
                await chk["b"]
                chk["c"] = 3
                reached.append("c")
                await chk.flush()
            reached.append("left")

        task = asyncio.ensure_future(program())
        for _ in range(steps):
            await asyncio.sleep(0)
            await asyncio.to_thread(int)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert set(reached) - {"left"} <= set(await contents(file))
        async with file.open() as chk:  # the lock is free
            chk["d"] = 4


async def test_a_failed_disk_reaches_flush_and_loses_nothing(file: Place) -> None:
    """Whatever fails, flush says so; on a healthy disk the next one makes everything durable."""
    for operation in ("write", "sync", "create", "rename", "sync_directory"):
        file.name = operation
        disk = FaultyDisk()
        async with file.open(disk=disk) as chk:
            chk["a"] = 1
            await chk.flush()
            disk.fail(operation, errno.ENOSPC, lasting=True)
            chk["b"] = np.ones(1 << 14)
            chk["a"] = 2
            del chk["a"]
            try:
                await chk.flush()
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - it need not be raised
                with pytest.raises(OSError, match="No space"):
                    await chk.flush()
                assert "b" in chk
            disk.heal()
            chk["c"] = 3
            await chk.flush()
            found = await contents(file)
            assert list(found) == ["b", "c"]
            assert_same(await chk["b"], np.ones(1 << 14))
        assert list(await contents(file)) == ["b", "c"]


async def test_a_failure_at_the_end_comes_out_of_the_block(file: Place) -> None:
    """As an error of its own, or as a note of the body's."""
    disk = FaultyDisk()
    with pytest.raises(OSError, match="Input/output error"):
        async with file.open(disk=disk) as chk:
            disk.fail(None, errno.EIO, lasting=True)
            chk["a"] = 1
    disk = FaultyDisk()
    with pytest.raises(ZeroDivisionError) as caught:
        async with file.open(disk=disk) as chk:
            disk.fail(None, errno.EIO, lasting=True)
            chk["a"] = 1
            raise ZeroDivisionError
    assert "could not be flushed" in caught.value.__notes__[0]
    gc.collect()  # the lock's file could not be removed, and the lock is free all the same
    async with file.open() as chk:
        chk["a"] = 1


async def test_two_writers(file: Place) -> None:
    """Each way to change the file is refused as soon as it can be known, once; reads go on, nothing is left."""
    async with file.open() as first:
        first["a"] = 1
        await first.flush()
        async with file.open() as second:
            for change in (
                second.save_parameter("b", 2),
                second.save_parameter("b", np.ones(1 << 20)),
                second.update(b=2),
                second.delete_parameter("a"),
                second.pop("a"),
                second.cached_eval("b", int),
            ):
                with pytest.raises(asyncckpt.FileLockedError, match="another Checkpointer of this process"):
                    await change
            for key in "bcd":
                second[key] = 2
            with pytest.raises(asyncckpt.FileLockedError, match="another Checkpointer of this process") as caught:
                await second.flush()
            assert caught.value.file == str(file.path)
            await second.flush()
            assert await second["a"] == 1
            assert list(second) == ["a"]
        with pytest.raises(asyncckpt.FileLockedError):
            async with file.open() as second:
                del second["a"]
        await first.save_parameter("e", 5)
    async with file.open() as second:
        second["b"] = 2
    assert await contents(file) == {"a": 1, "e": 5, "b": 2}


async def test_what_was_refused_is_told_by_the_next_change(file: Place) -> None:
    """A program that only sets keys learns it, too."""
    async with file.open() as first:
        await first.save_parameter("a", 1)
        async with file.open() as second:
            second["b"] = 2
            await second.get("a")  # behind the write
            with pytest.raises(asyncckpt.FileLockedError):
                second["c"] = 3
            second["c"] = 3
            await second.get("a")
            with pytest.raises(asyncckpt.FileLockedError):
                del second["a"]
    assert await contents(file) == {"a": 1}


async def test_a_first_change_that_takes_shows_the_file_as_it_is(file: Place) -> None:
    """As does one that writes."""
    async with file.open() as first:
        first["gone"] = first["taken"] = 0
    async with file.open() as late:
        async with file.open() as other:
            other["a"] = 1
            del other["gone"]
        assert await late.pop("gone", 7) == 7
        assert list(late) == ["taken", "a"]
        assert await late.pop("taken") == 0
    assert await contents(file) == {"a": 1}


async def test_a_writer_sees_what_another_wrote_before_it(file: Place) -> None:
    """The index in memory, too, is that of the file as it is when its first change takes the lock."""
    async with file.open() as late:
        assert list(late) == []
        async with file.open() as other:
            other["a"] = {"x": 1}
            other["b"] = 2
        late["c"] = 3
        assert list(late) == ["c"]
        await late.flush()
        assert list(late) == ["a", "b", "c"]
        assert ("a", "x") in late
        assert await late["b"] == 2
    assert await contents(file) == {"a": {"x": 1}, "b": 2, "c": 3}


async def test_many_saves_in_a_row_let_the_loop_run(place: Place) -> None:
    """Saves that never have to wait would keep everything else waiting."""
    ran = []

    async def beside() -> None:
        while True:
            ran.append(1)
            await asyncio.sleep(0)

    async with place.open() as chk:
        await chk.save_parameter("first", 0)
        task = asyncio.create_task(beside())
        for number in range(1000):
            await chk.save_parameter(f"{number}", number)
        seen = len(ran)
        task.cancel()
    assert seen > 5


async def test_a_refused_value_is_told_and_keeps_nobody_waiting(place: Place) -> None:
    """What cannot be saved raises where it is captured; a path whose way turns out wrong, at the flush."""
    many = dict.fromkeys(map(str, range(300)), 1)  # too many names for the index
    async with place.open() as chk:
        with pytest.raises(asyncckpt.UnsupportedLeafError):
            chk["a"] = print
        with pytest.raises(asyncckpt.UnsupportedLeafError):
            await chk.save_parameter("a", [object()] * 1000)
        assert "a" not in chk
        await chk.save_parameter("b", many)
        chk["b", "7", "x"] = 2
        chk["c"] = 3
        with pytest.raises(asyncckpt.CheckpointKeyError, match="is of type int, not a dict"):
            await chk.flush()
        await chk.flush()
        assert list(chk) == ["b", "c"]
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'c' is not a dict"):
            chk["c", "x"] = 2
        with pytest.raises(asyncckpt.CheckpointKeyError, match="'c' is not a dict"):
            await chk.save_parameter(("c", "x", "y"), 2)
        await chk.flush()
    assert await contents(place) == {"b": many, "c": 3}


async def test_a_caller_that_changes_its_value_afterwards(place: Place) -> None:
    """What was captured is what was there when the call returned."""
    value = {"x": np.zeros(1 << 18), "l": [1]}
    async with place.open() as chk:
        await chk.save_parameter("a", value)
        value["x"] += 1
        value["l"].append(2)
        assert_same(await chk["a"], {"x": np.zeros(1 << 18), "l": [1]})


async def test_streams(file: Place) -> None:
    """The caller's own file works in this mode, too."""
    import io

    stream = io.BytesIO()
    kind = type(file.open())
    async with kind(stream) as chk:
        chk["a"] = np.ones(10)
    async with kind(stream) as chk:
        assert_same(await chk["a"], np.ones(10))


async def test_several_refused_changes_come_together(place: Place) -> None:
    """One error by itself, several as a group; and all that was not refused is written."""
    async with place.open() as chk:
        # Too many for the index of names.
        await chk.save_parameter("numbers", {f"k{number}": number for number in range(5000)})
        await chk.flush()
        chk["numbers", "k1", "x"] = 1
        chk["good"] = 1
        with pytest.raises(asyncckpt.CheckpointKeyError, match="k1"):
            await chk.flush()
        chk["numbers", "k1", "x"] = 1
        chk["numbers", "k2", "x"] = 1
        chk["better"] = 2
        with pytest.raises(ExceptionGroup) as caught:
            await chk.flush()
        assert [type(each) for each in caught.value.exceptions] == 2 * [asyncckpt.CheckpointKeyError]
    found = await contents(place)
    assert (found["good"], found["better"], found["numbers"]["k1"]) == (1, 2, 1)


async def test_a_path_keeps_the_types_of_what_is_put_there_or_refuses(place: Place) -> None:
    """What is not registered would be plain data, of which nobody could tell what it was."""
    from collections import namedtuple

    pair = namedtuple("pair", "x y")  # noqa: PYI024 - unregistered
    async with place.open() as chk:
        chk["a"] = {"n": 1}
        chk["a", "pair"] = pair(1, 2)
        with pytest.raises(asyncckpt.CheckpointError, match=r"pair.*register"):
            await chk.flush()
    assert await contents(place) == {"a": {"n": 1}}


async def test_an_error_names_the_whole_path(place: Place) -> None:
    """As in the blocking mode."""
    async with place.open() as chk:
        for save in (chk.__setitem__, chk.save_parameter):
            with pytest.raises(asyncckpt.UnsupportedLeafError) as caught:
                await (save(("a", "b"), {"f": print}) or asyncio.sleep(0))
            assert caught.value.path == "a/b/f"


async def test_a_forbidden_key_of_a_closed_file(place: Place) -> None:
    """Its keys are not known where looking would stop the loop, and nothing is claimed of them."""
    await asyncio.to_thread(lambda: place.open().update({"a": 1}))
    chk = place.open(allowed_keys=["a"])
    with pytest.raises(asyncckpt.CheckpointKeyError, match="'b'") as caught:
        chk.check_allowed_key("b")
    assert "none" not in str(caught.value)
    with pytest.raises(asyncckpt.CheckpointKeyError, match="'a'"):
        await asyncio.to_thread(chk.check_allowed_key, "b")
