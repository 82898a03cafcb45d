"""Nodes of JAX's pytrees: objects of classes that are registered with JAX, as the libraries for JAX define them.

1. The children of a node are saved. What else it has, its static data, is part of the program: a template has it.
2. A dataclass is saved by its fields, without the static ones, so that it may gain and lose fields as any dataclass.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from typing import Any, Final

import jax
from jax.tree_util import DictKey, GetAttrKey

from asyncckpt.errors import UnsupportedLeafError
from asyncckpt.state.families import dataclass_reduction
from asyncckpt.state.reduction import Reduction, type_name_of

_flatten: Final = jax.tree_util.default_registry.flatten_one_level_with_keys
if hasattr(jax.tree_util, "is_tree_node"):
    _is_node = jax.tree_util.is_tree_node
else:  # before 0.10
    _is_node = importlib.import_module("jax._src.tree_util")._registry.__contains__  # noqa: SLF001
_OWN: Final = ("builtins", "collections")
"""The modules of the classes that JAX registers itself, which need no reduction or cannot be made of their items."""


def node_reduction(cls: type, family: Reduction | None) -> Reduction | None:
    """Return the reduction of a class that is registered with JAX; see `Framework`."""
    if cls.__module__ in _OWN or not _is_node(cls):
        return None
    is_dataclass = family is not None and dataclasses.is_dataclass(cls)
    is_inherited = is_dataclass and "__dataclass_fields__" not in vars(cls)
    if family is None or (is_inherited and not dataclasses.fields(cls)):  # nnx.List has a base that is a dataclass
        return Reduction(type_name_of(cls), cls, _children, _plain, like=_like)
    static = _static_fields(cls) if is_dataclass else None
    return dataclass_reduction(cls, static) if static else None


def _static_fields(cls: Any) -> frozenset[str]:
    """Return the names of the fields of a dataclass that are no children; none if its children are no fields."""
    names = frozenset(field.name for field in dataclasses.fields(cls))
    with contextlib.suppress(Exception):  # a class may have a function of its own, which needs real contents
        sample = object.__new__(cls)
        for name in names:
            object.__setattr__(sample, name, None)
        pairs, rest = _flatten(sample)
        keys = [key for key, _ in pairs]
        if rest is not sample and all(type(key) is GetAttrKey and key.name in names for key in keys):
            return names - {key.name for key in keys}
    return frozenset()


def _children(node: Any) -> Any:
    """Return the children of a node: a dict if they have names, else a tuple."""
    pairs, rest = _flatten(node)
    if rest is node:
        name = type_name_of(type(node))
        message = f"{name} is static data for JAX, which is not saved: leave it out, or use asyncckpt.register_type"
        raise UnsupportedLeafError(message, path="")
    pairs = list(pairs)
    names = {_name_of(key): child for key, child in pairs}
    return tuple(child for _, child in pairs) if None in names or len(names) < len(pairs) else names


def _name_of(key: Any) -> Any:
    if type(key) is GetAttrKey:
        return key.name
    return key.key if type(key) is DictKey else None


def _plain(state: Any) -> Any:
    return state


def _like(template: Any, state: Any) -> Any:
    """Make a node like a template, of its children."""
    names = _children(template)
    children = [state[name] for name in names] if type(names) is dict else state
    structure = jax.tree.structure(template, is_leaf=lambda each: each is not template)
    return jax.tree.unflatten(structure, children)
