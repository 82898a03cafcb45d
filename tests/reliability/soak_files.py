"""What `soak.py` does at random with a keyed file; see `soak_machines.py`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

import asyncckpt

from .files import KeyedWorkload
from .soak_machines import TURNS, Machine, cancel_after
from .values import name_of, value_of

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

_KEYS = 6
_KEY = st.integers(0, _KEYS - 1)


class FileMachine(Machine):
    """A file in use by its asynchronous view, or in blocking mode; its model is a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.workload = KeyedWorkload(self.form, self.seed, ())
        self.model: dict[str, int] = {}
        self.number = 0
        self.file: asyncckpt.Checkpointer | None = None
        self.view: Any = None

    @initialize()
    def begin(self) -> None:
        """Open."""
        self.do(self.open())

    async def open(self) -> None:
        """See `Machine`."""
        self.file = asyncckpt.Checkpointer.from_file(self.workload.path(self.root))
        self.view = await self.file.__aenter__()

    async def close(self) -> None:
        """See `Machine`."""
        if self.file is not None:
            file, self.file = self.file, None
            await file.__aexit__(None, None, None)

    def act_at_random(self, chance: random.Random, *, reopens: bool) -> None:
        """See `Machine`."""
        key = chance.randrange(_KEYS)
        if reopens and chance.random() < 0.02:
            self.reopen(chance.choice((None, key)))
        elif chance.random() < 0.5:
            self.set(key, is_awaited=True)
            self.do(self.settle())
        else:
            turns = chance.randint(0, 12)
            chance.choice(
                (
                    lambda: self.set(key, is_awaited=False),
                    lambda: self.unset(key),
                    lambda: self.load(key),
                    lambda: self.cancel_save(key, turns),
                    lambda: self.cancel_load(key, turns),
                    lambda: self.cancel_flush(turns),
                    self.flush,
                    self.look,
                )
            )()

    async def settle(self) -> None:
        """See `Machine`."""
        await self.view.flush()

    def _next(self, key: int) -> tuple[str, int, Any]:
        self.number += 1
        return name_of(key), self.number, value_of(self.seed, key, self.number, is_large=False)

    async def _load(self, name: str) -> int:
        return self.workload.number_in(name, await self.view[name])

    async def _look(self) -> None:
        found = [(name, await self._load(name)) for name in self.view]
        assert found == [*self.model.items()]

    @rule(key=_KEY, is_awaited=st.booleans())
    def set(self, key: int, is_awaited: bool) -> None:
        """Set, on the spot or awaited; the value changes as soon as it may."""

        async def act() -> None:
            name, number, value = self._next(key)
            if is_awaited:
                await self.view.save_parameter(name, value)
            else:
                self.view[name] = value
            (value["array"] if isinstance(value, dict) else value).fill(0xAA)
            self.model[name] = number

        self.do(act())

    @rule(key=_KEY)
    def unset(self, key: int) -> None:
        """Delete."""

        async def act() -> None:
            name = name_of(key)
            was_there = self.model.pop(name, None) is not None
            try:
                del self.view[name]
            except asyncckpt.CheckpointKeyError:
                assert not was_there
            else:
                assert was_there

        self.do(act())

    @rule(key=_KEY)
    def load(self, key: int) -> None:
        """Load."""

        async def act() -> None:
            name = name_of(key)
            try:
                found = await self._load(name)
            except asyncckpt.CheckpointKeyError:
                assert name not in self.model
            else:
                assert found == self.model[name]

        self.do(act())

    @rule(key=_KEY, turns=TURNS)
    def cancel_save(self, key: int, turns: int) -> None:
        """Cancel who saves: it is set or not."""

        async def act() -> None:
            name, number, value = self._next(key)
            is_done = await cancel_after(turns, self.view.save_parameter(name, value))
            if name not in self.view:
                assert name not in self.model
                assert not is_done
                return
            found = await self._load(name)
            assert found == number or (found == self.model.get(name) and not is_done)
            self.model[name] = found

        self.do(act())

    @rule(key=_KEY, turns=TURNS)
    def cancel_load(self, key: int, turns: int) -> None:
        """Cancel who loads."""
        self.do(self._cancel(turns, lambda: self.view.get(name_of(key))))

    @rule(turns=TURNS)
    def cancel_flush(self, turns: int) -> None:
        """Cancel who flushes."""
        self.do(self._cancel(turns, self.view.flush))

    async def _cancel(self, turns: int, call: Callable[[], Awaitable[Any]]) -> None:
        await cancel_after(turns, call())
        assert list(self.view) == list(self.model)

    @rule()
    def flush(self) -> None:
        """Flush; a reader beside finds what was flushed."""

        async def act() -> None:
            await self.view.flush()
            assert await asyncio.to_thread(self._read) == self.model

        self.do(act())

    def _read(self) -> dict[str, int]:
        with asyncckpt.Checkpointer.from_file(self.workload.path(self.root)) as chk:
            return {name: self.workload.number_of(chk, name) for name in chk}

    @rule()
    def look(self) -> None:
        """Load all there is, and compare."""
        self.do(self._look())

    @rule(key=st.none() | _KEY)
    def reopen(self, key: int | None) -> None:
        """Close, and open again; in between, maybe, set a key in blocking mode."""

        async def act() -> None:
            await self.close()
            if key is not None:
                name, number, value = self._next(key)
                await asyncio.to_thread(self._set_blocking, name, value)
                self.model[name] = number
            await self.open()
            await self._look()

        self.do(act())

    def _set_blocking(self, name: str, value: Any) -> None:
        with asyncckpt.Checkpointer.from_file(self.workload.path(self.root)) as chk:
            chk[name] = value
