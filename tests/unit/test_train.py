import copy
import itertools
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from espalier import EspalierError
from espalier.data import Dataset, Options, TensorSplit, digits
from espalier.masks import Masks
from espalier.methods import Gradual
from espalier.models import DigitsCNN
from espalier.optim import DualAveraging, PowerLaw
from espalier.scores import Saliency, Sampling
from espalier.train import Diverged, Epoch, History, Training, distillation, fit, state
from espalier.train.hardware import native_bf16, use_bf16, use_channels_last
from espalier.train.optimizers import build, rate
from espalier.train.state import LOG, STATE, digest_of, tensors_digest
from tests.conftest import two_processes

ONE = Training(epochs=1, batch_size=50, lr=0.05, augment=False)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits(Options(limit=200))


def net(seed: int = 0) -> nn.Sequential:
    """Batch norm and dropout, so that modes and random numbers matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(144, 10),
        )


def halved(model: nn.Module) -> Masks:
    weights = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    return Masks({n: w.abs() >= w.abs().flatten().median() for n, w in weights.items()})


def same(a: nn.Module, b: nn.Module) -> bool:
    return tensors_digest(a.state_dict()) == tensors_digest(b.state_dict())


def test_it_learns(data: Dataset):
    history = fit(net(), data, Training(epochs=4, batch_size=20, augment=False))
    assert history.before.train_loss is None and history.before.accuracy is not None
    assert history.last.accuracy is not None and history.last.accuracy > 0.8 > 0.4 > history.before.accuracy
    losses = [e.train_loss for e in history.epochs[1:]]
    assert all(a is not None and b is not None and b < a for a, b in itertools.pairwise(losses))
    assert [e.epoch for e in history.epochs] == [0, 1, 2, 3, 4]


def test_train_mode_in_the_epoch_and_every_mode_restored(data: Dataset):
    model = net().eval()
    model[3].train()
    seen = []
    model[1].register_forward_hook(lambda module, *_: seen.append(module.training))
    fit(model, data, ONE)
    assert set(seen) == {False, True} and sum(seen) == 4
    assert [m.training for m in model] == [False, False, False, True, False, False]
    assert model[1].num_batches_tracked == 4


def test_the_global_generator_is_left_alone_and_does_not_matter(data: Dataset):
    models = [net(), net()]
    for i, model in enumerate(models):
        torch.manual_seed(i)
        before = torch.get_rng_state()
        fit(model, data, ONE)
        assert torch.equal(torch.get_rng_state(), before)
    assert same(*models)
    other = net()
    fit(other, data, Training(epochs=1, batch_size=50, augment=False, seed=1))
    assert not same(other, models[0])


def test_fixed_masks_hold_and_cosine_stays_below_its_bound(data: Dataset):
    parent = net()
    model = copy.deepcopy(parent)
    masks = halved(model)
    history = fit(model, data, Training(epochs=2, batch_size=50), masks=masks, parent=parent)
    masks.verify(model)
    for epoch in history.epochs:
        assert epoch.zeros == masks.entries - masks.kept and epoch.sparsity == pytest.approx(masks.sparsity)
        assert epoch.cosine is not None and epoch.cosine_bound is not None
        assert epoch.cosine <= epoch.cosine_bound + 1e-9
        assert None not in (epoch.agreement, epoch.agreement_interval, epoch.divergence, epoch.logit_cosine)
    assert history.before.cosine == pytest.approx(history.before.cosine_bound)
    assert history.last.cosine is not None and history.before.cosine is not None
    assert history.last.cosine < history.before.cosine


def test_the_network_ends_in_the_ordinary_layout(data: Dataset):
    model = net()
    kernel = dict(model.named_parameters())["0.weight"]
    strides = []
    model[0].register_forward_pre_hook(lambda *_: strides.append(kernel.stride()))
    names = list(model.state_dict())
    parameters = list(model.parameters())
    fit(model, data, Training(epochs=1, batch_size=50, channels_last=True))
    assert set(strides) == {(9, 1, 3, 1)} and kernel.is_contiguous() and list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))


def test_label_free_training_reads_no_label(data: Dataset):
    assert isinstance(data.train, TensorSplit)
    parent = net()
    fit(parent, data, Training(epochs=4, batch_size=20, augment=False))
    unlabelled = TensorSplit("train", data.train.images, torch.full((2000,), -1), data.train.rows, 16.0)
    blind = Dataset("blind", unlabelled, unlabelled, data.test, data.classes, data.input_shape, "")
    training = Training(epochs=3, batch_size=20, augment=False, labels=False)
    model, sighted = copy.deepcopy(parent), copy.deepcopy(parent)
    history = fit(model, blind, training, masks=halved(parent), parent=parent, teacher=parent)
    assert history.last.accuracy is None and history.last.loss is None
    assert history.last.agreement is not None and history.before.agreement is not None
    assert history.last.agreement > max(0.8, history.before.agreement)
    fit(sighted, data, training, masks=halved(parent), teacher=parent)
    assert same(model, sighted)


def test_teacher_stays_as_it_is(data: Dataset):
    teacher = net(1).train()
    before = copy.deepcopy(teacher.state_dict())
    fit(net(), data, ONE, teacher=teacher)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    assert all(m.training for m in teacher.modules())


def test_distillation_by_hand():
    student, teacher, t = [0.0, 1.0], [2.0, 0.0], 4.0
    p, q = ([math.exp(v / t) for v in z] for z in (teacher, student))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    by_hand = t * t * sum(a * math.log(a / b) for a, b in zip(p, q))
    both = distillation(torch.tensor([student, teacher]), torch.tensor([teacher, teacher]), t)
    assert both.item() == pytest.approx(by_hand / 2, rel=1e-5)


def test_any_optimizer(data: Dataset):
    models = [net(), net(), net()]
    factory = partial(torch.optim.RMSprop, lr=0.01)
    fit(models[0], data, ONE, optimizer=factory)
    history = fit(models[1], data, ONE, optimizer=factory(models[1].parameters()))
    fit(models[2], data, ONE)
    assert same(models[0], models[1]) and not same(models[0], models[2])
    assert history.spec["given optimizer"].startswith("RMSprop [{'lr': 0.01")


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_built_in_optimizers(name):
    optimizer = build(Training(optimizer=name, lr=0.1, weight_decay=0.01), list(net().parameters()))
    assert type(optimizer).__name__.lower() == name
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"]) == (0.1, 0.01)


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1, 1, 1]),
        ("step", 0, [1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01]),
        ("cosine", 0, [0.5 * (1 + math.cos(math.pi * i / 8)) for i in range(8)]),
        ("garipov", 0, [1, 1, 1, 1, 1, 0.690625, 0.38125, 0.071875]),
        ("constant", 1, [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("cosine", 1, [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * i / 6)) for i in range(6))]),
    ],
)
def test_schedules(schedule, warmup: float, expected: list[float]):
    training = Training(epochs=4, schedule=schedule, warmup=warmup)
    assert [rate(training, step, 2) for step in range(8)] == pytest.approx(expected)


def test_milestones():
    training = Training(epochs=4, schedule="step", milestones=(0.25, 0.5, 0.875))
    expected = [1, 1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.001]
    assert [rate(training, step, 2) for step in range(8)] == pytest.approx(expected)


def test_learning_rate_ends_at_zero_and_is_logged(data: Dataset):
    history = fit(net(), data, Training(epochs=2, batch_size=50, lr=0.1))
    assert [e.lr for e in history.epochs] == pytest.approx([0.1, 0.05, 0.0])


def test_progress_and_on_epoch(data: Dataset):
    steps, epochs = [], []
    model = net()

    def seen(epoch: Epoch, network: nn.Module) -> None:
        assert network is model
        epochs.append(epoch.epoch)

    fit(model, data, Training(epochs=2, batch_size=80), progress=lambda *a: steps.append(a), on_epoch=seen)
    assert steps == [(i, 6, f"epoch {1 + (i - 1) // 3}/2") for i in range(1, 7)]
    assert epochs == [0, 1, 2]


def test_no_validation_split(data: Dataset):
    bare = digits(Options(validation=0, limit=50))
    history = fit(net(), bare, ONE, parent=net(1))
    assert history.last.accuracy is None and history.last.agreement is None
    assert history.last.cosine is not None


def test_hardware_decides():
    cpu = torch.device("cpu")
    assert use_bf16(Training(), cpu) == native_bf16(cpu)
    assert use_bf16(Training(precision="bf16"), cpu) and not use_bf16(Training(precision="fp32"), cpu)
    assert not native_bf16(torch.device("meta"))
    x = torch.rand(2, 1, 8, 8)
    assert use_channels_last(Training(), net(), x)
    assert not use_channels_last(Training(channels_last=False), net(), x)
    assert not use_channels_last(Training(), nn.Flatten(), x)


class Views(nn.Module):
    """As many networks do: a view after a convolution, which refuses channels-last activations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).view(len(x), -1))  # type: ignore[no-any-return]


