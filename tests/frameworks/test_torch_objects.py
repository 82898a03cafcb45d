"""The state dicts of modules, optimizers, schedulers and the like, as they come; random generators, small objects."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING, Any

import pytest
from helpers.support import FORMATS, load_from, save_to
from helpers.tensors import IGNORED, assert_equal, torch

from asyncckpt import CheckpointError, StateMismatchError
from asyncckpt.state import types
from asyncckpt.state.reduction import Reduction

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

optim, schedules = torch.optim, torch.optim.lr_scheduler
parametrizations, averages = torch.nn.utils.parametrizations, torch.optim.swa_utils
pytestmark = [IGNORED, pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")]


class Warmup:
    """A schedule with attributes, which the state of its scheduler contains."""

    def __init__(self) -> None:
        self.scale = 2.0

    def __call__(self, step: int) -> float:
        """Return a rate."""
        return self.scale * 0.5**step


class Counting(torch.nn.Module):
    """A module with state that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.register_buffer("passing", torch.ones(2), persistent=False)

    def forward(self, batch: Any) -> Any:
        """Count."""
        self.count += 1
        return batch

    def get_extra_state(self) -> Any:
        """Return what `state_dict()` contains besides tensors."""
        return {"count": self.count, "tensor": torch.tensor(self.count), "tuple": (1, "a")}

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        self.count = state["count"]


class CountingInTensor(Counting):
    """One whose state is a tensor alone."""

    def get_extra_state(self) -> Any:
        """Return a tensor."""
        return torch.tensor(self.count)

    def set_extra_state(self, state: Any) -> None:
        """Take it back."""
        self.count = int(state)


def sgd() -> Any:
    """Make an optimizer."""
    return optim.SGD([torch.nn.Parameter(torch.ones(3, 3))], lr=0.1, momentum=0.9)


