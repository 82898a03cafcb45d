"""Checkpointer: a mapping of keys to values in one file, and the kinds of files."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, TypeAlias

from asyncckpt.config import check_arrays
from asyncckpt.errors import CheckpointerUsageError, CheckpointKeyError, ConfigError
from asyncckpt.keyed.engine import Key, format_keys, parse_key
from asyncckpt.keyed.lifecycle import FileLifecycle
from asyncckpt.keyed.memory import MemoryStore, NullStore
from asyncckpt.keyed.values import receive
from asyncckpt.runtime.context import JobContext

if TYPE_CHECKING:
    from collections.abc import Callable

    from asyncckpt.config import Arrays
    from asyncckpt.keyed.base import Store
    from asyncckpt.keyed.location import FileLocation

CheckpointFile: TypeAlias = "str | os.PathLike[str] | IO[bytes]"

_MISSING: Final = object()
_SPEC_KEYS: Final = ("file", "keys", "allowed_keys", "omitted_keys", "opts")


class Checkpointer(FileLifecycle, MutableMapping[Any, Any]):
    """A mapping of keys to values that lives in one file, for programs that save as they go.

    with Checkpointer.from_file("woof.h5") as chk:
        chk["grid"] = grid

    async with Checkpointer.from_file("woof.h5") as chk:
        await chk.save_parameter("grid", grid)

    The first is for scripts and notebooks: each access may wait for the disk, and where an event loop runs, it stands
    still meanwhile. The second returns the view for event loops, an `AsyncCheckpointer` of the same file. Values are
    what `CheckpointManager.save` takes, and what is loaded is equal to what was saved, in new objects. A key is a str,
    or a tuple that begins with one: a path into the dicts of the value, whose first part is the key in the file. To
    change the value at a path, the whole value is read and rewritten.

    `flush`, and leaving the block, makes all changes since the last flush durable, together: after a kill at any moment
    the file has the last completed flush, or the one in progress. Outside any block, each access opens the file,
    flushes and closes it. Blocks may be nested; the outermost closes the file.

    One Checkpointer at a time may change a file. The first change locks it until it is closed. Reading takes no lock,
    and shows the file as it was when it was opened.

    Args:
        checkpoint_file: A path (a relative one is of the working directory as it is now), or a binary file that the
            caller has opened. Such a file is left open. It is copied to a temporary file and, at each flush, back. It
            is not locked, and a kill during the copy may leave it torn.
        allowed_keys: The only keys that may be used.
        omitted_keys: Keys that may not be used.
        serializer: Its `to_state` is called with each value that is saved, and its `from_state` with each that was
            loaded.
        disk: What changes the disk; for tests (`asyncckpt.testing.FaultyDisk`).
        rewrite: Whether a change may rewrite a file that another program made. False: a change is an error. True: the
            old file is kept as `NAME.orig`. "without_backup": it is not kept.
        max_staged_nbytes: How much memory the values that the asynchronous view has captured may take until they are
            written, in bytes.

    Raises:
        ConfigError: The file cannot be used, or the keys are not a collection of str.
    """

    default_extension: ClassVar[str] = ""
    """The extension of files of this kind, dot included."""

    # --- kinds --------------------------------------------------------------------------------------------------------

    @classmethod
    def extension_map(cls) -> dict[str, type[Checkpointer]]:
        """Return the classes by extension, which `from_file` uses; more may be added."""
        return _EXTENSIONS

    @classmethod
    def from_file(cls, file: CheckpointFile, **opts: Any) -> Checkpointer:
        """Return a Checkpointer of the kind that belongs to the extension of a file.

        Args:
            file: A path, or an open binary file that has a name.
            opts: Further arguments of the class.

        Raises:
            ConfigError: No kind has that extension; the message lists the known ones.
        """
        name = file if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
        known = ", ".join(sorted(_EXTENSIONS))
        if not isinstance(name, str | os.PathLike):
            message = f"{file!r} has no name with an extension: use the class itself, such as JSONCheckpointer(file)"
            raise ConfigError(f"{message} (known extensions: {known})")
        suffixes = Path(name).suffixes
        for start in range(len(suffixes)):  # the longest first: ".h5.old" before ".old"
            extension = "".join(suffixes[start:])
            found = _EXTENSIONS.get(extension) or _EXTENSIONS.get(extension.lower())
            if found is not None:
                return found(file, **opts)
        message = f"{os.fspath(name)!r} has the unknown extension {Path(name).suffix!r}; known extensions: {known}"
        raise ConfigError(message)

    @classmethod
    def build_canonical(cls, spec: Any) -> Checkpointer:
        """Return the Checkpointer that a specification describes.

        Args:
            spec: None for a `NullCheckpointer`; a Checkpointer for itself; a path or an open file for `from_file`; a
                mapping with "file" for `from_file`, with the entries of "opts" as arguments and "keys" as
                `allowed_keys`, or as a mapping with "allowed_keys" or "omitted_keys", which may be entries of the spec
                itself, too; any other mapping for a `DictCheckpointer` of that mapping.

        Raises:
            ConfigError: It is none of these, or has unknown entries.
        """
        if spec is None:
            return NullCheckpointer()
        if isinstance(spec, Checkpointer):
            return spec
        if isinstance(spec, str | os.PathLike) or hasattr(spec, "read"):
            return cls.from_file(spec)
        if not isinstance(spec, Mapping):
            message = f"expected None, a path, an open file, a mapping or a Checkpointer, not {spec!r}"
            raise ConfigError(message)
        if "file" not in spec:
            return DictCheckpointer(spec)
        if unknown := [key for key in spec if key not in _SPEC_KEYS]:
            message = f"unknown entries {format_keys(unknown)} next to 'file'; known are {format_keys(_SPEC_KEYS[1:])}"
            raise ConfigError(message)
        keys = spec.get("keys")
        opts = dict(spec.get("opts") or {})
        opts |= {name: spec[name] for name in ("allowed_keys", "omitted_keys") if spec.get(name) is not None}
        opts |= dict(keys) if isinstance(keys, Mapping) else {} if keys is None else {"allowed_keys": keys}
        return cls.from_file(spec["file"], **opts)

    # --- access -------------------------------------------------------------------------------------------------------

    def load_parameter(self, key: Key, *, arrays: Arrays = "saved") -> Any:
        """Load the value of a key or at a path.

        Args:
            key: The key, or a path.
            arrays: "saved": arrays are those of the frameworks that they were saved from. "numpy": they are numpy
                arrays, also without the framework.

        Raises:
            ConfigError: `arrays` is neither.
            UnsupportedFormatError: The program has not imported a framework whose arrays are in the value.
            CheckpointKeyError: There is none, or the key is not allowed.
            CorruptCheckpointError: It is damaged.
        """
        check_arrays(arrays)
        with self._using() as engine:
            path = self._rules.path(key, engine.keys)
            return receive(engine.read(path, JobContext(), arrays), path[0])

    def save_parameter(self, key: Key, value: object) -> None:
        """Save a value, which may be changed afterwards. It is durable after the next `flush`.

        Raises:
            CheckpointKeyError: The key is not allowed, or a part of the path is not a dict.
            UnsupportedLeafError: The value cannot be saved.
            FileLockedError: Another Checkpointer is changing the file.
            ReadOnlyFileError: Another program made the file, and `rewrite` was not given.
        """
        with self._using() as engine:
            engine.write(self._rules.path(key, engine.keys), value, JobContext())

    def delete_parameter(self, key: Key) -> None:
        """Delete a key, or the value at a path.

        Raises:
            CheckpointKeyError: There is none, or the key is not allowed.
        """
        with self._using() as engine:
            engine.delete(self._rules.path(key, engine.keys), JobContext())

    def flush(self) -> None:
        """Make all changes since the last flush durable, together."""
        with self._using() as engine:
            engine.commit(JobContext())

    def __getitem__(self, key: Key) -> Any:
        """Load; see `load_parameter`."""
        return self.load_parameter(key)

    def __setitem__(self, key: Key, value: object) -> None:
        """Save; see `save_parameter`."""
        self.save_parameter(key, value)

    def __delitem__(self, key: Key) -> None:
        """Delete; see `delete_parameter`."""
        self.delete_parameter(key)

    def __contains__(self, key: object) -> bool:
        """Tell whether there is a value, and the key is allowed."""
        try:
            path = parse_key(key)
        except TypeError:
            return False
        with self._using() as engine:
            return self._rules.allows(path[0]) and engine.contains(path, JobContext())

    def __iter__(self) -> Iterator[str]:
        """Iterate over a snapshot of the keys, in the order in which they were added."""
        with self._using() as engine:
            return iter(self._rules.visible(engine.keys()))

    def __len__(self) -> int:
        """Return the number of keys."""
        with self._using() as engine:
            return len(self._rules.visible(engine.keys()))

    def get_keys(self, keys: Iterable[Key]) -> list[Any]:
        """Load the values of several keys, in their order."""
        with self._using():
            return [self.load_parameter(key) for key in keys]

    def update(self, values: Any = (), /, **more: object) -> None:
        """Save the values of a mapping, or of pairs."""
        with self._using():
            super().update(values, **more)

    def pop(self, key: Key, default: Any = _MISSING) -> Any:
        """Load a value and delete it. If there is none, return the default, if that is given."""
        with self._using() as engine:
            first = parse_key(key)[0]
            if first in engine.store.entries and self._rules.allows(first):
                engine.begin(JobContext())  # another writer's value must not be deleted without being returned
            try:
                value = self.load_parameter(key)
            except CheckpointKeyError:
                if default is _MISSING:
                    raise
                return default
            self.delete_parameter(key)
            return value

    def get(self, key: Key, default: Any = None) -> Any:
        """Load a value; if there is none, return the default."""
        with self._using() as engine:
            if parse_key(key)[0] not in engine.store.entries:  # an error would list all keys
                return default
            try:
                return self.load_parameter(key)
            except CheckpointKeyError:  # not any other KeyError, which the caller's `from_state` may have raised
                return default

    def setdefault(self, key: Key, default: Any = None) -> Any:
        """Load a value; if there is none, save the default and return it."""
        with self._using() as engine:
            value = self.get(key, _MISSING)
            if value is _MISSING:
                self.check_allowed_key(key)
                engine.begin(JobContext())  # another writer may have saved one since the file was opened
                value = self.get(key, _MISSING)
            if value is _MISSING:
                self.save_parameter(key, default)
                return default
            return value

    def popitem(self) -> tuple[str, Any]:
        """Load and delete the first key; return the key and its value.

        Raises:
            CheckpointKeyError: There is none.
        """
        with self._using() as engine:
            if len(self):
                engine.begin(JobContext())
            for key in self:
                return key, self.pop(key)
            message = f"{self._file_name} is empty: it has no keys"
            raise CheckpointKeyError(message, key=None)

    def clear(self) -> None:
        """Delete all keys that are allowed. Nothing is loaded, so damaged values are deleted, too."""
        with self._using() as engine:
            if len(self):
                engine.begin(JobContext())  # the keys of another writer are deleted, too
            for key in self:
                self.delete_parameter(key)

    def cached_eval(
        self,
        key: Key,
        generator: Callable[..., Any],
        *,
        condition: Callable[[Any], bool] | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Load a value, or compute and save it. Of threads that ask for the same key, one computes it.

        Args:
            key: The key.
            generator: Called with `args` and `kwargs` to compute the value, if there is none or `condition` is false.
            condition: Called with the value that was loaded; whether it can be used.
            args: Positional arguments of `generator`.
            kwargs: Keyword arguments of `generator`.

        Raises:
            CheckpointerUsageError: `generator` is asynchronous, which needs `async with`. Or there is a deadlock:
                generators wait for each other's keys, or one waits for its own.
        """
        self._check_blocking()
        asynchronous = f"{generator!r} is a coroutine function: use `async with`, whose cached_eval awaits it"
        if inspect.iscoroutinefunction(generator):
            raise CheckpointerUsageError(asynchronous)
        path = self._rules.path(key, self._known_keys)
        while True:
            evaluation, is_new = self._evaluations.join(path)
            if is_new:
                break
            try:
                with evaluation.waiting():
                    result = evaluation.result.result()
            except CancelledError:
                continue
            value = self.get(key, result)
            if condition is None or condition(value):
                return value
        with self._evaluations.computing(path, evaluation):
            with self:
                value = self.get(key, _MISSING)
                if value is _MISSING or (condition is not None and not condition(value)):
                    value = generator(*args, **(kwargs or {}))
                    if inspect.isawaitable(value):  # of a partial or a lambda, say
                        if inspect.iscoroutine(value):
                            value.close()
                        raise CheckpointerUsageError(asynchronous)
                    self.save_parameter(key, value)
            evaluation.result.set_result(value)
        return value

    def __eq__(self, other: object) -> bool:
        """Tell whether it is the same object. Contents are not compared, because that would read both files."""
        return self is other

    def __hash__(self) -> int:
        """Return a hash of the identity."""
        return id(self)


