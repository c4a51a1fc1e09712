"""Short fits with the real Trainer of transformers: zeros stay, runs resume, masks settle."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from espalier import EspalierError, prune
from espalier.callbacks.transformers import HoldMasks, Prune, WatchMask
from espalier.methods import Gradual, OneShot, TargetGRDA
from espalier.optim import DualAveraging, Settled, TargetSparsity

BATCHES = 6
PRUNED = "bert.encoder"


def network() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertForSequenceClassification(config)


def examples() -> list[dict[str, Any]]:
    ids = torch.randint(20, (4 * BATCHES, 5), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": int(row[0] > 9)} for row in ids]


def trainer(folder: Path, model: nn.Module, *callbacks: Any, epochs: int = 2, **options: Any) -> Trainer:
    optimizers = options.pop("optimizers", (None, None))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        weight_decay=0.1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", "logging_strategy": "no", **options},
    )
    return Trainer(
        model, arguments, train_dataset=examples(), callbacks=list(callbacks), optimizers=optimizers
    )


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.ndim > 1 and PRUNED in name}


def zeros(model: nn.Module) -> int:
    return sum(int((w == 0).sum()) for w in weights(model).values())


ENTRIES = sum(w.numel() for w in weights(network()).values())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def history(run: Trainer, word: str) -> list[float]:
    return [entry[f"espalier/{word}"] for entry in run.state.log_history if f"espalier/{word}" in entry]


def test_masks_hold_under_the_optimizer_of_the_trainer(tmp_path: Path):
    model = network()
    masks = prune(model.get_submodule(PRUNED), 0.7)
    before = weights(model)
    held = HoldMasks(masks, part=PRUNED)
    run = trainer(tmp_path, model, held)
    run.train()
    masks.verify(model.get_submodule(PRUNED))
    assert held.masks is not None and held.masks.digest == masks.digest
    assert zeros(model) == round(0.7 * ENTRIES)
    assert any(not torch.equal(w, before[name]) for name, w in weights(model).items())
    assert history(run, "sparsity") == pytest.approx([0.7, 0.7], abs=1e-3)
    assert not list(tmp_path.iterdir())
    # nothing is left behind
    model(**{k: torch.as_tensor(v)[None] for k, v in examples()[0].items()}).loss.backward()
    weight = model.get_parameter(f"{PRUNED}.layer.0.output.dense.weight")
    assert weight.grad is not None and weight.grad[weight == 0].any()


def test_clipping_sees_the_masked_gradients(tmp_path: Path):
    norms = []

    class Look(Prune):
        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            super().on_pre_optimizer_step(*args, **kwargs)
            weight = kwargs["model"].get_parameter(f"{PRUNED}.layer.0.output.dense.weight")
            norms.append(int(weight.grad[weight == 0].count_nonzero()))

    trainer(tmp_path, network(), Look(0.5, OneShot()), epochs=1).train()
    assert norms == [0] * BATCHES


def test_gradual_pruning_reaches_its_count_and_logs_where_the_trainer_does(tmp_path: Path):
    model = network()
    run = trainer(tmp_path, model, epochs=3)
    callback = Prune(0.9, part=PRUNED, log=run.log)
    run.add_callback(callback)
    run.train()
    assert zeros(model) == round(0.9 * ENTRIES)
    assert callback.masks is not None and callback.masks.kept == ENTRIES - zeros(model)
    logged = history(run, "sparsity")
    assert logged == sorted(logged) and 0 < logged[0] < 0.9 and logged[-1] == pytest.approx(0.9, abs=1e-3)


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path):
    straight = network()
    trainer(tmp_path, straight, Prune(0.9, part=PRUNED), epochs=4, save_strategy="epoch").train()
    half = tmp_path / f"checkpoint-{2 * BATCHES}"
    stored = load_file(half / "model.safetensors")
    pruned = sum(int((w == 0).sum()) for k, w in stored.items() if PRUNED in k and w.ndim > 1)
    assert 0.6 * ENTRIES < pruned < 0.9 * ENTRIES
    assert "espalier/sparsity" in json.dumps(json.loads((half / "trainer_state.json").read_text()))

    resumed, callback = network(), Prune(0.9, part=PRUNED)
    trainer(tmp_path, resumed, callback, epochs=4).train(resume_from_checkpoint=str(half))
    assert same(straight, resumed) and zeros(resumed) == round(0.9 * ENTRIES)

    elsewhere = tmp_path / "elsewhere"
    moved, callback = network(), Prune(0.9, part=PRUNED, resume_from=half)
    trainer(elsewhere, moved, callback, epochs=4).train(resume_from_checkpoint=str(half))
    assert same(straight, moved)

    with pytest.raises(
        EspalierError, match=r"goes on at step 12, but espalier\.pt is not in .*checkpoint-12"
    ):
        lost = trainer(elsewhere, network(), Prune(0.9, part=PRUNED), epochs=4)
        lost.train(resume_from_checkpoint=str(half))
    (half / "espalier.pt").write_bytes(b"broken")
    with pytest.raises(EspalierError, match=r"espalier\.pt cannot be read"):
        trainer(tmp_path, network(), Prune(0.9, part=PRUNED)).train(resume_from_checkpoint=str(half))


def test_held_masks_survive_a_resume(tmp_path: Path):
    masks = prune(network().get_submodule(PRUNED), 0.7)
    straight, resumed = network(), network()
    trainer(tmp_path, straight, HoldMasks(masks, part=PRUNED), save_strategy="epoch").train()
    again = trainer(tmp_path / "other", resumed, HoldMasks(masks, part=PRUNED))
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{BATCHES}"))
    assert same(straight, resumed) and zeros(resumed) == masks.entries - masks.kept


def test_accumulated_gradients_are_one_step(tmp_path: Path):
    model = network()
    callback = Prune(0.8, Gradual(updates=2, end=1.0), part=PRUNED)
    trainer(tmp_path, model, callback, gradient_accumulation_steps=3).train()
    assert zeros(model) == round(0.8 * ENTRIES)


def dual(model: nn.Module, steps: int) -> tuple[Any, None]:
    law = TargetSparsity(0.8, steps=steps)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [(n, p) for n, p in named if (PRUNED in n and p.ndim > 1) == on], "prune": on}
        for on in (True, False)
    ]
    return DualAveraging(groups, lr=0.05, law=law), None


def test_the_mask_of_the_optimizer_is_logged_and_training_stops(tmp_path: Path):
    model = network()
    watch = WatchMask(settled=Settled(0.0, reports=2), then="stop")
    run = trainer(tmp_path, model, watch, epochs=20, optimizers=dual(model, 2 * BATCHES))
    run.train()
    assert zeros(model) == round(0.8 * ENTRIES)
    assert run.state.epoch in (3, 4)
    assert history(run, "frozen")[-1] == 1 and history(run, "churn")[-1] == 0
    assert len(history(run, "regrown")) == len(history(run, "overlap")) == run.state.epoch
    assert watch.report is not None and watch.report.frozen


def test_the_optimizer_resumes_with_its_mask(tmp_path: Path):
    straight, resumed = network(), network()
    first = trainer(
        tmp_path,
        straight,
        WatchMask(),
        epochs=4,
        save_strategy="epoch",
        optimizers=dual(straight, 3 * BATCHES),
    )
    first.train()
    again = trainer(tmp_path, resumed, WatchMask(), epochs=4, optimizers=dual(resumed, 3 * BATCHES))
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{2 * BATCHES}"))
    assert same(straight, resumed) and zeros(resumed) == round(0.8 * ENTRIES)


@pytest.mark.parametrize(
    ("callback", "match"),
    [
        (Prune(), "give a sparsity in"),
        (Prune(0.9, part="bert.encode"), r"has no part 'bert\.encode'\. Did you mean 'bert\.encoder'"),
        (HoldMasks(part=PRUNED), "has no zeros to hold: prune it first"),
        (WatchMask(), "watches one optimizer of espalier.optim .*, the trainer has AdamW"),
    ],
)
def test_refused_before_the_first_step(callback: Any, match: str, tmp_path: Path):
    model = network()
    before = weights(model)
    with pytest.raises(EspalierError, match=match):
        trainer(tmp_path, model, callback).train()
    assert all(torch.equal(before[name], w) for name, w in weights(model).items())


def test_methods_with_an_optimizer_of_their_own_are_refused():
    with pytest.raises(EspalierError, match="TargetGRDA prunes by an optimizer of its own"):
        Prune(0.9, TargetGRDA())


def test_without_transformers_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "espalier.callbacks.transformers")
    match = r"callbacks\.transformers needs transformers: pip install 'espalier\[hf\]'"
    with pytest.raises(EspalierError, match=match):
        importlib.import_module("espalier.callbacks.transformers")
