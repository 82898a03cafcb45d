"""`DurableCheckpointIO`: a plugin that writes Lightning's checkpoints."""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from asyncckpt.blocking import CheckpointManager
from asyncckpt.disk.names import Kind, name_of, parse_name
from asyncckpt.disk.ops import DiskOps
from asyncckpt.disk.publish import ensure_directory
from asyncckpt.errors import CheckpointNotFoundError, ConfigError
from asyncckpt.integrations.lightning.dumps import save_dump
from asyncckpt.integrations.lightning.package import CheckpointIO

if TYPE_CHECKING:
    from asyncckpt.blocking import SaveHandle

_STAGING: Final = ".asyncckpt"
"""The directory, beside the checkpoints, in which they are written before they get their names."""


class DurableCheckpointIO(CheckpointIO):
    """Writes the checkpoints of a `Trainer` in the background, each as a directory that appears when it is durable.

    Lightning's `ModelCheckpoint` goes on deciding when a checkpoint is written, under which path, and which stay::

        trainer = lightning.Trainer(plugins=[DurableCheckpointIO()], callbacks=[ModelCheckpoint(every_n_epochs=1)])
        trainer.fit(model, data, ckpt_path="last")

    A save returns when its state has been copied. What a path named before stays there until its successor is durable,
    and what `ModelCheckpoint` removes is removed after that. An error of a write is raised by the next save, or when
    the training ends. `asyncckpt.CheckpointManager` loads such a directory by its path.

    Paths are of the local file system. Strategies that write files themselves (FSDP and DeepSpeed, if sharded) do not
    use such plugins.

    Args:
        format: "msgpack" or "hdf5".
        max_staged_nbytes: The bytes of copied checkpoints that may wait to be written. None is the manager's default.
    """

    def __init__(self, *, format: str = "msgpack", max_staged_nbytes: int | None = None) -> None:
        self._options: dict[str, Any] = {"format": format}
        if max_staged_nbytes is not None:
            self._options["max_staged_nbytes"] = max_staged_nbytes
        self._folders: dict[Path, _Folder] = {}
        self._executor: ThreadPoolExecutor | None = None
        self._errors: list[Exception] = []

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Capture a checkpoint, and write it in the background.

        Raises:
            UnsupportedLeafError: It holds a value that cannot be saved.
            SaveFailedError: An earlier checkpoint could not be written; this one was not looked at.
            OSError: As SaveFailedError, or the directory cannot be made.
            TypeError: `storage_options` were given.
            ConfigError: The path is a URL.
        """
        if storage_options is not None:
            message = f"{type(self).__name__} has no storage_options: leave them out"
            raise TypeError(message)
        self._raise_errors()
        target = _local(path)
        folder = self._folders.get(target.parent)
        if folder is None:
            folder = self._folders[target.parent] = _Folder(target.parent, self._options)
        handle = folder.save(checkpoint)
        if folder.is_new:
            folder.is_new = False
            self._run(folder.clear)
        self._run(folder.publish, handle, target)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = None,
        weights_only: bool | None = None,  # noqa: ARG002, FBT001 - Lightning's argument
    ) -> dict[str, Any]:
        """Load a checkpoint that this plugin or a manager has written. Nothing in it is run.

        Args:
            path: The checkpoint's directory.
            map_location: The device on which the tensors are to be; the CPU by default.
            weights_only: Not used: it would change nothing.

        Raises:
            CheckpointNotFoundError: There is no such directory.
            CorruptCheckpointError: It is damaged.
            ConfigError: The path is a URL, or a file that Lightning wrote without this plugin.
            TypeError: `map_location` is not a device.
        """
        if not isinstance(map_location, str | torch.device | None):
            message = f"map_location is {map_location!r}: give a device or None"
            raise TypeError(message)
        target = Path(os.path.realpath(_local(path)))
        self.wait()
        if target.is_file():
            message = (
                f"{path} is a file, which was written without {type(self).__name__}: load it by a Trainer without the"
                " plugin, and save it again with it"
            )
            raise ConfigError(message)
        if not target.is_dir():
            message = f"there is no checkpoint at {path}"
            raise CheckpointNotFoundError(message)
        with CheckpointManager(target.parent, read_only=True) as manager:
            loaded = manager.load(target)
        assert loaded is not None, "only missing_ok=True returns None"  # noqa: S101
        state: dict[str, Any] = loaded.state
        if map_location is not None:
            state = _on_device(state, torch.device(map_location))
        return state

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, after everything that was saved before is durable."""
        target = _local(path)
        self._run(_remove, target)

    def teardown(self) -> None:
        """Write what was captured. `Trainer` calls this when it ends, also by an exception.

        Raises:
            SaveFailedError: A checkpoint could not be written.
            OSError: As SaveFailedError.
        """
        with ExitStack() as stack:
            stack.callback(self._raise_errors)
            for folder in self._folders.values():
                stack.callback(folder.close)
            self._folders = {}
            self.wait()
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None

    def _run(self, function: Any, *args: Any) -> None:
        if self._executor is None:
            atexit.register(self.teardown)  # for `trainer.save_checkpoint` after the training
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="asyncckpt-publish")
        self._executor.submit(self._attempt, function, *args)

    def _attempt(self, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:  # noqa: BLE001 - the next call raises it
            self._errors.append(error)

    def wait(self) -> None:
        """Wait until everything that was saved is written, or has failed."""
        if self._executor is not None:
            self._executor.submit(int).result()  # it has one thread, which works in order

    def _raise_errors(self) -> None:
        errors, self._errors = self._errors, []
        if len(errors) == 1:
            raise errors[0]
        if errors:
            message = "checkpoints could not be written"
            raise ExceptionGroup(message, errors)


class _Folder:
    """A directory of checkpoints, and the manager that writes them beside it until they get their names."""

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self._path, self._staging = path, path / _STAGING
        self._ops = DiskOps()
        ensure_directory(self._ops, path)
        self._manager = CheckpointManager(self._staging, **options)
        self._manager.open()
        self._first = max(self._manager.steps(), default=0) + 1
        self._steps = itertools.count(self._first)
        self.is_new = True

    def save(self, checkpoint: dict[str, Any]) -> SaveHandle:
        info = {key: checkpoint[key] for key in ("epoch", "global_step") if isinstance(checkpoint.get(key), int)}
        return save_dump(self._manager, next(self._steps), checkpoint, info)

    def clear(self) -> None:
        """Remove what a killed process has written and not named yet. The directory is locked by now."""
        with os.scandir(self._staging) as entries:
            for entry in entries:
                parsed = parse_name(entry.name)
                if parsed is not None and parsed[0] is Kind.COMMITTED and parsed[1] < self._first:
                    self._discard(Path(entry.path), parsed[1])

    def publish(self, handle: SaveHandle, target: Path) -> None:
        """Wait until a checkpoint is durable, then give it its name, durably."""
        handle.wait()
        staged = self._staging / name_of(Kind.COMMITTED, handle.step)
        former = None
        if os.path.lexists(target):
            if self._ops.exchange(staged, target):
                former = staged
            else:  # a file system that cannot do this: for a moment, only the other name is there
                former = target.with_name(f"{target.name}.old")
                self._ops.rename(target, former)
                self._ops.rename(staged, target)
        else:
            self._ops.rename(staged, target)
        self._ops.sync_directory(self._path)
        self._ops.sync_directory(self._staging)
        if former is not None:
            self._discard(former, handle.step)

    def close(self) -> None:
        self._manager.close()

    def _discard(self, path: Path, step: int) -> None:
        if path.is_symlink() or not path.is_dir():
            self._ops.unlink(path)
            return
        trash = self._staging / name_of(Kind.TRASH, step)
        self._ops.rename(path, trash)  # which the next manager deletes if this is killed meanwhile
        shutil.rmtree(trash)


def _local(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    if "://" in text:
        message = f"{text} is a URL: give a path of the local file system"
        raise ConfigError(message)
    return Path(text).absolute()


def _on_device(value: Any, device: torch.device) -> Any:
    """Return a dump with its tensors on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _on_device(item, device)
    elif type(value) in {list, tuple}:
        return type(value)(_on_device(item, device) for item in value)
    return value


def _remove(path: Path) -> None:
    """Remove a checkpoint: no reader finds it half removed."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        staging = path.parent / _STAGING
        staging.mkdir(exist_ok=True)
        trash = staging / f"{name_of(Kind.TRASH, 0)}.{os.getpid()}"
        path.rename(trash)  # which the next manager deletes if this process is killed meanwhile
        shutil.rmtree(trash)
