"""What every pruning method keeps: a new one is one line in METHODS."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError
from espalier.allocate import ERK, LAMP, Uniform, UniformPlus
from espalier.data import Dataset, Options, digits
from espalier.directional import DirectionalPruning
from espalier.masks import Masks
from espalier.methods import (
    ACDC,
    L0,
    LC,
    SET,
    ST3,
    STR,
    AbstractMethod,
    Dense,
    Fixed,
    Gradual,
    Iterative,
    MovementPruning,
    OneShot,
    Plan,
    RigL,
    TargetGRDA,
    Threshold,
    VariationalDropout,
)
from espalier.optim import Lasso, LinearLaw, PowerLaw
from espalier.scores import (
    OBD,
    SNIP,
    GraSP,
    HessianOBD,
    Random,
    Saliency,
    Sampling,
    SynFlow,
    WoodFisher,
)
from espalier.train import Epoch, History, Training, fit

METHODS: list[AbstractMethod] = [
    OneShot(),
    OneShot(Random(0), ERK()),
    OneShot(Saliency(sampling=Sampling(60, 20)), LAMP()),
    OneShot(SNIP()),
    OneShot(OBD(sampling=Sampling(20, 2))),
    OneShot(HessianOBD(sampling=Sampling(60, 20))),
    OneShot(WoodFisher(block=200, sampling=Sampling(60, 10))),
    OneShot(GraSP(sampling=Sampling(60, 60, batch_statistics=True, temperature=200.0)), rounds=2),
    OneShot(SynFlow(), rounds=20),
    Gradual(),
    Gradual(WoodFisher(block=200, sampling=Sampling(20, 10)), updates=4),
    MovementPruning(),
    MovementPruning(allocation=Uniform(), begin=0.0, end=0.6, updates=3),
    Gradual(allocation=UniformPlus()),  # Gale's "magnitude v2"
    Gradual(allocation=ERK(), begin=0.2, end=0.7, updates=3),
    TargetGRDA(),
    TargetGRDA(rescale=True),
    TargetGRDA(end=0.5, begin=0.1, allocation=ERK(), decay="prox"),
    Threshold(PowerLaw(0.05, 0.5), paper=True, momentum=False),
    Threshold(LinearLaw(0.005)),
    Threshold(Lasso(0.001), settle=0.6),
    STR(),
    ST3(),
    ST3(settle=0.6, rescale=False),
    L0(),
    VariationalDropout(),
    SET(every=2),
    RigL(),
    ACDC(),
    Iterative(),
    Iterative("rate", to=0.3),
    LC(),
    DirectionalPruning(directions=3, examples=60, refresh=0.3),
]
SPARSITY = 0.83
TRAINING = Training(epochs=3, batch_size=50, lr=0.02, augment=False, seed=1)


def ids(method: AbstractMethod) -> str:
    return repr(method)[:60]


every_method = pytest.mark.parametrize("method", METHODS, ids=ids)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=200))


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(144, 16),
            nn.ReLU(),
            nn.Linear(16, 10),
        )


NAMES = ("0.weight", "4.weight", "6.weight")
ENTRIES = 36 + 144 * 16 + 160


def run(
    method: AbstractMethod, data: Dataset, folder: Path | None = None, **options
) -> tuple[nn.Module, History]:
    model = net()
    return model, fit(model, data, TRAINING, method=method, sparsity=SPARSITY, folder=folder, **options)


def zeros(model: nn.Module) -> int:
    parameters = dict(model.named_parameters())
    return sum(int((parameters[name] == 0).sum()) for name in NAMES)


@every_method
def test_exactly_the_zeros_asked_for(method: AbstractMethod, data: Dataset):
    model, history = run(method, data)
    assert zeros(model) == history.last.zeros == round(SPARSITY * ENTRIES)
    kept = {name: int((model.get_parameter(name) != 0).sum()) for name in NAMES}
    assert history.last.kept == kept and history.last.sparsity == history.last.zeros / ENTRIES
    assert history.last.train_loss is not None and torch.isfinite(torch.tensor(history.last.train_loss))


@every_method
def test_a_plain_network_comes_back(method: AbstractMethod, data: Dataset):
    model = net()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    keys = list(model.state_dict())
    fit(model, data, TRAINING, method=method, sparsity=SPARSITY)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert list(model.state_dict()) == keys
    assert all(not hooks for hooks in (model._forward_pre_hooks, model._load_state_dict_post_hooks))
    net().load_state_dict(copy.deepcopy(model).state_dict())


@every_method
@pytest.mark.parametrize("after", [0, 1, 2])
def test_resumed_ends_with_the_bits_of_the_uninterrupted(
    method: AbstractMethod, after: int, data: Dataset, tmp_path: Path
):
    class Stop(Exception):
        pass

    def stop(epoch: Epoch, _: nn.Module) -> None:
        if epoch.epoch == after:
            raise Stop

    whole, history = run(method, data)
    with pytest.raises(Stop):
        run(method, data, tmp_path, on_epoch=stop)
    model, resumed = run(method, data, tmp_path)
    assert resumed.resumed == after and resumed.epochs == history.epochs
    other = whole.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())


@every_method
def test_making_a_rule_changes_nothing(method: AbstractMethod):
    model, other = net(), net()
    method.rule(model, Plan(SPARSITY, NAMES, 12, TRAINING))
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


@every_method
def test_its_repr_names_it(method: AbstractMethod):
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.anything = 1  # type: ignore[attr-defined]
    assert " object at " not in repr(method)
    assert repr(method) == repr(copy.deepcopy(method))


@every_method
def test_on_epoch_sees_the_network_that_is_measured(method: AbstractMethod, data: Dataset):
    seen: list[int] = []
    _, history = run(method, data, on_epoch=lambda epoch, model: seen.append(zeros(model)))
    assert seen == [epoch.zeros for epoch in history.epochs]


def test_dense_is_training_without_a_method(data: Dataset):
    one, other = net(), net()
    fit(one, data, TRAINING, method=Dense())
    fit(other, data, TRAINING)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert zeros(one) == 0


def test_fixed_masks_are_a_method(data: Dataset):
    masks = Masks({name: tensor.detach() > 0 for name, tensor in net().named_parameters() if name in NAMES})
    one, other = net(), net()
    fit(one, data, TRAINING, method=Fixed(masks))
    fit(other, data, TRAINING, masks=masks)
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    masks.verify(one)


def test_gradual_follows_the_cubic_ramp(data: Dataset):
    _, history = run(Gradual(end=1.0), data)
    # 4 steps an epoch of 160 images at 50 a batch: a mask change at every step.
    for epoch in history.epochs[1:]:
        assert epoch.sparsity == pytest.approx(SPARSITY * (1 - (1 - epoch.epoch / 3) ** 3), abs=0.5 / ENTRIES)


def test_gradual_never_lets_a_weight_come_back(data: Dataset):
    _, history = run(Gradual(), data)
    for epoch in history.epochs[1:]:
        assert epoch.turnover is not None and epoch.turnover.regrown == 0


def test_turnover_by_hand(data: Dataset):
    kept: list[Tensor] = []

    def look(_: Epoch, model: nn.Module) -> None:
        kept.append(torch.cat([(p != 0).flatten() for n, p in model.named_parameters() if n in NAMES]))

    _, history = run(TargetGRDA(), data, on_epoch=look)
    assert history.before.turnover is None
    for before, after, epoch in zip(kept, kept[1:], history.epochs[1:]):
        assert epoch.turnover is not None
        assert epoch.turnover.pruned == int((before & ~after).sum())
        assert epoch.turnover.regrown == int((after & ~before).sum())
        assert epoch.turnover.churn == pytest.approx(int((before ^ after).sum()) / ENTRIES)
        assert epoch.turnover.overlap == pytest.approx(
            int((before & after).sum()) / int((before | after).sum())
        )


def test_target_grda_is_frozen_after_its_end(data: Dataset):
    _, history = run(TargetGRDA(end=0.66), data)
    last = history.last.turnover
    assert last is not None and last.churn == 0.0 and last.overlap == 1.0


def test_a_run_stops_once_its_zeros_have_settled(data: Dataset, tmp_path: Path):
    training = dataclasses.replace(TRAINING, epochs=6, stop_below=0.0)
    model = net()
    history = fit(model, data, training, method=Gradual(end=0.3), sparsity=SPARSITY, folder=tmp_path)
    assert history.last.epoch == 3 and zeros(model) == round(SPARSITY * ENTRIES)
    again = fit(net(), data, training, method=Gradual(end=0.3), sparsity=SPARSITY, folder=tmp_path)
    assert again.epochs == history.epochs and again.resumed == 3


def test_a_run_never_stops_before_its_sparsity_is_reached(data: Dataset):
    training = dataclasses.replace(TRAINING, epochs=4, stop_below=0.9)  # any churn counts as settled
    model = net()
    history = fit(model, data, training, method=Gradual(end=0.6), sparsity=SPARSITY)
    assert history.last.epoch == 3 and zeros(model) == round(SPARSITY * ENTRIES)


@pytest.mark.parametrize("method", [OneShot(), Gradual(), TargetGRDA()], ids=ids)
def test_a_sparsity_must_be_given(method: AbstractMethod, data: Dataset):
    with pytest.raises(EspalierError, match=r"must be told how far to prune: give a sparsity in \[0, 1\)"):
        fit(net(), data, TRAINING, method=method)


def test_refusals(data: Dataset):
    masks = Masks.from_zeros({"4.weight": torch.ones(16, 144)})
    with pytest.raises(EspalierError, match="masks and a method were given: give one of them"):
        fit(net(), data, TRAINING, masks=masks, method=OneShot())
    with pytest.raises(EspalierError, match="TargetGRDA brings its own optimizer: give none"):
        fit(
            net(),
            data,
            TRAINING,
            method=TargetGRDA(),
            sparsity=0.5,
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        )
    with pytest.raises(EspalierError, match=r"0 <= begin < end <= 1, got 0\.5 and 0\.5"):
        Gradual(begin=0.5, end=0.5)
    with pytest.raises(EspalierError, match=r"0 <= begin < end <= 1, got 0 and 1\.1"):
        TargetGRDA(end=1.1)
    with pytest.raises(EspalierError, match="`updates` counts changes of the mask, at least 1, got 0"):
        Gradual(updates=0)
    with pytest.raises(EspalierError, match=r"`settle` is a fraction of the run in \(0, 1\], got 0"):
        Threshold(Lasso(0.1), settle=0)
