"""Short fits with the real Lightning Trainer: zeros stay, runs resume, masks settle."""

import importlib
import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from espalier import EspalierError, Masks, prune
from espalier.callbacks._watching import Action
from espalier.callbacks.lightning import HoldMasks, Prune, WatchMask
from espalier.methods import ST3, Gradual, OneShot, RigL, TargetGRDA, Threshold
from espalier.optim import GRDA, DualAveraging, PowerLaw, Settled, TargetSparsity
from espalier.scores import SNIP

pytestmark = [  # all of Lightning's own making
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.:FutureWarning"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
BATCHES = 8


class Network(LightningModule):
    """Two linear layers; 100 weights in all."""

    def __init__(self, make=None, manual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 4))
        self.make = make or (lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1))
        self.automatic_optimization = not manual
        self.moving_zeros: list[int] = []

    def training_step(self, batch, index):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            assert not isinstance(optimizer, list)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_before_optimizer_step(self, optimizer) -> None:
        weight = self.net.get_parameter("0.weight")
        assert weight.grad is not None and weight.grad.any()
        self.moving_zeros.append(int(weight.grad[weight == 0].count_nonzero()))

    def configure_optimizers(self):
        return self.make(self.named_parameters())


def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(4 * BATCHES, 6, generator=g)
    return DataLoader(TensorDataset(x, x[:, :4].argmax(1)), batch_size=4)


def trainer(folder: Path, *callbacks, epochs: int = 2, **options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_checkpointing=saving,
        **{**quiet, **options},
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1}


def zeros(model: nn.Module) -> int:
    return sum(int((w == 0).sum()) for w in weights(model).values())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_masks_hold_under_the_optimizer_of_the_trainer(tmp_path: Path):
    model = Network()
    masks = prune(model.net, 0.7)
    before = weights(model)
    done = HoldMasks(masks, part="net")
    fit = trainer(tmp_path, done, gradient_clip_val=0.1)
    fit.fit(model, loader())
    assert done.masks is not None and done.masks.digest == masks.digest
    masks.verify(model.net)
    assert zeros(model) == 70
    assert not torch.equal(before["net.0.weight"], weights(model)["net.0.weight"])
    assert fit.callback_metrics["espalier/sparsity"] == pytest.approx(0.7)
    # before the trainer clips by norm, gradients are masked
    assert model.moving_zeros == [0] * (2 * BATCHES)
    assert not list(tmp_path.iterdir())


def test_no_masks_given_are_the_zeros_there_are(tmp_path: Path):
    model = Network()
    masks = prune(model.net, 0.5)
    held = HoldMasks()
    trainer(tmp_path, held, epochs=1).fit(model, loader())
    assert held.masks is not None and held.masks.sparsity == 0.5
    masks.verify(model.net)
    with pytest.raises(EspalierError, match="has no zeros to hold: prune it first"):
        trainer(tmp_path, HoldMasks(), epochs=1).fit(Network(), loader())


def test_nothing_is_left_on_module_and_optimizer_after_the_fit(tmp_path: Path):
    model = Network()
    prune(model.net, 0.5)
    fit = trainer(tmp_path, HoldMasks(), epochs=1)
    fit.fit(model, loader())
    optimizer = fit.optimizers[0]
    model.net(torch.ones(2, 6)).sum().backward()
    optimizer.step()
    assert zeros(model) < 50


def test_gradual_pruning_reaches_its_count_while_training(tmp_path: Path):
    seen = []

    class Look(Prune):
        def on_train_batch_end(self, trainer, pl_module, *rest) -> None:
            super().on_train_batch_end(trainer, pl_module, *rest)
            seen.append(zeros(pl_module))

    callback = Look(0.9, part="net")
    model = Network()
    trainer(tmp_path, callback, epochs=3).fit(model, loader())
    assert seen == sorted(seen) and len(set(seen)) > 10 and seen[0] > 0
    assert seen[-1] == zeros(model) == 90
    assert callback.masks is not None and callback.masks.kept == 10


@pytest.mark.parametrize("manual", [False, True])
def test_one_shot_in_both_ways_of_optimization(tmp_path: Path, manual: bool):
    model = Network(manual=manual)
    callback = Prune(0.8, OneShot(), exclude=["net.2.*"])
    trainer(tmp_path, callback, epochs=1).fit(model, loader())
    assert zeros(model) == 48 and callback.masks is not None
    callback.masks.verify(model)