def tied() -> Any:
    """Make a module two of whose modules share a parameter."""
    model = torch.nn.ModuleDict({"embed": torch.nn.Embedding(5, 3), "head": torch.nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["embed"].weight
    return model


def convolution() -> Any:
    """Make a module with running averages and strided weights."""
    layers = (torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    return torch.nn.Sequential(*layers).to(memory_format=torch.channels_last)


def optimizer(cls: Any, **options: Any) -> Callable[[], Any]:
    """Return a function that makes an optimizer with two groups."""

    def make() -> Any:
        model = torch.nn.Linear(4, 4)
        groups: Any = [{"params": [model.weight], "name": "w"}, {"params": [model.bias], "lr": 0.3}]
        if cls.__name__ == "Muon":
            groups = [model.weight]  # it takes matrices only
        if cls.__name__ in ("LBFGS", "SparseAdam"):
            groups = list(model.parameters())
        made = cls(groups, **{"lr": 0.01, **options})
        made.model = model
        return made

    return make


def sequence() -> Any:
    """Make a scheduler of schedulers."""
    own = sgd()
    return schedules.SequentialLR(own, [schedules.LinearLR(own), schedules.MultiStepLR(own, [1, 2, 2])], [2])


MODULES: dict[str, Callable[[], Any]] = {
    "tied": tied,
    "batch norm": convolution,
    "recurrent": lambda: torch.nn.LSTM(2, 3),
    "extra state": Counting,
    "extra state in a tensor": CountingInTensor,
    "average": lambda: averages.AveragedModel(
        convolution(), multi_avg_fn=averages.get_ema_multi_avg_fn(0.9), use_buffers=True
    ),
    "weight norm": lambda: parametrizations.weight_norm(torch.nn.Linear(2, 3)),
    "old weight norm": lambda: torch.nn.utils.weight_norm(torch.nn.Linear(2, 3)),
    "orthogonal": lambda: parametrizations.orthogonal(torch.nn.Linear(3, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(torch.nn.Linear(3, 3)),
    "compiled": lambda: torch.compile(torch.nn.Linear(3, 3)),
    "parallel": lambda: torch.nn.DataParallel(torch.nn.Linear(3, 3)),
    "parameters": lambda: torch.nn.ParameterDict({"a": torch.ones(2), "b": torch.nn.Parameter(torch.ones(()))}),
}
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    name: optimizer(cls)
    for name, cls in vars(optim).items()
    if isinstance(cls, type) and issubclass(cls, optim.Optimizer) and cls is not optim.Optimizer
} | {
    "AdamW fused": optimizer(optim.AdamW, fused=True),
    "AdamW foreach": optimizer(optim.AdamW, foreach=True),
    "AdamW amsgrad": optimizer(optim.AdamW, amsgrad=True),
    "AdamW with a tensor as its rate": optimizer(optim.AdamW, lr=torch.tensor(0.01), foreach=False),
    "SGD with momentum": optimizer(optim.SGD, momentum=0.9, nesterov=True),
    "SGD fused": optimizer(optim.SGD, momentum=0.9, fused=True),
}
SCHEDULERS: dict[str, Callable[[], Any]] = {
    "LambdaLR": lambda: schedules.LambdaLR(sgd(), lambda step: 0.5**step),
    "LambdaLR of an object": lambda: schedules.LambdaLR(sgd(), Warmup()),
    "MultiplicativeLR": lambda: schedules.MultiplicativeLR(sgd(), lambda _: 0.5),
    "StepLR": lambda: schedules.StepLR(sgd(), 2),
    "MultiStepLR": lambda: schedules.MultiStepLR(sgd(), [1, 2, 2]),
    "CosineAnnealingLR": lambda: schedules.CosineAnnealingLR(sgd(), 5),
    "CosineAnnealingWarmRestarts": lambda: schedules.CosineAnnealingWarmRestarts(sgd(), 5),
    "OneCycleLR": lambda: schedules.OneCycleLR(sgd(), 0.1, 10),
    "CyclicLR": lambda: schedules.CyclicLR(sgd(), 0.1, 0.2, mode="exp_range"),
    "CyclicLR of an object": lambda: schedules.CyclicLR(sgd(), 0.1, 0.2, scale_fn=Warmup()),
    "ReduceLROnPlateau": lambda: schedules.ReduceLROnPlateau(sgd()),
    "SWALR": lambda: averages.SWALR(sgd(), 0.1),
    "SequentialLR": sequence,
    "GradScaler": lambda: torch.amp.GradScaler("cpu"),
}
MAKERS = MODULES | OPTIMIZERS | SCHEDULERS


def advance(thing: Any) -> None:
    """Change the state of what was made, as training does."""
    if isinstance(thing, averages.AveragedModel):
        thing.update_parameters(convolution())
    elif isinstance(thing, Counting):
        thing(1)
    elif isinstance(thing, torch.nn.Module):
        with torch.no_grad():
            for parameter in thing.parameters():
                parameter.add_(torch.randn_like(parameter))
        if type(thing) is torch.nn.Sequential:
            thing(torch.randn(2, 3, 5, 5))
    elif isinstance(thing, optim.Optimizer):
        for _ in range(3):
            _train(thing)
    elif isinstance(thing, schedules.LRScheduler):
        for _ in range(3):
            thing.optimizer.step()
            thing.step(*[0.5] * isinstance(thing, schedules.ReduceLROnPlateau))


def _train(made: Any) -> None:
    def loss() -> Any:
        made.zero_grad()
        found = made.model(torch.ones(2, 4)).square().sum()
        found.backward()
        if isinstance(made, optim.SparseAdam):
            for parameter in made.model.parameters():
                parameter.grad = parameter.grad.to_sparse()
        return found

    if not isinstance(made, optim.LBFGS):
        loss()
    made.step(loss if isinstance(made, optim.LBFGS) else None)


@pytest.mark.parametrize("name", MAKERS)
def test_state_dicts_come_back_as_they_came(tmp_path: Path, name: str) -> None:
    """By a plain load and `load_state_dict`, like a template, and in place; in both formats."""
    thing = MAKERS[name]()
    advance(thing)
    state = thing.state_dict()
    for step, form in enumerate(FORMATS):
        save_to(tmp_path, step, {"a": state}, form=form)
        found = load_from(tmp_path, step)["a"]
        assert_equal(found, state)
        other = MAKERS[name]()
        other.load_state_dict(found)
        assert_equal(other.state_dict(), state)
        assert_equal(load_from(tmp_path, step, template={"a": state})["a"], state)
        other = MAKERS[name]()
        advance(other)  # so that its state has as much in it
        filled = {"a": other.state_dict()}
        assert load_from(tmp_path, step, template=filled, in_place=True) is filled
        assert_equal(filled["a"], state)
        if name in MODULES and not isinstance(other, Counting):
            assert_equal(other.state_dict(), state)  # the module itself was filled


def test_metadata_comes_back(tmp_path: Path) -> None:
    """Without it, BatchNorm takes a state without `num_batches_tracked` for one of an old version, and makes it up."""
    save_to(tmp_path, 1, torch.nn.BatchNorm1d(3).state_dict())
    found = load_from(tmp_path, 1)
    assert found._metadata[""]["version"] == 2
    del found["num_batches_tracked"]
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        torch.nn.BatchNorm1d(3).load_state_dict(found)
    plain = OrderedDict(found)
    torch.nn.BatchNorm1d(3).load_state_dict(plain)


@pytest.mark.parametrize("form", FORMATS)
def test_counters_come_back(tmp_path: Path, form: str) -> None:
    """The state of MultiStepLR has one, which it asks for numbers that it lacks."""
    state = {"c": Counter({3: 2, "a": 1, (1, 2): -4}), "empty": Counter()}
    save_to(tmp_path, 1, state, form=form)
    found = load_from(tmp_path, 1)
    assert (type(found["c"]), list(found["c"].items())) == (Counter, list(state["c"].items()))
    assert found["empty"][7] == 0
    own = {"c": Counter(z=9), "empty": Counter()}
    counter = own["c"]
    load_from(tmp_path, 1, template=own, in_place=True)
    assert own["c"] is counter == state["c"]
    plain = {"c": dict.fromkeys(state["c"]), "empty": {}}
    with pytest.raises(StateMismatchError, match=r"c/3: type differs: the template has NoneType"):
        load_from(tmp_path, 1, template=plain)
    assert type(load_from(tmp_path, 1, template={"c": dict(state["c"]), "empty": {}})["c"]) is dict


# --- random generators and small objects ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
def test_generators_go_on_where_they_were(tmp_path: Path, form: str) -> None:
    """The global one by its state, others as objects: loaded, like a template, or in place."""
    own = torch.Generator().manual_seed(3)
    torch.rand(5, generator=own)
    before = torch.get_rng_state()
    save_to(tmp_path, 1, {"global": before, "own": own}, form=form)
    expected = torch.rand(9, generator=own)
    found = load_from(tmp_path, 1)
    assert torch.equal(torch.rand(9, generator=found["own"]), expected)
    assert torch.equal(found["global"], before)
    torch.set_rng_state(found["global"])
    same = {"global": torch.get_rng_state(), "own": own}
    load_from(tmp_path, 1, template=same, in_place=True)
    assert same["own"] is own
    assert torch.equal(torch.rand(9, generator=own), expected)
    like = load_from(tmp_path, 1, template=same)["own"]
    assert like is not own
    assert torch.equal(torch.rand(9, generator=like), expected)


class Foreign:
    """An object that only another machine can have."""


@pytest.fixture
def save_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Any], None]:
    """Return a function that saves an object as another machine would, by the name of its type and its plain state."""

    def save(name: str, state: Any) -> None:
        reduction = Reduction(name, Foreign, lambda _: state, lambda _: None)
        monkeypatch.setitem(types._by_type, Foreign, reduction)
        save_to(tmp_path, 1, {"g": Foreign()})

    return save


def test_a_generator_of_another_device_is_named(tmp_path: Path, save_foreign: Callable[[str, Any], None]) -> None:
    """It cannot be made here, and none of another device can take over its state."""
    save_foreign("torch.Generator", {"device": "meta", "state": torch.Generator().get_state().numpy()})
    with pytest.raises(StateMismatchError, match=r"g: device differs: the template has cpu, the checkpoint has meta"):
        load_from(tmp_path, 1, template={"g": torch.Generator()}, in_place=True)
    with pytest.raises(CheckpointError, match=r"g: torch\.Generator could not be made from its state: .*META"):
        load_from(tmp_path, 1)


def test_an_unknown_dtype_is_named(tmp_path: Path, save_foreign: Callable[[str, Any], None]) -> None:
    """As one of a later release of PyTorch is."""
    save_foreign("torch.dtype", "float17")
    with pytest.raises(CheckpointError, match=r"g: torch\.dtype could not be made .*no dtype 'float17'"):
        load_from(tmp_path, 1)


@pytest.mark.parametrize("form", FORMATS)
def test_sizes_dtypes_and_devices_are_values(tmp_path: Path, form: str) -> None:
    """They come back as what they are, also as keys."""
    values = [torch.Size([]), torch.Size([2, 3]), torch.bfloat16, torch.bits8, torch.device("cuda:3")]
    values += [torch.device("meta"), torch.device("cpu")]
    state = {"values": values, "keys": dict.fromkeys(values, 1)}
    save_to(tmp_path, 1, state, form=form)
    assert_equal(load_from(tmp_path, 1), state)
    assert_equal(load_from(tmp_path, 1, template=state), state)
    own: dict[str, Any] = {"values": [torch.Size([7])] * 2 + [torch.int8] * 2 + [torch.device("cpu")] * 3}
    own["keys"] = dict.fromkeys(values, 0)
    load_from(tmp_path, 1, template=own, in_place=True)
    assert_equal(own, state)