class HDF5Checkpointer(Checkpointer):
    """Keys in an HDF5 file (.hdf5, .h5).

    Further args:
        trusted: Open a file that asyncckpt did not write. libhdf5 then parses it, and a hostile file may crash it or
            keep it busy forever.
    """

    default_extension = ".hdf5"

    def __init__(self, *args: Any, trusted: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trusted = trusted

    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        from asyncckpt.keyed.hdf5.store import HDF5Store

        return HDF5Store(location, context, trusted=self._trusted)


class MsgpackCheckpointer(Checkpointer):
    """Keys in a log of msgpack records (.msgpack)."""

    default_extension = ".msgpack"

    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        from asyncckpt.keyed.log.store import MsgpackStore

        return MsgpackStore(location, context)


class JSONCheckpointer(Checkpointer):
    """Keys in a JSON object (.json), a line each. A flush rewrites the file; its text is in memory while it is open."""

    default_extension = ".json"

    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        from asyncckpt.keyed.json.store import JSONStore

        return JSONStore(location, context)


class NumPyCheckpointer(Checkpointer):
    """Keys in a zip file of arrays (.npz), as `numpy.savez` makes it. A flush rewrites the file.

    Further args:
        trusted: Load compressed arrays that are far larger than their file.
    """

    default_extension = ".npz"

    def __init__(self, *args: Any, trusted: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._trusted = trusted

    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        from asyncckpt.keyed.npz.store import NumPyStore

        return NumPyStore(location, context, trusted=self._trusted)


class DictCheckpointer(Checkpointer):
    """Keys in memory, in a mapping of the caller's or a new dict. Values are copied when they are saved and loaded."""

    def __init__(self, checkpoint_file: Mapping[str, Any] | None = None, *args: Any, **kwargs: Any) -> None:
        super().__init__({} if checkpoint_file is None else checkpoint_file, *args, **kwargs)

    def _check_file(self, file: Any) -> Any:
        if not isinstance(file, Mapping):
            message = f"DictCheckpointer takes a mapping, not {file!r}"
            raise ConfigError(message)
        for key in file:
            if not isinstance(key, str):
                message = f"the keys of a Checkpointer are str, but the mapping has {key!r}"
                raise ConfigError(message)
        return file if isinstance(file, MutableMapping) else dict(file)

    def _open_store(self, file: Any, context: JobContext) -> Store:
        return MemoryStore(file, context)

    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        raise NotImplementedError

    @property
    def _file_name(self) -> str:
        """The name in error messages."""
        return "memory"


class NullCheckpointer(Checkpointer):
    """Keeps nothing, so a program runs without checkpoints unchanged: there is never a value for any key."""

    def __init__(self, checkpoint_file: Any = None, *args: Any, **kwargs: Any) -> None:
        super().__init__(checkpoint_file, *args, **kwargs)

    def _check_file(self, file: Any) -> Any:
        return file

    def _open_store(self, file: Any, context: JobContext) -> Store:  # noqa: ARG002 - there is none
        return NullStore()

    def _open_location(self, location: FileLocation, context: JobContext) -> Store:
        raise NotImplementedError

    @property
    def _file_name(self) -> str:
        """The name in error messages."""
        return "nowhere"


_EXTENSIONS: Final[dict[str, type[Checkpointer]]] = {
    ".hdf5": HDF5Checkpointer,
    ".h5": HDF5Checkpointer,
    ".msgpack": MsgpackCheckpointer,
    ".json": JSONCheckpointer,
    ".npz": NumPyCheckpointer,
}