def test_networks_with_views_keep_the_ordinary_layout(data: Dataset):
    model = Views()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        copy.deepcopy(model).to(memory_format=torch.channels_last)(torch.rand(2, 1, 8, 8))
    history = fit(model, data, ONE)
    assert history.spec["channels_last"] is False and history.last.accuracy is not None


def test_bf16_autocast_trains(data: Dataset):
    model = net()
    kinds: list[torch.dtype] = []
    model[5].register_forward_hook(lambda m, x, y: kinds.append(y.dtype) if m.training else None)
    history = fit(model, digits(Options(limit=40)), Training(batch_size=20, precision="bf16"))
    assert set(kinds) == {torch.bfloat16} and history.spec["bf16"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Resume


class Stop(Exception):
    pass


def stop_after(epoch: int):
    def on_epoch(record: Epoch, model: nn.Module) -> None:
        if record.epoch == epoch:
            raise Stop

    return on_epoch


LONG = Training(epochs=3, batch_size=40, lr=0.05)


def whole(data: Dataset, folder: Path | None = None, **arguments) -> tuple[nn.Module, History]:
    parent, model = net(), net()
    return model, fit(model, data, LONG, masks=halved(parent), parent=parent, folder=folder, **arguments)


def test_resume_ends_with_the_same_bits(data: Dataset, tmp_path: Path):
    model, history = whole(data)
    with pytest.raises(Stop):
        whole(data, tmp_path, on_epoch=stop_after(1))
    resumed, later = whole(data, tmp_path)
    assert same(model, resumed) and later == history and (later.resumed, history.resumed) == (1, 0)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1]["accuracy"] == history.last.accuracy and lines[-1]["cosine"] == history.last.cosine


