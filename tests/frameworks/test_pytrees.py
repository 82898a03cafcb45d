"""Nodes of JAX's pytrees in a state: those of optax, flax and equinox, and those that a program registers itself."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from asyncckpt import CheckpointManager, StateMismatchError, UnsupportedLeafError, register_type

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

jax = pytest.importorskip("jax")
jnp = jax.numpy
jnp.zeros(()).block_until_ready()  # the first array starts threads
PARAMS = {"dense": {"kernel": jnp.ones((3, 4)), "bias": jnp.zeros(4)}, "out": {"kernel": jnp.ones((4, 2))}}


def assert_equal(found: Any, expected: Any) -> None:
    """Compare the leaves of states bit for bit, and their paths."""
    pairs = [jax.tree_util.tree_leaves_with_path(state) for state in (found, expected)]
    for (path, one), (other_path, other) in zip(*pairs, strict=True):
        assert path == other_path
        assert (type(one), one.dtype, one.shape) == (type(other), other.dtype, other.shape)
        assert getattr(one, "weak_type", None) == getattr(other, "weak_type", None)
        if jnp.issubdtype(other.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)  # noqa: PLW2901
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


async def check_template(directory: Path, state: Any, template: Any) -> Any:
    """Save a state, and load it like a template, whose structure it then has."""
    async with CheckpointManager(directory) as manager:
        await (await manager.save(1, state))
        found = (await manager.load(1, like=template)).state
    assert jax.tree.structure(found) == jax.tree.structure(template)
    assert_equal(found, state)
    return found


@jax.tree_util.register_pytree_with_keys_class
class Named:
    """Has children with names, and static data."""

    def __init__(self, left: Any, right: Any, static: object) -> None:
        self.left, self.right, self.static = left, right, static

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Flatten."""
        key = jax.tree_util.GetAttrKey
        return ((key("left"), self.left), (key("right"), self.right)), self.static

    @classmethod
    def tree_unflatten(cls, static: Any, children: Any) -> Named:
        """Unflatten."""
        return cls(*children, static)


@jax.tree_util.register_pytree_node_class
class Unnamed(Named):
    """Has children without names."""

    def tree_flatten(self) -> tuple[Any, Any]:
        """Flatten."""
        return (self.left, self.right), self.static


