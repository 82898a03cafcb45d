"""Known durability mistakes, each a few lines of the library patched: what the rigs must see to be believed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bug:
    """A mistake."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    """File below `asyncckpt/`, what stands there exactly once, and what the mistake has instead."""
    seen_by: tuple[tuple[str, str], ...]
    """Which rigs must see it, and in which unit, the smallest that shows it; the quickest first."""


BUGS = (
    Bug(
        "the state file is not synced",
        (("storage/local/attempt.py", "context, batch=self._batch)", "context, batch=SyncBatch(self._ops))"),),
        (("power-cut", "msgpack/first/1/few"), ("fault", "msgpack/save/1")),
    ),
    Bug(
        "a large state file is not synced",
        (("disk/write_blocks.py", "        yield fd\n        ops.sync(fd)\n", "        yield fd\n"),),
        (("power-cut", "msgpack/save/50/few"),),
    ),
    Bug(
        "small files are not synced",
        (("storage/local/attempt.py", "name, data, self._batch)", "name, data, SyncBatch(self._ops))"),),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "the manifest is not synced",
        (("disk/publish.py", "manifest.encode(), batch)", "manifest.encode(), batch and type(batch)(ops))"),),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "the files of a user are not synced",
        (("disk/publish.py", "        with _syncing():\n            batch.sync()\n", ""),),
        (("power-cut", "msgpack/finalize/1/few"),),
    ),
    Bug(
        "the checkpoint's directory is not synced",
        (("disk/publish.py", "    with _syncing():\n        ops.sync_directory(pending)\n\n\ndef", "\n\ndef"),),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "the parent is not synced",
        (
            (
                "disk/publish.py",
                "        ops.sync_directory(root)\n    except OSError as error:\n        undo(error, move_back)",
                "        pass\n    except OSError as error:\n        undo(error, move_back)",
            ),
        ),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "a new ancestor is not synced",
        (("disk/publish.py", "come so far.\n        ops.sync_directory(path.parent)\n", "come so far.\n"),),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "acknowledged before the parent's sync",
        (
            (
                "storage/local/attempt.py",
                "        path, old, others = publish.make_durable(self._ops, moved)\n",
                (
                    "        path, old, others = moved.committed, None, ()\n"
                    "        __import__('threading').Timer(0.05, publish.make_durable, (self._ops, moved)).start()\n"
                ),
            ),
        ),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "pruned before the commit",
        (
            (
                "saving/writer.py",
                "            self._env.catalog.begin(tracker.step)\n",
                (
                    "            self._env.catalog.begin(tracker.step)\n"
                    "            most = self._env.settings.keep_latest_k\n"
                    "            await self._pruner.retire(self._env.catalog.steps()[: 1 - most] if most else [])\n"
                ),
            ),
        ),
        (("kill", "msgpack/prune/1"), ("power-cut", "msgpack/prune/1/few"), ("fault", "msgpack/prune/1")),
    ),
    Bug(
        "unlinked before the parent's sync",
        (
            (
                "disk/removal.py",
                "        if durably or marked:\n            ops.sync_directory(root)\n",
                "        for each in trash:\n            discard(ops, each)\n",
            ),
        ),
        (("power-cut", "msgpack/delete/1/few"),),
    ),
    Bug(
        "swept before the parent's sync",
        (("disk/removal.py", "    if trash:\n        ops.sync", "    if False:\n        ops.sync"),),
        (("power-cut", "msgpack/prune/1/few"),),
    ),
    Bug(
        "deleted in place before its mark is durable",
        (("disk/removal.py", "        if durably or marked:\n", "        if durably:\n"),),
        (("power-cut", "msgpack/prune-layered/1/few"),),
    ),
    Bug(
        "deleted under its committed name",
        (
            (
                "disk/removal.py",
                "        ops.rename(path, into)\n",
                "        discard(ops, path)\n",
            ),
        ),
        (("kill", "msgpack/delete/1"), ("power-cut", "msgpack/delete/1/few")),
    ),
    Bug(
        "acknowledged before its rename",
        (
            (
                "storage/local/attempt.py",
                "        moved = publish.move(self._ops, self._pending, self._step)\n",
                (
                    "        committed = self._root / f'step_{self._step}'\n"
                    "        moved = publish.Moved(self._step, self._pending, committed, None)\n"
                ),
            ),
            (
                "storage/local/attempt.py",
                "        path, old, others = publish.make_durable(self._ops, moved)\n",
                "        path, old, others = moved.committed, None, ()\n",
            ),
            (
                "saving/writer.py",
                "                self._queue.end(item, SaveState.COMMITTED, record=written.returned)\n",
                (
                    "                self._queue.end(item, SaveState.COMMITTED, record=written.returned)\n"
                    "                for _ in range(50):\n"
                    "                    await asyncio.sleep(0)\n"
                    "                pending = self._env.root / f'tmp_step_{tracker.step}'\n"
                    "                from asyncckpt.disk import publish\n"
                    "                ops = self._env.store._ops\n"
                    "                moved = await self._env.jobs.run(publish.move, ops, pending, tracker.step)\n"
                    "                await self._env.jobs.run(publish.make_durable, ops, moved)\n"
                ),
            ),
        ),
        (("kill", "msgpack/save/1"), ("chaos", "msgpack")),
    ),
    Bug(
        "renamed before the files' sync",
        (
            ("disk/publish.py", "    if batch is not None:\n        batch.sync()\n", ""),
            (
                "storage/local/attempt.py",
                (
                    "        self._batch.close()\n        stop.check()\n"
                    "        moved = publish.move(self._ops, self._pending, self._step)\n"
                ),
                (
                    "        moved = publish.move(self._ops, self._pending, self._step)\n"
                    "        self._batch.sync()\n        self._batch.close()\n"
                ),
            ),
        ),
        (("power-cut", "msgpack/first/1/few"),),
    ),
    Bug(
        "a failed fsync is tried again",
        (
            (
                "disk/write_blocks.py",
                "            self._ops.sync(fd)\n",
                (
                    "            try:\n                self._ops.sync(fd)\n"
                    "            except OSError:\n                self._ops.sync(fd)\n"
                ),
            ),
        ),
        (("fault", "msgpack/save/1"),),
    ),
    Bug(
        "a failed fsync is ignored",
        (
            (
                "disk/write_blocks.py",
                "            self._ops.sync(fd)\n",
                "            with contextlib.suppress(OSError):\n                self._ops.sync(fd)\n",
            ),
        ),
        (("fault", "msgpack/save/1"), ("fault-syscall", "msgpack/save/1")),
    ),
    Bug(
        "a short write is ignored",
        (
            (
                "disk/write_blocks.py",
                "        if end < parts[-1].offset + len(parts[-1].data):\n",
                "        if False:\n",
            ),
        ),
        (("fault", "msgpack/save/1"),),
    ),
    Bug(
        "swapped without the intermediate name",
        (("disk/publish.py", "    ops.rename(committed, swapped)\n", "    clear(ops, committed)\n"),),
        (("kill", "msgpack/overwrite-renaming/1"), ("power-cut", "msgpack/overwrite-renaming/1/few")),
    ),
    Bug(
        "a stale pending directory is used again",
        (
            (
                "disk/publish.py",
                "        ops.sync_directory(root)\n        refusals = clear(",
                "        break\n        refusals = clear(",
            ),
        ),
        (("fault", "msgpack/save/1"),),
    ),
    Bug(
        "recovery throws a lone old version away",
        (
            (
                "disk/removal.py",
                "            leftovers += _renamed(ops, swapped, committed)\n",
                "            leftovers += move_to_trash(ops, swapped, step)[1]\n",
            ),
        ),
        (("kill", "msgpack/recover/1"), ("power-cut", "msgpack/overwrite-renaming/1/few")),
    ),
    Bug(
        "the lock is ignored",
        (("disk/lock.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_SH | fcntl.LOCK_NB"),),
        (("concurrency", "two-writers/1"),),
    ),
    Bug(
        "a buffer goes back to the pool before its write has ended",
        (
            (
                "saving/commit.py",
                "request.min_free_nbytes) as attempt:\n",
                (
                    "request.min_free_nbytes) as attempt:\n"
                    "            if (pool := getattr(request.capture.snapshot, '_pool', None)) is not None:\n"
                    "                pool.give(list(request.capture.snapshot._buffers))\n"
                ),
            ),
        ),
        (("concurrency", "pipeline/1"),),
    ),
    Bug(
        "a log's values are not synced before their commit",
        (
            (
                "keyed/log/store.py",
                "            file.sync()  # or",
                "            pass  # or",
            ),
        ),
        (("power-cut", "keyed-msgpack/update/0/few"),),
    ),
    Bug(
        "a log's commit is not synced",
        (
            (
                "keyed/log/file.py",
                "            out.flush()\n            self.sync()\n",
                "            out.flush()\n",
            ),
        ),
        (("power-cut", "keyed-msgpack/update/0/few"),),
    ),
    Bug(
        "a failed sync of a log is tried again",
        (
            (
                "keyed/log/file.py",
                "        with on_failure(self.suspect):\n            self._ops.sync(self.fd)\n",
                (
                    "        try:\n            self._ops.sync(self.fd)\n"
                    "        except OSError:\n            self._ops.sync(self.fd)\n"
                ),
            ),
        ),
        (("fault", "keyed-msgpack/update/1"),),
    ),
    Bug(
        "a log is gone on with after a commit that may not have reached the disk",
        (
            (
                "keyed/log/file.py",
                "        out.write(self._commit)",
                "        pass",
            ),
        ),
        (("fault", "keyed-msgpack/reopen/1"),),
    ),
    Bug(
        "a file is gone on with under a name that may not have reached the disk",
        (
            (
                "keyed/location.py",
                "        self._is_entry_synced = False\n        self._rewrite",
                "        self._is_entry_synced = True\n        self._rewrite",
            ),
        ),
        (("fault", "keyed-msgpack/create/1"),),
    ),
    Bug(
        "an HDF5 file's superblock is put right before its slot is synced",
        (
            (
                "keyed/hdf5/native_file.py",
                "            self._ops.sync(self.fd)  # no superblock",
                "            pass  # no superblock",
            ),
        ),
        (("power-cut", "keyed-hdf5/update/3"),),
    ),
    Bug(
        "a failed sync of a log that was written anew is ignored",
        (
            (
                "keyed/log/file.py",
                "            out.flush()\n            self.sync()\n",
                (
                    "            out.flush()\n            try:\n                self.sync()\n"
                    "            except OSError:\n                if self.is_published:\n                    raise\n"
                    "                self.is_suspect = False\n"
                ),
            ),
        ),
        (("fault", "keyed-msgpack/compact/1/syncs"),),
    ),
    Bug(
        "a log that could not be written anew counts as committed",
        (
            (
                "keyed/log/store.py",
                "                self._append_commit(file)  # there is no room",
                "                pass  # there",
            ),
        ),
        (("fault", "keyed-msgpack/compact/1/syncs"),),
    ),
    Bug(
        "an HDF5 file that could not be written anew loses what was for it",
        (
            (
                "keyed/hdf5/store.py",
                "        self._move_all(current, context)  # what was written to the new one directly\n",
                (
                    "        for key, source in list(self._values.sources.items()):\n"
                    "            if getattr(source, 'file', current) is not current:\n"
                    "                self._values.delete(key)\n"
                    "        for file in [each for each in self._files if each is not current]:\n"
                    "            file.close()\n"
                ),
            ),
        ),
        (("fault", "keyed-hdf5/compact/0"),),
    ),
    Bug(
        "a failed sync of an HDF5 file is ignored",
        (
            (
                "keyed/hdf5/native_file.py",
                "slot.encode())\n            self._ops.sync(self.fd)\n",
                (
                    "slot.encode())\n            try:\n                self._ops.sync(self.fd)\n"
                    "            except OSError:\n                pass\n"
                ),
            ),
        ),
        (("fault", "keyed-hdf5/update/1"),),
    ),
    Bug(
        "an HDF5 file's values are not synced before its slot",
        (
            (
                "keyed/hdf5/native_file.py",
                "            self._ops.sync(self.fd)\n            self._write(slot",
                "            self._write(slot",
            ),
        ),
        (("power-cut", "keyed-hdf5/update/0/few"),),
    ),
    Bug(
        "an HDF5 file's slot is not synced",
        (("keyed/hdf5/native_file.py", "slot.encode())\n            self._ops.sync(self.fd)\n", "slot.encode())\n"),),
        (("power-cut", "keyed-hdf5/update/0/few"),),
    ),
    Bug(
        "a file that was written anew is not synced",
        (("keyed/npz/store.py", "            self._location.ops.sync(target.fd)\n", ""),),
        (("power-cut", "keyed-npz/update/0/few"),),
    ),
    Bug(
        "the name of a file that was written anew is not synced",
        (("keyed/location.py", "            self.ops.sync_directory(self.path.parent)\n", ""),),
        (("power-cut", "keyed-npz/update/0/few"),),
    ),
)


def seed(bug: Bug, package: Path) -> None:
    """Make a mistake.

    Raises:
        ValueError: The library has changed so that it cannot be made any more.
    """
    for file, right, wrong in bug.edits:
        text = (package / file).read_text()
        if text.count(right) != 1:
            message = (
                f"the patch for {bug.name!r} no longer applies: {file} has this {text.count(right)} times: {right!r}"
            )
            raise ValueError(message)
        (package / file).write_text(text.replace(right, wrong))
