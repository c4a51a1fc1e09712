"""`espalier prune --method directional`."""

import json
import sys
from pathlib import Path

import pytest
import torch

from espalier.checkpoint import open_checkpoint, save_checkpoint
from espalier.cli import main
from espalier.models import DigitsCNN


@pytest.fixture
def dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dense.safetensors"
    save_checkpoint(path, DigitsCNN().state_dict(), {})
    return path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["espalier", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


LINE = "prune dense.safetensors -o out.safetensors --method directional --amount 0.3 "


def test_it_writes_exactly_what_was_asked(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = "--model digits_cnn --data digits --limit 20 --directions 3 --json"
    assert run(LINE + more, monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["zeros"] == round(0.3 * found["entries"]) and 0 < found["cosine"] < 1
    assert any("the loss on 20 training examples went from" in note for note in found["notes"])
    before, after = open_checkpoint(dense), open_checkpoint(dense.with_name("out.safetensors"))
    assert list(before) == list(after)
    names = [t["name"] for t in found["tensors"]]
    assert sum(int((after[name] == 0).sum()) for name in names) == found["zeros"]
    for name in set(before) - set(names):
        assert torch.equal(before[name], after[name])
    moved = [name for name in names if ((after[name] != 0) & (after[name] != before[name])).any()]
    assert moved == names


def test_what_it_needs_is_said(
    dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(LINE, monkeypatch) == 2
    assert "looks at the loss: give --model and --data" in capsys.readouterr().err
    assert run(LINE + "--model digits_cnn --data digits --allocate erk", monkeypatch) == 2
    assert "finds the places itself: leave out --nm" in capsys.readouterr().err