def test_accumulated_gradients_are_one_step(tmp_path: Path):
    model = Network()
    callback = Prune(0.9, Gradual(updates=2, end=1.0))
    trainer(tmp_path, callback, accumulate_grad_batches=4, epochs=2).fit(model, loader())
    assert zeros(model) == 90


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path):
    straight = Network()
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, every_n_epochs=1)
    trainer(tmp_path, Prune(0.9), saving, epochs=4).fit(straight, loader())
    half = tmp_path / f"step={2 * BATCHES}.ckpt"
    stored = torch.load(half, weights_only=True)
    pruned = sum(int((v == 0).sum()) for k, v in stored["state_dict"].items() if v.ndim > 1)
    assert 60 < pruned < 90
    resumed, callback = Network(), Prune(0.9)
    trainer(tmp_path, callback, saving, epochs=4).fit(resumed, loader(), ckpt_path=half, weights_only=True)
    assert same(straight, resumed) and zeros(resumed) == 90
    # longer than planned: the ramp stays where it was, and the zeros stay after it
    longer, callback = Network(), Prune(0.9)
    last = tmp_path / f"step={4 * BATCHES}.ckpt"
    trainer(tmp_path, callback, saving, epochs=6).fit(longer, loader(), ckpt_path=last)
    assert zeros(longer) == 90 and not same(longer, straight)


def test_held_masks_survive_a_resume(tmp_path: Path):
    models = []
    masks = prune(Network().net, 0.7)
    for resume in (False, True):
        model = Network()
        saving = ModelCheckpoint(tmp_path, filename="half-{epoch}", save_top_k=-1)
        trainer(tmp_path, HoldMasks(masks, part="net"), saving, epochs=2).fit(
            model, loader(), ckpt_path=tmp_path / "half-epoch=0.ckpt" if resume else None
        )
        models.append(model)
    assert same(*models) and zeros(models[1]) == 70


def test_a_run_cut_short_says_how_far_it_came(tmp_path: Path):
    model = Network()
    callback = Prune(0.9, Gradual(begin=0.5))
    trainer(tmp_path, callback, epochs=4, max_steps=BATCHES).fit(model, loader())
    assert callback.masks is not None and zeros(model) == 90  # the trainer said how many steps
    callback = Prune(0.9, Gradual(begin=0.5))

    class Stop(ModelCheckpoint):
        def on_train_epoch_end(self, trainer, pl_module) -> None:
            trainer.should_stop = True

    model = Network()
    trainer(tmp_path, callback, Stop(tmp_path), epochs=4).fit(model, loader())
    assert callback.masks is not None and callback.masks.sparsity == 0 and zeros(model) == 0


def test_the_mask_of_the_optimizer_is_logged_and_frozen(tmp_path: Path):
    model = Network(lambda p: GRDA(p, lr=0.1, c=0.05, mu=0.6))
    watch = WatchMask(settled=0.5)
    fit = trainer(tmp_path, watch, epochs=3)
    fit.fit(model, loader())
    optimizer = fit.optimizers[0]
    assert isinstance(optimizer, DualAveraging) and optimizer.frozen
    metrics = {k: float(v) for k, v in fit.callback_metrics.items()}
    assert metrics["espalier/frozen"] == 1 and metrics["espalier/churn"] == 0
    assert metrics["espalier/sparsity"] == pytest.approx(zeros(model) / 100) and zeros(model) > 0
    assert {"espalier/regrown", "espalier/overlap"} <= set(metrics)
    assert watch.report is not None and set(watch.report.tensors) == {"net.0.weight", "net.2.weight"}


def test_training_stops_when_the_mask_has_settled(tmp_path: Path):
    model = Network(lambda p: DualAveraging(p, lr=0.05, law=TargetSparsity(0.8, steps=2 * BATCHES)))
    watch = WatchMask(settled=Settled(0.0, reports=2), then="stop")
    fit = trainer(tmp_path, watch, epochs=20)
    fit.fit(model, loader())
    # reached and frozen in the second epoch; two quiet epochs later it stops
    assert fit.current_epoch in (3, 4) and zeros(model) == 80