@jax.tree_util.register_static
class Static:
    """All of it is static."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Fields:
    """A dataclass with a static field that cannot be saved, and one that did not exist before."""

    weights: Any
    function: Callable[..., Any] = dataclasses.field(metadata={"static": True})
    gained: Any = 5


@pytest.mark.parametrize("cls", [Named, Unnamed])
async def test_children_are_saved_and_static_data_is_the_templates(tmp_path: Path, cls: type[Named]) -> None:
    """The node comes back as itself like a template, and as plain data without one."""
    state = {"node": cls({"a": jnp.arange(3)}, jnp.ones(2), static=min)}
    template = {"node": cls({"a": jnp.zeros(3, "int32")}, jnp.zeros(2), static=max)}
    found = await check_template(tmp_path, state, template)
    assert type(found["node"]) is cls
    assert found["node"].static is max
    async with CheckpointManager(tmp_path) as manager:
        with pytest.warns(UserWarning, match=rf"node was saved as .*{cls.__name__}"):
            plain = (await manager.load(1)).state["node"]
        children = list(plain.values()) if cls is Named else list(plain)
        assert_equal(children, [state["node"].left, state["node"].right])
        with pytest.raises(StateMismatchError, match=r"node: Named would be replaced|node: Unnamed would be replaced"):
            await manager.restore(1, into=template)
        template["node"].left = {"a": jnp.zeros(4, "int32")}
        with pytest.raises(StateMismatchError, match=r"^step 1: node/(left|0)/a: shape differs"):
            await manager.load(1, like=template)


async def test_static_data_is_not_dropped_if_it_is_all(tmp_path: Path) -> None:
    """Such an object would come back empty, so it is refused."""
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(UnsupportedLeafError, match=r"^step 1: a: .*Static is static data for JAX"):
            await manager.save(1, {"a": Static()})


@pytest.mark.parametrize("register", [jax.tree_util.register_dataclass, jax.tree_util.register_static])
async def test_dataclasses_without_fields_stay_where_they_are(tmp_path: Path, register: Any) -> None:
    """There is nothing to save of them, and `restore` has nothing to replace."""
    empty = register(dataclasses.make_dataclass("Empty", []))
    held = empty()
    into = {"empty": held}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"empty": empty()}))
        assert type((await manager.load(1, like=into)).state["empty"]) is empty
        await manager.restore(1, into=into)
        assert into["empty"] is held


async def test_a_dataclass_keeps_the_static_fields_of_the_template(tmp_path: Path) -> None:
    """Also of a state that is filled in place."""
    state, template = (
        {"a": Fields(jnp.ones(2), min, jnp.arange(3))},
        {"a": Fields(jnp.zeros(2), max, jnp.arange(3) * 0)},
    )
    assert (await check_template(tmp_path, state, template))["a"].function is max
    held = template["a"]
    async with CheckpointManager(tmp_path) as manager:
        await manager.restore(1, into=template)
    assert template["a"] is held
    assert held.function is max
    assert_equal(template, {"a": Fields(jnp.ones(2), max, jnp.arange(3))})


def made_class(*, is_node: bool) -> Any:
    """Make a dataclass with a static field; it has the same name, whether it is registered with JAX or not."""

    @dataclasses.dataclass
    class Some:
        weights: Any
        name: Any = dataclasses.field(metadata={"static": True})

    return jax.tree_util.register_dataclass(Some) if is_node else Some


async def test_a_registered_dataclass_keeps_all_its_fields(tmp_path: Path) -> None:
    """`register_type` says that a file has all there is, also what is static for JAX."""
    cls = register_type(made_class(is_node=True), name="tests.frameworks.registered")
    template = {"a": cls(jnp.zeros(2), "template")}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": cls(jnp.ones(2), "saved")}))
        for found in ((await manager.load(1)).state, (await manager.load(1, like=template)).state):
            assert type(found["a"]) is cls
            assert found["a"].name == "saved"
        await manager.restore(1, into=template)
        assert template["a"].name == "saved"


async def test_static_fields_that_a_file_has_come_back(tmp_path: Path) -> None:
    """As they were saved, before the class was registered with JAX."""
    cls = made_class(is_node=True)
    template = {"a": cls(jnp.zeros(2), "template")}
    async with CheckpointManager(tmp_path) as manager:
        await (await manager.save(1, {"a": made_class(is_node=False)(jnp.ones(2), "saved")}))
        found = (await manager.load(1, like=template)).state
        assert type(found["a"]) is cls
        assert found["a"].name == "saved"
        await manager.restore(1, into=template)
        assert template["a"].name == "saved"
        await (await manager.save(2, {"a": cls(jnp.ones(2), "saved")}))
        template["a"].name = "template"
        assert (await manager.load(2, like=template)).state["a"].name == "template"


@pytest.mark.parametrize(
    "name", ["adamw", "chain", "multi_transform", "masked", "inject_hyperparams", "MultiSteps", "add_noise"]
)
async def test_states_of_optax(tmp_path: Path, name: str) -> None:
    """After an update, like the state of a new optimizer, like its shapes, and into it."""
    optax = pytest.importorskip("optax")
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1e-3, 10, 100)
    optimizer = {
        "adamw": lambda: optax.adamw(schedule),
        "chain": lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule), optax.ema(0.9)),
        "multi_transform": lambda: optax.multi_transform(
            {"a": optax.adam(1e-3), "b": optax.set_to_zero()}, {"dense": "a", "out": "b"}
        ),
        "masked": lambda: optax.masked(optax.adamw(1e-3), {"dense": True, "out": {"kernel": False}}),
        "inject_hyperparams": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=schedule, weight_decay=0.1),
        "MultiSteps": lambda: optax.MultiSteps(optax.adam(1e-3), 2),
        "add_noise": lambda: optax.add_noise(0.1, 0.9, key=jax.random.key(3)),
    }[name]()
    fresh = {"params": PARAMS, "optimizer": optimizer.init(PARAMS)}
    _, trained = jax.jit(optimizer.update)(jax.tree.map(jnp.ones_like, PARAMS), fresh["optimizer"], PARAMS)
    state = {"params": jax.tree.map(lambda each: each * 2, PARAMS), "optimizer": trained}
    await check_template(tmp_path, state, fresh)
    await check_template(tmp_path / "shapes", state, jax.eval_shape(lambda: fresh))
    async with CheckpointManager(tmp_path) as manager:
        await manager.restore(1, into=fresh)
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    assert_equal(fresh, state)


async def test_a_train_state_of_flax(tmp_path: Path) -> None:
    """Its functions are the template's; the number of its first step fits the array of a later one."""
    pytest.importorskip("flax")
    optax = pytest.importorskip("optax")
    from flax.training.train_state import TrainState

    def made(seed: int) -> Any:
        params = {"w": jax.random.normal(jax.random.key(seed), (3, 4))}
        return TrainState.create(apply_fn=len, params=params, tx=optax.adamw(1e-3))

    step = jax.jit(lambda state: state.apply_gradients(grads=jax.tree.map(jnp.ones_like, state.params)))
    trained, template = step(step(made(1))), made(2)
    assert type(template.step) is int
    found = await check_template(tmp_path, {"state": trained}, {"state": template})
    assert found["state"].tx is template.tx
    assert_equal(step(found["state"]), step(trained))
    into = {"state": template}
    async with CheckpointManager(tmp_path) as manager:
        await manager.restore(1, into=into)
        assert_equal(into["state"], trained)
        await check_template(tmp_path / "shapes", {"state": trained}, {"state": jax.eval_shape(lambda: template)})
        with pytest.raises(StateMismatchError, match=r"^step 1: state/step: type differs"):
            await manager.load(1, like={"state": template.replace(step=0.0)})
        await (await manager.save(2, {"state": template}))
        for like in ({"state": trained}, {"state": jax.eval_shape(lambda: template)}):
            found = (await manager.load(2, like=like)).state
            assert found["state"].step == 0
            assert_equal(step(found["state"]), step(template))
        into = {"state": trained}
        await manager.restore(2, into=into)
        assert_equal(step(into["state"]), step(template))


