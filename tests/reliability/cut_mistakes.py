"""Known mistakes in the mechanism of cuts: what random schedules must see to be believed. Each breaks one rule."""

from __future__ import annotations

from typing import Final

from .mistakes import Bug

_UNIT: Final = "schedules/0"
_CORE: Final = "cut/core.py"
_PARTICIPANT: Final = "cut/participant.py"
_QUEUE: Final = "cut/queue.py"
_WORK_QUEUE: Final = "cut/work_queue.py"


def _bug(name: str, *edits: tuple[str, str, str]) -> Bug:
    return Bug(name, edits, (("cut", _UNIT),))


CUT_BUGS: Final = (
    _bug(
        "a cut is held while a participant runs",
        (
            _CORE,
            (
                "            self.is_wanted = True\n"
                "            if not self._running:\n"
                "                self._grant()\n"
                "\n"
                "    def _grant"
            ),
            ("            self.is_wanted = True\n            self._grant()\n\n    def _grant"),
        ),
    ),
    _bug(
        "a cut is not held when the last one comes to rest",
        (
            _CORE,
            ("            if not self._running and self.is_wanted:\n                self._grant()"),
            "            pass",
        ),
    ),
    _bug(
        "a participant runs on during a cut",
        (
            _CORE,
            ("            elif self.is_wanted:\n                waiter = self._park(task)"),
            ("            elif self.is_wanted and not self.is_held:\n                waiter = self._park(task)"),
        ),
    ),
    _bug(
        "a cancellation is delivered during a cut",
        (
            _CORE,
            (
                "                if self.is_held:\n"
                "                    waiter = await self._outlast(task)\n"
                "            elif"
            ),
            ("                pass\n            elif"),
        ),
    ),
    _bug(
        "a cancellation of who is parked is delivered during a cut",
        (
            _CORE,
            (
                "                    if self.is_held:\n"
                "                        self._gone_on(waiter)\n"
                "                        waiter = await self._outlast(task)\n"
                "                    raise"
            ),
            "                    raise",
        ),
    ),
    _bug(
        "a second cancellation is delivered during a cut",
        (
            _CORE,
            (
                "                    if self.is_held:\n"
                "                        self._gone_on(waiter)\n"
                "                        continue\n"
            ),
            "                    pass\n",
        ),
    ),
    _bug(
        "the next cut does not wait until all have run",
        (_CORE, "self._line and not self._owed:", "self._line:"),
    ),
    _bug(
        "another cut is wanted before who goes on counts as running",
        (
            _CORE,
            (
                "        if not member.is_running:\n"
                "            member.is_running = True\n"
                "            self._running += 1\n"
                "        self._gone_on(waiter)"
            ),
            (
                "        self._gone_on(waiter)\n"
                "        if not member.is_running:\n"
                "            member.is_running = True\n"
                "            self._running += 1"
            ),
        ),
    ),
    _bug(
        "a cancelled wait for the release is owed for ever",
        (
            _CORE,
            ("            self._owed.remove(waiter)\n            self._advance()"),
            "            self._owed.remove(waiter)",
        ),
    ),
    _bug(
        "a hold that failed does not release",
        (_CORE, ("            self._withdraw(request)\n            if member"), "            if member"),
        (
            _CORE,
            ("            request.future.set_exception(error)\n            self._withdraw(request)"),
            "            request.future.set_exception(error)",
        ),
    ),
    _bug(
        "a hold that failed stays in the line",
        (_CORE, ("        elif request in self._line:\n            self._line.remove(request)\n"), ""),
    ),
    _bug(
        "a participant that waits to hold counts as running",
        (
            _CORE,
            ('        if member is not None:\n            self.rest(member, "hold")\n        self._line.append'),
            "        self._line.append",
        ),
    ),
    _bug(
        "who joins does not wait",
        (
            _CORE,
            (
                "            if self.is_wanted:\n"
                "                waiter = self._park(task)\n"
                "                await waiter\n"
                "            member.task"
            ),
            "            member.task",
        ),
    ),
    _bug(
        "a dead participant counts as running",
        (_CORE, ('        self.rest(member, "")\n        member.task = None'), "        member.task = None"),
    ),
    _bug(
        "a death while running is not noticed",
        (_PARTICIPANT, "None if error is None or self._was_raised_at_rest(error) else _told(error)", "None"),
    ),
    _bug(
        "a death at rest tears the state",
        (_PARTICIPANT, "return self._mark > 0 and", "return False and"),
    ),
    _bug(
        "a hold does not look for deaths",
        (
            _CORE,
            ("        if self._torn:\n            raise self._torn_error()\n        return _Request"),
            "        return _Request",
        ),
    ),
    _bug(
        "a death does not end the waiting for a cut",
        (_CORE, "                self._fail(request, self._torn_error())", "                pass"),
    ),
    _bug(
        "a cut at once does not look for who runs",
        (_CORE, ("        if busy:\n            raise"), ("        if False:\n            raise")),
    ),
    _bug(
        "what was waited for is delivered during a cut",
        (
            _PARTICIPANT,
            "        await self._resume()\n        return result\n",
            "        self.cut.let_run(self)\n        return result\n",
        ),
    ),
    _bug(
        "a waiting put is not the queue's",
        (_QUEUE, "iter([*self._items, *[put.item for put in self._puts]])", "iter([*self._items])"),
    ),
    _bug(
        "a cancelled put stays",
        (
            _QUEUE,
            ("        except BaseException:\n            self._puts.remove(put)"),
            ("        except TimeoutError:\n            self._puts.remove(put)"),
        ),
    ),
    _bug(
        "a cancelled put keeps its place",
        (
            _QUEUE,
            ("                self._promised_places -= 1\n                self._promise_places()\n            raise"),
            ("                pass\n            raise"),
        ),
    ),
    _bug(
        "a cancelled get keeps its item",
        (
            _QUEUE,
            ("                self._promised_items -= 1\n                self._promise_items()\n            elif"),
            ("                pass\n            elif"),
        ),
    ),
    _bug(
        "what a cancelled get was promised goes to nobody",
        (
            _QUEUE,
            ("                self._promised_items -= 1\n                self._promise_items()\n            elif"),
            ("                self._promised_items -= 1\n            elif"),
        ),
    ),
    _bug(
        "the place of a cancelled put goes to nobody",
        (
            _QUEUE,
            ("                self._promised_places -= 1\n                self._promise_places()\n            raise"),
            ("                self._promised_places -= 1\n            raise"),
        ),
    ),
    _bug(
        "a get wakes no put",
        (
            _QUEUE,
            "                if self._puts:\n                    self._promise_places()\n                return item\n",
            "                return item\n",
        ),
        (
            _QUEUE,
            "        self._promise_places()\n        return item\n\n    async def _wait_to_put",
            "        return item\n\n    async def _wait_to_put",
        ),
    ),
    _bug(
        "a put wakes no get",
        (
            _QUEUE,
            (
                "                    if self._gets:\n"
                "                        self._promise_items()\n"
                "                    return\n"
            ),
            "                    return\n",
        ),
        (
            _QUEUE,
            "        self._items.append(item)\n        self._promise_items()\n\n    async def _get",
            "        self._items.append(item)\n\n    async def _get",
        ),
    ),
    _bug(
        "a put that was let go does not keep its place",
        (_QUEUE, "                    self._promised_places += 1\n", "                    pass\n"),
        (
            _QUEUE,
            ("        self._puts.remove(put)\n        self._promised_places -= 1\n"),
            "        self._puts.remove(put)\n",
        ),
        (
            _QUEUE,
            ("                self._promised_places -= 1\n                self._promise_places()\n            raise"),
            ("                self._promise_places()\n            raise"),
        ),
    ),
    _bug(
        "a get that was let go does not keep its item",
        (_QUEUE, "                self._promised_items += 1\n", "                pass\n"),
        (_QUEUE, ("            raise\n        self._promised_items -= 1\n"), "            raise\n"),
        (
            _QUEUE,
            ("                self._promised_items -= 1\n                self._promise_items()\n            elif"),
            ("                self._promise_items()\n            elif"),
        ),
    ),
    _bug(
        "who is cancelled as a cut ends is not owed a run",
        (
            _CORE,
            ("            self._owed.add(waiter)\n            if not waiter.done():"),
            (
                "            if not waiter.done():\n"
                "                self._owed.add(waiter)\n"
                "            if not waiter.done():"
            ),
        ),
    ),
    _bug(
        "what is leased is not saved",
        (_WORK_QUEUE, "sorted([*entries[:count], *self._leased.values()]", "sorted([*entries[:count]]"),
    ),
    _bug(
        "the block of a lease counts as running",
        (_WORK_QUEUE, ('        me.cut.rest(me, "lease")\n        return entry, me'), "        return entry, me"),
    ),
    _bug(
        "a lease is completed during a cut",
        (_WORK_QUEUE, "        await me.run_again()\n", "        me.cut.let_run(me)\n"),
    ),
    _bug(
        "a lease is completed before its result is handed over",
        (
            _WORK_QUEUE,
            (
                "        was_running = me.is_running\n"
                "        await me.run_again()\n"
                "        self._rests_again = not was_running\n"
                "        self._is_open = False\n"
                "        self._work._hand_over(self._entered())  # noqa: SLF001 - a part of it\n"
            ),
            (
                "        was_running = me.is_running\n"
                "        self._rests_again = not was_running\n"
                "        self._is_open = False\n"
                "        self._work._hand_over(self._entered())  # noqa: SLF001 - a part of it\n"
                "        await me.run_again()\n"
            ),
        ),
    ),
    _bug(
        "a lease whose result is withdrawn stays completed",
        (_QUEUE, "            completes.undo_handover()\n", "            completes.end_handover()\n"),
    ),
    _bug(
        "who leaves a lease does not wait for the release",
        (
            _PARTICIPANT,
            "        await self._resume(error)\n        if error is not None:\n",
            "        self.cut.let_run(self)\n        if error is not None:\n",
        ),
    ),
    _bug(
        "an item that was not completed is lost",
        (
            _WORK_QUEUE,
            ("                return\n        self._return(entry)\n"),
            ("                return\n        if error is None:\n            self._return(entry)\n"),
        ),
    ),
    _bug(
        "an item that comes back goes to the end",
        (_WORK_QUEUE, "lambda other: other.ordinal < entry.ordinal", "lambda other: other is not None"),
    ),
    _bug(
        "an item that comes back wakes nobody",
        (
            _QUEUE,
            ("        self._items.insert(index, item)\n        self._promise_items()\n"),
            "        self._items.insert(index, item)\n",
        ),
    ),
    _bug(
        "an item that is given up stays",
        (
            _WORK_QUEUE,
            ('{type(error).__name__}: {error}"))\n                return\n'),
            '{type(error).__name__}: {error}"))\n',
        ),
    ),
    _bug(
        "the low-water mark passes what is leased",
        (_WORK_QUEUE, "*self._leased, *self._handed_over]", "*self._handed_over]"),
    ),
    _bug(
        "the low-water mark passes what may be withdrawn",
        (_WORK_QUEUE, "*self._leased, *self._handed_over]", "*self._leased]"),
    ),
)