def test_the_optimizer_resumes_with_its_mask(tmp_path: Path):
    def network() -> Network:
        return Network(lambda p: DualAveraging(p, lr=0.05, law=TargetSparsity(0.8, steps=3 * BATCHES)))

    straight, resumed = network(), network()
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, WatchMask(), saving, epochs=4).fit(straight, loader())
    trainer(tmp_path, WatchMask(), saving, epochs=4).fit(
        resumed, loader(), ckpt_path=tmp_path / "epoch=1.ckpt", weights_only=True
    )
    assert same(straight, resumed) and zeros(resumed) == 80


def two(parameters) -> tuple[list[torch.optim.Optimizer], list[None]]:
    parameters = [p for _, p in parameters]
    return [torch.optim.SGD(parameters[:2], lr=0.1), torch.optim.SGD(parameters[2:], lr=0.1)], []


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Prune(0.9, TargetGRDA()), "TargetGRDA prunes by an optimizer of its own: .*DualAveraging"),
        (lambda: Prune(0.9, Threshold(PowerLaw(0.1, 0.6))), "Threshold prunes by an optimizer of its own"),
        (lambda: WatchMask(settled=2), r"`churn` of Settled is 2; it is a fraction"),
        (lambda: WatchMask(then=cast(Action, "end")), "`then` is 'freeze' or 'stop', got 'end'"),
    ],
)
def test_refused_when_made(make, match: str):
    with pytest.raises(EspalierError, match=match):
        make()


@pytest.mark.parametrize(
    ("callback", "make", "match"),
    [
        (Prune(), None, "give a sparsity in"),
        (Prune(0.9, ST3()), None, r"ST3 changes more of a run than a callback can \(weights.*espalier\.fit"),
        (Prune(0.9, part="nett"), None, r"has no part 'nett'\. Did you mean 'net'"),
        (Prune(0.9), two, "pruning follows one optimizer, the trainer has 2"),
        (
            HoldMasks(Masks({"0.weight": torch.ones(10, 6, dtype=torch.bool)})),
            None,
            r"no parameter '0\.weight' that a mask is for\. Its part 'net' has: give part='net'",
        ),
        (
            Prune(0.5, OneShot(SNIP())),
            None,
            "needs training data, which a callback does not have: prune before",
        ),
        (HoldMasks(Masks({"net.0.wait": torch.ones(1).bool()})), None, "Did you mean 'net.0.weight'"),
        (WatchMask(), None, "watches one optimizer of espalier.optim .*, the trainer has AdamW"),
        (
            WatchMask(settled=0.1),
            lambda p: DualAveraging(p, 0.1, law=TargetSparsity(0.5, steps=3)),
            "TargetSparsity freezes by itself at its end",
        ),
    ],
)
def test_refused_before_the_first_step(callback, make, match: str, tmp_path: Path):
    model = Network(make, manual=make is two)
    before = weights(model)
    with pytest.raises(EspalierError, match=match):
        trainer(tmp_path, callback, epochs=1).fit(model, loader())
    assert all(torch.equal(before[name], w) for name, w in weights(model).items())


def test_drop_and_grow_sees_dense_gradients(tmp_path: Path):
    model = Network()
    callback = Prune(0.7, RigL(), part="net")
    trainer(tmp_path, callback, epochs=4).fit(model, loader())
    assert callback.masks is not None and zeros(model) == 70 and max(model.moving_zeros) > 0


def test_two_prunings_of_different_parts(tmp_path: Path):
    model, parts = Network(), (Prune(0.9, part="net.0"), Prune(0.5, part="net.2"))
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(tmp_path, *parts, saving, epochs=2).fit(model, loader())
    assert [int((w == 0).sum()) for w in weights(model).values()] == [54, 20]
    resumed, parts = Network(), (Prune(0.9, part="net.0"), Prune(0.5, part="net.2"))
    trainer(tmp_path, *parts, saving, epochs=2).fit(resumed, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert same(model, resumed)


def test_an_endless_run_has_no_ramp(tmp_path: Path):
    with pytest.raises(EspalierError, match="needs to know the end of the run"):
        trainer(tmp_path, Prune(0.9), epochs=-1).fit(Network(), loader())


def test_without_lightning_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    for name in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "espalier.callbacks.lightning")
    match = r"callbacks\.lightning needs lightning: pip install 'espalier\[lightning\]'"
    with pytest.raises(EspalierError, match=match):
        importlib.import_module("espalier.callbacks.lightning")
