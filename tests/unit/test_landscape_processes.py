"""Two processes on gloo, each with its share of the batches, agree with one."""

import io
import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path as File

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from espalier import EspalierError
from espalier.checkpoint import save_checkpoint
from espalier.cli import main
from espalier.landscape import (
    Curvature,
    CurveTraining,
    Path,
    Risk,
    Surface,
    leading,
    measure_path,
    trained_path,
)
from espalier.landscape.kept import _Kept, eigenpairs_once
from espalier.models import DigitsCNN
from espalier.processes import from_main, is_main, share
from tests.conftest import Run, two_processes
from tests.unit.test_landscape_surface import normed, split

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this build of torch has no distributed")

SIZES = (
    5,
    24,
)  # examples a batch of 24: five batches for two processes, and one, which leaves the second idle
LINE = ("a.safetensors", "b.safetensors", "--model", "digits_cnn", "--data", "digits", "--limit", "12")
PATH = (
    "landscape",
    "path",
    *LINE,
    "--points",
    "3",
    "--batch-size",
    "5",
    "--save-midpoint",
    "mid.safetensors",
)


def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    return normed(), normed()


def curvature(size: int) -> dict[str, Tensor]:
    risk = Risk(networks()[0], split(), batch_size=size)
    v = torch.randn(risk.dimension, generator=torch.Generator().manual_seed(1))
    slope = risk.loss_and_gradient()[1]
    products = {kind: risk.product(risk.weights, v, kind) for kind in ("hessian", "gauss-newton")}
    values = leading(Curvature(risk), 3).values
    return {"loss": torch.tensor(risk.loss()), "gradient": slope, "eigenvalues": values, **products}


def heights(size: int, shared: bool) -> dict[str, Tensor]:
    a, b = networks()
    surface = Surface(a, split(), split(10, seed=1), batch_size=size, shared=shared)
    point = (surface.space.vector(a) + surface.space.vector(b)) / 2
    found = surface(point)
    assert found.test is not None and (found.train.n, found.test.n) == (24, 10)
    state = surface.state_dict(point)
    return {
        "levels": torch.tensor(
            [found.train.loss, found.train.accuracy, found.test.loss, found.test.accuracy]
        ),
        "statistics": torch.cat([state["2.running_mean"], state["2.running_var"]]),
        "batches": state["2.num_batches_tracked"].double(),
    }


def bend(folder: File | None) -> Tensor:
    a, b = networks()
    surface = Surface(a, split(), batch_size=8)
    ends = (surface.space.vector(network) for network in (a, b))
    found = trained_path(surface, *ends, training=CurveTraining(epochs=2, batch_size=8), folder=folder).bend
    assert found is not None
    return found


def truth() -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for size in SIZES:
        found |= {f"{key} {size}": value for key, value in curvature(size).items()}
        for shared in (True, False):
            found |= {f"{key} {size} {shared}": value for key, value in heights(size, shared).items()}
    return found


def work(rank: int, folder: str) -> None:
    os.chdir(folder)
    alone, curve = truth(), bend(None)
    check_commands(rank)
    dist.init_process_group("gloo")
    for key, value in truth().items():
        assert torch.allclose(value, alone[key], rtol=1e-5, atol=1e-6), key
    assert list(share(range(5))) == [[0, 2, 4], [1, 3]][rank]
    assert torch.equal(bend(File("curve")), curve) and torch.equal(bend(File("curve")), curve)
    check_files()
    with pytest.raises(EspalierError, match="only the main process knows"):
        from_main(lambda: (_ for _ in ()).throw(EspalierError("only the main process knows")))


def check_files() -> None:
    """The main process writes, and every process finds what is done."""
    a, b = networks()
    surface = Surface(a, split(), batch_size=5)
    line = Path("line", surface.space.vector(a), surface.space.vector(b))
    first = measure_path(surface, line, points=3, folder=File("line"))
    again = measure_path(surface, line, points=3, folder=File("line"))
    assert first == again and surface.evaluations == 3
    if is_main():
        assert len(File("line/points.jsonl").read_text().splitlines()) == 3
    operator = Curvature(Risk(a, split(), batch_size=5))

    def pairs() -> Tensor:
        return eigenpairs_once(File("pairs"), {}, operator, lambda kept: leading(kept, 2)).vectors

    assert torch.equal(pairs(), pairs())

    v, spent = torch.ones(operator.dimension), operator.products
    File("products").mkdir(exist_ok=True)
    one, two = (_Kept(operator, File("products")) @ v for _ in range(2))
    assert torch.equal(one, two) and operator.products == spent + 1


def check_commands(rank: int) -> None:
    """One process prints and writes; what is not shared out is refused."""
    sys.argv = ["espalier", *PATH, "--json"]
    with redirect_stdout(io.StringIO()) as out:
        run_main()
    assert not dist.is_initialized()
    if rank:
        assert out.getvalue() == ""
    else:
        File("two.json").write_text(out.getvalue())
    sys.argv = ["espalier", "landscape", "norms", "a.safetensors"]
    with pytest.raises(SystemExit, match="2"):
        main()


def run_main() -> None:
    try:
        main()
    except SystemExit as stop:
        assert not stop.code


def test_two_processes(tmp_path: File, run: Run) -> None:
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / f"{name}.safetensors", DigitsCNN().state_dict())
    code, out, _ = run(*PATH, "--json")
    assert code == 0
    (tmp_path / "mid.safetensors").unlink()
    two_processes(work, str(tmp_path))
    assert (tmp_path / "mid.safetensors").exists()
    one, two = json.loads(out)["ways"][0], json.loads((tmp_path / "two.json").read_text())["ways"][0]
    for a, b in zip(one["points"], two["points"], strict=True):
        for part in ("train", "test"):
            assert a[part] == pytest.approx(b[part], rel=1e-5)


def test_one_process_needs_no_process_group() -> None:
    assert is_main() and list(share(range(3))) == [0, 1, 2] and from_main(lambda: 1) == 1