@pytest.mark.parametrize("make", [lambda number: number, lambda number: [number] * 20])
async def test_a_number_fits_the_scalar_array_that_it_becomes(tmp_path: Path, make: Callable[[Any], Any]) -> None:
    """Of its own kind; it comes back as it was saved, without a loss of bits."""
    async with CheckpointManager(tmp_path) as manager:
        for number, fitting, others in (
            (2**40, jnp.int32(3), (jnp.float32(3), jnp.ones(1, "int32"), np.int32(3), np.array(3), jax.random.key(1))),
            (0.1, jnp.float32(3), (jnp.int32(3), jnp.ones(1), np.float32(3), np.array(3.0), jnp.zeros((), bool))),
        ):
            state = {"a": make(number)}
            await (await manager.save(1, state, overwrite=True))
            for like in ({"a": make(fitting)}, jax.eval_shape(lambda fits=fitting: {"a": make(fits)})):
                found = (await manager.load(1, like=like)).state
                assert found == state
                await manager.restore(1, into=like)
                assert like == state
            for other in others:
                with pytest.raises(StateMismatchError, match=r"^step 1: a(/0)?: type differs"):
                    await manager.load(1, like={"a": make(other)})


async def test_states_of_flax(tmp_path: Path) -> None:
    """A frozen dict, and the states of modules of nnx, which nnx.update puts into a module."""
    nnx = pytest.importorskip("flax.nnx")
    from flax.core import FrozenDict

    def made(seed: int) -> Any:
        rngs = nnx.Rngs(seed)
        return nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs), nnx.Dropout(0.1, rngs=rngs))

    model, other = made(1), made(2)
    frozen = FrozenDict({"a": {"b": jnp.arange(3)}})
    state = {"model": nnx.state(model), "frozen": frozen}
    template = {"model": nnx.state(other), "frozen": jax.tree.map(jnp.zeros_like, frozen)}
    found = await check_template(tmp_path, state, template)
    nnx.update(other, found["model"])
    assert_equal(nnx.state(other), nnx.state(model))
    assert type(found["frozen"]) is FrozenDict


async def test_modules_of_nnx(tmp_path: Path) -> None:
    """They are nodes, too, also those with lists of modules, which have a base that is a dataclass without fields."""
    nnx = pytest.importorskip("flax.nnx")

    def made(seed: int, count: int = 2) -> Any:
        return nnx.Sequential(*[nnx.Linear(3, 3, rngs=nnx.Rngs(seed + each)) for each in range(count)])

    model = made(1)
    found = await check_template(tmp_path, {"model": model}, {"model": made(2)})
    assert np.array_equal(found["model"](jnp.ones(3)), model(jnp.ones(3)))
    async with CheckpointManager(tmp_path) as manager:
        with pytest.raises(StateMismatchError, match=r"^step 1: model/layers: length differs"):
            await manager.load(1, like={"model": made(2, count=3)})


async def test_a_model_of_equinox(tmp_path: Path) -> None:
    """Its functions are left out, as the error says, and put back with equinox.combine."""
    equinox = pytest.importorskip("equinox")

    def made(seed: int) -> Any:
        return equinox.nn.MLP(2, 3, 8, depth=2, activation=jnp.tanh, key=jax.random.key(seed))

    model, other = made(1), made(2)
    async with CheckpointManager(tmp_path) as manager:
        for bad in (model, equinox.nn.Lambda(lambda x: x)):
            with pytest.raises(UnsupportedLeafError, match=r"model/\w+: .*no code: .*equinox\.filter\(model"):
                await manager.save(0, {"model": bad})
    arrays, _ = equinox.partition(model, equinox.is_array)
    template, rest = equinox.partition(other, equinox.is_array)
    found = await check_template(tmp_path, {"model": arrays}, {"model": template})
    loaded = equinox.combine(found["model"], rest)
    assert np.array_equal(loaded(jnp.ones(2)), model(jnp.ones(2)))
