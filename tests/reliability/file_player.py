"""Plays the sessions of a workload of a keyed file, in blocking mode or with the asynchronous view."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncckpt

from .history import Event
from .values import NEXT_KEY, key_of, name_of, value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .disks import ShimDisk
    from .files import KeyedWorkload
    from .workload import Action, Healing

    AsyncCheckpointer = Any


class KeyedPlayer:
    """Plays sessions.

    Attributes:
        current: The number of each key, as the program has set them.
    """

    def __init__(
        self,
        workload: KeyedWorkload,
        path: Path,
        disk: ShimDisk,
        log: Callable[[Event], object],
        *,
        is_patient: bool,
    ) -> None:
        self.workload = workload
        self.path = path
        self.disk = disk
        self.log = log
        self.is_patient = is_patient
        self.errors: list[Exception] = []
        self.current: dict[int, int] = {}
        self._number = workload.first_number

    def _fail(self, error: Exception) -> None:
        if not self.is_patient:
            raise error
        self.errors.append(error)

    def _begin(self, found: Mapping[int, int]) -> None:
        """Begin a session with what is there."""
        self.current = dict(found)
        self.log(Event("clear", 0))
        for key, number in found.items():
            self.log(Event("found", key, number))

    def _value(self, key: int) -> tuple[int, Any]:
        self._number += 1
        return self._number, value_of(self.workload.seed, key, self._number, is_large=self.workload.is_large)

    def _did(self, kind: str, key: int, number: int = 0) -> None:
        if kind == "set":
            self.current[key] = number
        else:
            self.current.pop(key, None)
        self.log(Event(kind, key, number))

    # --- blocking -----------------------------------------------------------------------------------------------------

    def play(self, session: tuple[Action, ...], healing: Healing | None) -> None:
        """Play a session in blocking mode."""
        try:
            with asyncckpt.Checkpointer.from_file(self.path, disk=self.disk) as chk:
                self._begin({key_of(name): self.workload.number_of(chk, name) for name in chk})
                for kind, keys in session:
                    try:
                        self._act(chk, kind, keys)
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if healing is not None and healing.is_due(self.errors):
                    self._look_and_save(chk, healing)
                self.log(Event("begin", 0))
            self.log(Event("ack", 0))
        except (OSError, asyncckpt.CheckpointError) as error:
            self._fail(error)

    def _act(self, chk: asyncckpt.Checkpointer, kind: str, keys: tuple[int, ...]) -> None:
        for key in keys:
            if kind == "set":
                number, value = self._value(key)
                chk[name_of(key)] = value
                self._did("set", key, number)
            elif key in self.current:
                del chk[name_of(key)]
                self._did("unset", key)
        if kind == "flush":
            self.log(Event("begin", 0))
            chk.flush()
            self.log(Event("ack", 0))

    def _look_and_save(self, chk: asyncckpt.Checkpointer, healing: Healing) -> None:
        healing.heal()
        found = {key_of(name): self.workload.number_of(chk, name) for name in chk}
        healing.problem = self._judge(found)
        try:
            for kind, keys in NEXT_ACTIONS:
                self._act(chk, kind, keys)
        except Exception as error:  # noqa: BLE001 - it is the loss
            healing.problem = healing.problem or _failed(error)

    def _judge(self, found: dict[int, int]) -> str | None:
        return None if found == self.current else f"what is open has {found}, and was given {self.current}"

    # --- asynchronous -------------------------------------------------------------------------------------------------

    async def play_async(self, session: tuple[Action, ...], healing: Healing | None) -> None:
        """Play a session with the asynchronous view. What it has captured is kept, if the disk fails, for the next."""
        try:
            async with asyncckpt.Checkpointer.from_file(self.path, disk=self.disk) as chk:
                self._begin(await self._found(chk))
                for kind, keys in session:
                    try:
                        await self._act_async(chk, kind, keys)
                    except (OSError, asyncckpt.CheckpointError) as error:
                        self._fail(error)
                if healing is not None and healing.is_due(self.errors):
                    await self._look_and_save_async(chk, healing)
                self.log(Event("begin", 0))
            self.log(Event("ack", 0))
        except (OSError, asyncckpt.CheckpointError, ExceptionGroup) as error:
            self._fail(error)

    async def _found(self, chk: AsyncCheckpointer) -> dict[int, int]:
        found = {}
        for name in list(chk):
            try:
                found[key_of(name)] = self.workload.number_in(name, await chk[name])
            except (asyncckpt.CheckpointError, OSError):
                found[key_of(name)] = -1
        return found

    async def _act_async(self, chk: AsyncCheckpointer, kind: str, keys: tuple[int, ...]) -> None:
        for key in keys:
            if kind == "set":
                number, value = self._value(key)
                await chk.save_parameter(name_of(key), value)
                (value["array"] if isinstance(value, dict) else value).fill(0xAA)
                self._did("set", key, number)
            elif key in self.current:
                del chk[name_of(key)]
                self._did("unset", key)
        if kind == "flush":
            self.log(Event("begin", 0))
            await chk.flush()
            self.log(Event("ack", 0))

    async def _look_and_save_async(self, chk: AsyncCheckpointer, healing: Healing) -> None:
        healing.heal()
        healing.problem = self._judge(await self._found(chk))
        try:
            for kind, keys in NEXT_ACTIONS:
                await self._act_async(chk, kind, keys)
        except Exception as error:  # noqa: BLE001 - it is the loss
            healing.problem = healing.problem or _failed(error)


NEXT_ACTIONS: tuple[Action, ...] = (("set", (NEXT_KEY - 1, 0)), ("flush", ()))


def _failed(error: Exception) -> str:
    return f"the next flush of what is open, on the healed disk, failed: {error!r}"
