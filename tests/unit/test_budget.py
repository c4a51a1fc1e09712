import pytest
import torch
from torch import Tensor, nn

from espalier import EspalierError
from espalier.budget import Point, largest_agreeing_sparsity, largest_sparsity
from espalier.data import TensorSplit

N = 400


class Wrong(nn.Module):
    """Input i is i; answers class 1 for the first `wrong` inputs and 0 for the rest."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.wrong = wrong

    def forward(self, x: Tensor) -> Tensor:
        bad = x.flatten() < self.wrong
        return torch.stack([~bad, bad], dim=1).float()


def split(label: int = 0) -> TensorSplit:
    images = torch.arange(N, dtype=torch.float32).view(N, 1, 1, 1)
    return TensorSplit("validation", images, torch.full((N,), label), torch.arange(N), 1.0)


def pruned(sparsity: float) -> Wrong:
    """Perfect up to 0.5, then losing all by 1."""
    return Wrong(max(0.0, (sparsity - 0.5) * 2 * N))


def test_accuracy_budget():
    seen: list[Point] = []
    found = largest_sparsity(pruned, Wrong(0), split(), 0.1, resolution=0.005, progress=seen.append)
    # the drop is 2 (s - 0.5); its interval is about +-0.03 wide, so the answer lies a little below 0.55
    assert found.sparsity is not None and 0.52 < found.sparsity < 0.55
    assert found.points == tuple(seen) and [p.sparsity for p in seen[:3]] == [0.0, 1.0, 0.5]
    inside = {p.sparsity for p in found.points if p.inside}
    outside = {p.sparsity for p in found.points if not p.inside}
    assert max(inside) == found.sparsity < min(outside) <= found.sparsity + 0.005
    assert all(p.inside == (p.interval[1] <= 0.1) for p in found.points)
    assert found.monotone and found.n == N and "upper end" in found.rule and "0.1" in found.rule


def test_everything_inside_and_nothing_inside():
    whole = largest_sparsity(lambda s: Wrong(0), Wrong(0), split(), 0.05)
    assert whole.sparsity == 1.0 and len(whole.points) == 2
    none = largest_sparsity(lambda s: Wrong(N), Wrong(0), split(), 0.05)
    assert none.sparsity is None and len(none.points) == 1


def test_agreement_reads_no_label():
    found = largest_agreeing_sparsity(pruned, Wrong(0), split(label=-1), 0.9, resolution=0.005)
    assert found.sparsity is not None and 0.52 < found.sparsity < 0.55
    assert all(p.inside == (p.interval[0] >= 0.9) for p in found.points)
    assert found.monotone and "lower end" in found.rule


def test_a_search_that_was_misled_says_so():
    # inside at 0.5 although much worse than at 0.75
    def odd(sparsity: float) -> Wrong:
        return Wrong({0.0: 0.0, 0.5: 100.0, 0.75: 0.0}.get(sparsity, N))

    assert not largest_sparsity(odd, Wrong(0), split(), 0.4, resolution=0.2).monotone
    assert not largest_agreeing_sparsity(odd, Wrong(0), split(), 0.6, resolution=0.2).monotone


def test_refusals():
    for budget in (-0.1, 1.0):
        with pytest.raises(EspalierError, match=r"fraction in \[0, 1\)"):
            largest_sparsity(pruned, Wrong(0), split(), budget)
    with pytest.raises(EspalierError, match=r"agreement level must be in \(0, 1\), got 1"):
        largest_agreeing_sparsity(pruned, Wrong(0), split(), 1.0)
    with pytest.raises(EspalierError, match=r"low 0\.5 and high 0\.5"):
        largest_sparsity(pruned, Wrong(0), split(), 0.1, low=0.5, high=0.5)
    with pytest.raises(EspalierError, match="resolution must be positive"):
        largest_sparsity(pruned, Wrong(0), split(), 0.1, resolution=0)
    with pytest.raises(EspalierError, match="needs labels"):
        largest_sparsity(pruned, Wrong(0), split(label=-1), 0.1)
