from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_type

import numpy as np

import asyncckpt

if TYPE_CHECKING:
    from collections.abc import MutableMapping


def script(chk: asyncckpt.Checkpointer) -> None:
    mapping: MutableMapping[Any, Any] = chk
    mapping["a"] = np.zeros(3)
    with chk as opened:
        assert_type(opened, asyncckpt.Checkpointer)
        opened["a", "b"] = 1
        assert_type(opened.flush(), None)
        keys: list[str] = list(opened)
        assert_type(keys, list[str])
    with asyncckpt.JSONCheckpointer("x.json") as json:
        assert_type(json, asyncckpt.JSONCheckpointer)
    assert_type(asyncckpt.Checkpointer.from_file("x.h5"), asyncckpt.Checkpointer)
    assert_type(asyncckpt.Checkpointer.build_canonical(None), asyncckpt.Checkpointer)


async def loop(chk: asyncckpt.Checkpointer) -> None:
    async with chk as view:
        assert_type(view, asyncckpt.AsyncCheckpointer)
        view["a"] = 1
        assert_type(await view.save_parameter("b", 2), None)
        names: list[str] = await view.keys()
        assert_type(names, list[str])
        assert_type("a" in view, bool)