def test_a_finished_run_returns_at_once(data: Dataset, tmp_path: Path):
    model, history = whole(data, tmp_path)
    before = (tmp_path / STATE).stat().st_mtime_ns

    def forbidden(*_: object) -> None:
        raise AssertionError("trained again")

    again, later = whole(data, tmp_path, progress=forbidden)
    assert same(model, again) and later == history and later.resumed == 3
    assert (tmp_path / STATE).stat().st_mtime_ns == before


def test_interrupt_leaves_the_last_epoch_and_a_usable_network(data: Dataset, tmp_path: Path):
    reference, _ = whole(data)
    model, parent = net().eval(), net()

    def press(done: int, total: int, note: str) -> None:
        if done == 8:  # in the middle of the second epoch
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, data, LONG, masks=halved(parent), parent=parent, folder=tmp_path, progress=press)
    assert not any(m.training for m in model.modules())
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOG, STATE]
    assert len((tmp_path / LOG).read_text().splitlines()) == 2
    resumed, history = whole(data, tmp_path)
    assert same(reference, resumed) and history.resumed == 1


KILLED = """
import os, signal, sys
import torch
from tests.unit.test_train import whole
from espalier.data import Options, digits

def on_epoch(record, model):
    if record.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
whole(digits(Options(limit=200)), sys.argv[1], on_epoch=on_epoch)
"""


def test_resume_after_kill_9_ends_with_the_same_bits(data: Dataset, tmp_path: Path):
    model, history = whole(data)
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment,
        cwd=root,
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed, later = whole(data, tmp_path)
    assert same(model, resumed) and later == history and later.resumed == 2


