"""`espalier landscape spectrum` and `project`, and the folder that keeps eigenpairs."""

import json
import sys
from pathlib import Path

import pytest
import torch

from espalier._errors import EspalierError
from espalier.checkpoint import save_checkpoint
from espalier.cli import main
from espalier.landscape import Density, Eigenpairs, Matrix, Trace, density, leading, trace
from espalier.landscape.kept import eigenpairs_once
from espalier.landscape.records import Records
from espalier.models import DigitsCNN


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three networks nobody trained."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / f"{name}.safetensors", DigitsCNN().state_dict(), {})
    return tmp_path


def run(line: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["espalier", *line.split()])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


SPECTRUM = "landscape spectrum a.safetensors --model digits_cnn --data digits --limit 8 --top 2 --probes 2"


def test_spectrum(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    extra = " --curvature gauss-newton --trace 2 --folder kept --png s.png --html s.html"
    assert run(SPECTRUM + extra, monkeypatch) == 0
    text = capsys.readouterr().out
    assert "Gauss-Newton matrix of the mean loss in 25,978 weights" in text
    assert "digits: 8 training examples (--limit 8" in text and "trace" in text and "yes" in text
    assert (files / "s.png").stat().st_size > 1000 and "<svg" in (files / "s.html").read_text()
    assert (
        run(
            SPECTRUM.replace("probes 2", "probes 0") + " --curvature gauss-newton --folder kept --json",
            monkeypatch,
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["density"] is None and found["curvature"] == "gauss-newton"
    assert len(found["eigenpairs"]["values"]) == 2 and all(found["eigenpairs"]["converged"])


def test_project(files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = "landscape project a.safetensors b.safetensors --model digits_cnn --data digits --limit 8 --top 2"
    extra = " --curvature gauss-newton --control b.safetensors c.safetensors --png p.png --html p.html"
    assert run(line + extra, monkeypatch) == 0
    text = capsys.readouterr().out
    assert "b.safetensors - a.safetensors" in text and "control: c.safetensors - b.safetensors" in text
    assert "divided by sqrt(10)" in text and "no control" not in text
    assert (files / "p.png").exists() and (files / "p.html").exists()
    assert run(line + " --curvature gauss-newton --scope weights --json", monkeypatch) == 0
    shares = json.loads(capsys.readouterr().out)["shares"]
    assert [share["name"] for share in shares][1:] == ["a.safetensors", "b.safetensors"]
    assert all(0 <= share["share"] <= 1 for share in shares)


def test_bad_input_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(SPECTRUM.replace("probes 2", "probes 1"), monkeypatch) == 2
    assert "error bars need at least 2" in capsys.readouterr().err


NOBODY = Matrix(torch.eye(3))


def pairs(value: float = 2.0) -> Eigenpairs:
    return Eigenpairs(torch.tensor([value]).double(), torch.ones(3, 1), torch.zeros(1).double(), 1e-3, 7, 3)


def test_eigenpairs_are_computed_once(tmp_path: Path) -> None:
    first = eigenpairs_once(tmp_path / "k", {"top": 1}, NOBODY, lambda _: pairs())
    again = eigenpairs_once(tmp_path / "k", {"top": 1}, NOBODY, lambda _: pairs(5.0))
    assert torch.equal(first.values, again.values) and torch.equal(first.vectors, again.vectors)
    assert (again.products, again.dimension, again.which) == (7, 3, "algebraic")
    assert [path.name for path in (tmp_path / "k").iterdir()] == ["eigenpairs.safetensors"]
    assert float(eigenpairs_once(None, {}, NOBODY, lambda _: pairs(5.0)).values[0]) == 5


class Killed(Exception):
    pass


def test_an_interrupted_iteration_goes_on_from_its_products(tmp_path: Path) -> None:
    matrix = torch.diag(torch.linspace(0, 1, 300).double() ** 4)
    truth = leading(Matrix(matrix), 3)
    seen: list[int] = []

    def stop() -> None:
        seen.append(1)
        if len(seen) == 7:
            raise Killed

    first = Matrix(matrix)
    first.progress = stop
    with pytest.raises(Killed):
        eigenpairs_once(tmp_path, {"top": 3}, first, lambda kept: leading(kept, 3))
    (tmp_path / "products" / "2.safetensors").write_bytes(b"nonsense")  # made again
    second = Matrix(matrix)
    found = eigenpairs_once(tmp_path, {"top": 3}, second, lambda kept: leading(kept, 3))
    assert torch.equal(found.values, truth.values) and torch.equal(found.vectors, truth.vectors)
    assert found.products == truth.products and second.products == truth.products - 6 + 1


def test_pairs_that_have_not_converged_go_on_with_more_products(tmp_path: Path) -> None:
    operator = Matrix(torch.diag(torch.linspace(0, 1, 300).double() ** 4))

    def once(products: int) -> Eigenpairs:
        return eigenpairs_once(
            tmp_path, {"top": 3}, operator, lambda kept: leading(kept, 3, products=products, strict=False)
        )

    few = once(8)
    assert not all(few.converged) and few.products == operator.products == 8
    assert all(once(100).converged)
    # The eighth was the check of the first call, not a step: its place is taken by another vector.
    assert operator.products == 8 + once(100).products - 7
    with pytest.raises(EspalierError, match="top was 3 and is 4"):
        eigenpairs_once(tmp_path, {"top": 4}, operator, lambda kept: pairs())


def test_density_and_trace_go_on_where_they_stopped(tmp_path: Path) -> None:
    matrix = torch.diag(torch.linspace(0, 1, 100).double())

    def pieces(operator: Matrix, count: int) -> tuple[Density, Trace]:
        kept = [Records(tmp_path / word, {}) for word in ("density", "trace")]
        return (
            density(operator, probes=count, steps=5, records=kept[0]),
            trace(operator, products=9, repeats=count, records=kept[1]),
        )

    pieces(Matrix(matrix), 2)
    rest = Matrix(matrix)
    found, total = pieces(rest, 3)
    assert rest.products == 5 + 9 and (found.products, total.products) == (15, 27)
    whole = density(Matrix(matrix), probes=3, steps=5), trace(Matrix(matrix), products=9, repeats=3)
    assert torch.equal(found.density, whole[0].density) and total == whole[1]


def test_eigenpairs_of_something_else_are_refused(tmp_path: Path) -> None:
    eigenpairs_once(tmp_path / "k", {"top": 1}, NOBODY, lambda _: pairs())
    with pytest.raises(EspalierError, match="eigenpairs of something else: top was 1 and is 2"):
        eigenpairs_once(tmp_path / "k", {"top": 2}, NOBODY, lambda _: pairs())
    (tmp_path / "k" / "eigenpairs.safetensors").write_bytes(b"nonsense")
    with pytest.raises(EspalierError, match="remove it to compute it again"):
        eigenpairs_once(tmp_path / "k", {"top": 1}, NOBODY, lambda _: pairs())
    (tmp_path / "file").write_text("")
    with pytest.raises(EspalierError, match="is a file; eigenpairs are kept in a folder"):
        eigenpairs_once(tmp_path / "file", {}, NOBODY, lambda _: pairs())