def test_another_run_in_the_folder_is_refused_naming_what_differs(data: Dataset, tmp_path: Path):
    fit(net(), data, ONE, folder=tmp_path)
    other = Training(epochs=2, batch_size=50, lr=0.1, augment=False)
    with pytest.raises(
        EspalierError, match=r"another run: epochs was .*; lr was .* and is 0\.1\. Use another"
    ):
        fit(net(), data, other, folder=tmp_path)
    with pytest.raises(EspalierError, match=r"weights at the start was .* and is "):
        fit(net(1), data, ONE, folder=tmp_path)
    with pytest.raises(EspalierError, match="masks was none and is "):
        fit(net(), data, ONE, folder=tmp_path, masks=halved(net()))
    with pytest.raises(EspalierError, match=r"data was digits .* and is digits "):
        fit(net(), digits(Options(limit=100)), ONE, folder=tmp_path)


def test_a_broken_state_is_named(data: Dataset, tmp_path: Path):
    (tmp_path / STATE).write_bytes(b"half a file")
    with pytest.raises(EspalierError, match=r"state\.pt cannot be read .* remove it to start again"):
        fit(net(), data, ONE, folder=tmp_path)


def test_a_full_disk_leaves_the_state_before(data: Dataset, tmp_path: Path):
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(record: Epoch, model: nn.Module) -> None:
        if record.epoch == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))

    try:
        with pytest.raises(EspalierError, match=r"state\.pt: the disk is full .* untouched"):
            whole(data, tmp_path, on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOG, STATE]
    resumed, history = whole(data, tmp_path)
    assert history.resumed == 1 and same(resumed, whole(data)[0])


def train_two(rank: int, folder: Path) -> None:
    data = digits(Options(limit=200))
    model, history = plain(data)
    assert history.spec["processes"] == 2
    normed = net()
    method = Gradual(score=Saliency(Sampling(40, 20)))  # scored in the middle of an epoch
    fit(normed, data, ONE, method=method, sparsity=0.5)
    tensors = model.state_dict() | {f"normed.{name}": tensor for name, tensor in normed.state_dict().items()}
    save_file(tensors, folder / f"{rank}.safetensors")


def plain(data: Dataset) -> tuple[nn.Module, History]:
    """No batch norm or dropout, which see only their process's part of a batch."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    # Sums of half batches are those of whole ones to the rounding: of fp32, wherever the test runs.
    return model, fit(model, data, replace(LONG, precision="fp32"), masks=halved(model))


def test_two_processes_train_the_same_network(data: Dataset, tmp_path: Path):
    model, _ = plain(data)
    two_processes(train_two, tmp_path)
    one, two = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert "normed.1.running_var" in one
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    for name, tensor in model.state_dict().items():
        assert torch.allclose(one[name], tensor, atol=1e-5), name


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As Accelerate's launcher sets mixed precision; it keeps that in a state that all of a process share."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield monkeypatch
    AcceleratorState._reset_state(reset_partial_state=True)


def test_mixed_precision_of_the_launcher_is_the_run_s_and_leaves_no_trace(
    data: Dataset, started: pytest.MonkeyPatch
):
    started.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    model, seen = net(), []
    model[5].register_forward_hook(lambda _, __, out: seen.append((torch.is_grad_enabled(), out.dtype)))
    history = fit(model, data, ONE)
    assert history.spec["bf16"] is True and "mixed_precision" not in history.spec
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}  # trained in bf16, measured as it is
    assert "forward" not in vars(model) and model(torch.zeros(1, 1, 8, 8)).dtype == torch.float32
    with pytest.raises(EspalierError, match="asks for precision fp32, and Accelerate was started with mixed"):
        fit(net(), data, replace(ONE, precision="fp32"))


def test_a_forward_of_one_s_own_stays_under_mixed_precision(data: Dataset, started: pytest.MonkeyPatch):
    started.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    model, calls = net(), []
    old = model.forward

    def own(x: Tensor) -> Tensor:
        calls.append(len(x))
        return old(x)  # type: ignore[no-any-return]

    model.forward = own  # type: ignore[method-assign]
    fit(model, data, ONE)
    assert vars(model)["forward"] is own and "_original_forward" not in vars(model) and len(calls) > 4


@pytest.mark.parametrize("asked", [False, True])
def test_a_given_optimizer_freezes_where_it_is_asked_to(data: Dataset, asked: bool):
    """Asked for a report by the caller, too, it has churned no less."""
    made: list[DualAveraging] = []
    churned: list[float] = []

    def make(parameters: Sequence[nn.Parameter], level: float) -> DualAveraging:
        made.append(DualAveraging(parameters, 0.05, law=PowerLaw(0.01, 0.51), freeze_below=level))
        return made[-1]

    def look(epoch: Epoch, model: nn.Module) -> None:
        if asked and epoch.epoch:
            churned.append(made[-1].mask_report().churn)

    for level in (1.0, 1e-9):
        fit(net(), data, replace(ONE, epochs=3), optimizer=partial(make, level=level), on_epoch=look)
        assert made[-1].frozen == (level == 1.0)
    assert not asked or churned[4] > 0


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("momentum", "a", "a number"),
        ("lr", "a", "a number"),
        ("epochs", 2.5, "a whole number"),
        ("epochs", True, "a whole number"),
        ("augment", "yes", "True or False"),
    ],
)
def test_fields_have_kinds(field: str, value: Any, kind: str):
    with pytest.raises(EspalierError, match=f"training `{field}` must be {kind}, got {value!r}"):
        replace(ONE, **{field: value})


def test_an_error_on_the_way_is_no_failure_of_the_run(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Data that cannot be read once may be there the next time."""
    training = replace(ONE, epochs=3)

    def broken(self: Any, step: int) -> None:
        if step == 10:
            raise EspalierError("an image is gone")

    with monkeypatch.context() as once:
        once.setattr("espalier.methods._base.Rule.before_step", broken)
        with pytest.raises(EspalierError, match="an image is gone"):
            fit(net(), data, training, folder=tmp_path)
    assert fit(net(), data, training, folder=tmp_path).resumed == 2


# Failure


class Explodes(nn.Module):
    """Fine for the first epoch of four steps, then NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.steps = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += self.training
        return self.net(x) * (math.nan if self.steps > 4 else 1.0)  # type: ignore[no-any-return]


def test_nan_stops_the_run_and_keeps_the_last_good_state(data: Dataset, tmp_path: Path):
    model = Explodes()
    training = Training(epochs=3, batch_size=50)
    with pytest.raises(
        Diverged, match=r"not finite at epoch 2, .* after epoch 1 is kept in .* lower lr than 0\.05"
    ) as e:
        fit(model, data, training, folder=tmp_path)
    assert [record.epoch for record in e.value.history.epochs] == [0, 1]
    good = torch.load(tmp_path / STATE, weights_only=True)
    assert len(good["epochs"]) == 2 and tensors_digest(good["model"]) == tensors_digest(model.state_dict())
    assert all(p.isfinite().all() for p in model.parameters())
    assert json.loads((tmp_path / "failed.json").read_text())["epoch"] == 2
    with pytest.raises(EspalierError, match=r"failed: the loss or the weights were not finite at epoch 2"):
        fit(Explodes(), data, training, folder=tmp_path)


def test_nan_of_the_last_step_is_not_kept_as_good(data: Dataset, tmp_path: Path):
    """The loss before the step was finite; what the step made of the weights is not."""

    def breaks(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, lr=0.05)
        steps = itertools.count(1)

        def after(*_: object) -> None:
            if next(steps) == 8:
                with torch.no_grad():
                    parameters[0].fill_(math.nan)

        optimizer.register_step_post_hook(after)
        return optimizer

    model = net()
    with pytest.raises(
        Diverged, match=r"not finite at epoch 2, by step 4 of 4; the state after epoch 1 is kept"
    ):
        fit(model, data, Training(epochs=3, batch_size=50), optimizer=breaks, folder=tmp_path)
    assert len(torch.load(tmp_path / STATE, weights_only=True)["epochs"]) == 2
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_target_below_the_sparsity_at_hand(data: Dataset):
    model = net()
    with torch.no_grad():
        dict(model.named_parameters())["5.weight"][:9] = 0.0
    with pytest.raises(
        EspalierError,
        match=r"a sparsity of 0\.5 is 738 zeros, but 1296 of 1476 entries are zero already; ask for",
    ):
        fit(model, data, ONE, method=Gradual(), sparsity=0.5)


def test_other_parameters_are_another_run(data: Dataset, tmp_path: Path):
    fit(net(), data, ONE, method=Gradual(), sparsity=0.5, folder=tmp_path, names=["5.weight"])
    with pytest.raises(EspalierError, match=r"another run: parameters was 1 of 2 \(\w+\) and is default"):
        fit(net(), data, ONE, method=Gradual(), sparsity=0.5, folder=tmp_path)


def test_a_folder_that_only_some_processes_see(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fit(net(), data, ONE, folder=tmp_path)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    monkeypatch.setattr(state, "differences", lambda *_: [])
    with pytest.raises(
        EspalierError, match="holds a run for 1 of 2 processes only: give a folder that all machines"
    ):
        fit(net(), data, ONE, folder=tmp_path)


def test_nan_without_a_folder(data: Dataset):
    with pytest.raises(Diverged, match="nothing was kept"):
        fit(Explodes(), data, Training(epochs=2, batch_size=50))


def test_refusals(data: Dataset):
    model = net()
    with pytest.raises(EspalierError, match="needs a teacher"):
        fit(model, data, Training(labels=False))
    for parent, teacher in ((model, None), (None, model)):
        with pytest.raises(EspalierError, match="must not be the model itself"):
            fit(model, data, ONE, parent=parent, teacher=teacher)
    assert isinstance(data.train, TensorSplit)
    unlabelled = TensorSplit("train", data.train.images, torch.full((2000,), -1), data.train.rows)
    blind = Dataset("blind", unlabelled, unlabelled, data.test, data.classes, data.input_shape, "")
    with pytest.raises(EspalierError, match="blind has no labels"):
        fit(model, blind, ONE)
    empty = Dataset(
        "none", data.train.take(0), data.validation, data.test, data.classes, data.input_shape, ""
    )
    with pytest.raises(EspalierError, match="none has no training examples"):
        fit(model, empty, ONE)


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("epochs", -1, "`epochs` must be 0 or more, got -1"),
        ("batch_size", 0, "`batch_size` must be 1 or more"),
        ("lr", 0.0, "`lr` must be a positive number"),
        ("lr", math.nan, "`lr` must be a positive number, got nan"),
        ("momentum", 1.0, r"`momentum` must be in \[0, 1\)"),
        ("weight_decay", -0.1, "`weight_decay` must be 0 or more"),
        ("warmup", 2.0, "`warmup` must be between 0 and `epochs`"),
        ("label_smoothing", 1.0, r"`label_smoothing` must be in \[0, 1\)"),
        ("teacher_weight", 1.5, r"`teacher_weight` must be in \[0, 1\]"),
        ("temperature", 0.0, "`temperature` must be a positive number"),
        ("stop_below", 1.0, r"`stop_below` must be in \[0, 1\), or none"),
        ("milestones", (0.5, 0.2), r"`milestones` must be increasing fractions of the run, in \(0, 1\)"),
        ("schedule", "cosin", "one of constant, cosine, step, garipov, got 'cosin'. Did you mean 'cosine'"),
        ("optimizer", "adamx", "Did you mean 'adam"),
        ("precision", "fp16", "one of auto, fp32, bf16"),
    ],
)
def test_each_bad_value_has_its_message(field: str, value: object, match: str):
    with pytest.raises(EspalierError, match=match):
        Training(**{field: value})  # type: ignore[arg-type]


def test_zero_epochs_measure_only(data: Dataset):
    model = net()
    before = tensors_digest(model.state_dict())
    history = fit(model, data, Training(epochs=0))
    assert len(history.epochs) == 1 and tensors_digest(model.state_dict()) == before


def test_spec_drops_defaults_and_its_digest_ignores_order():
    assert Training().spec() == {} and Training(lr=0.1, seed=3).spec() == {"lr": 0.1, "seed": 3}
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})


def test_records_survive_json():
    history = fit(DigitsCNN(), digits(Options(limit=20)), Training(epochs=0))
    assert (
        Epoch.from_record({**json.loads(json.dumps(history.last.record())), "later field": 1}) == history.last
    )
