"""Directional pruning of modules."""

import pytest
import torch
from torch import nn

from espalier._errors import EspalierError
from espalier.data import TensorSplit
from espalier.directional import by_filter, directional, prune_directional, regress, scores
from espalier.landscape import Curvature, Risk, leading
from espalier.optim import GRDA
from espalier.pruning import prune


def clusters(n: int = 120) -> TensorSplit:
    """Three classes one can tell apart."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (n,), generator=g)
    centers = 2 * torch.randn(3, 1, 3, 3, generator=g)
    return TensorSplit(
        "train",
        centers[labels] + 0.7 * torch.randn(n, 1, 3, 3, generator=g),
        labels,
        torch.arange(n),
        scale=1.0,
    )


def trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, y = next(iter(clusters().batches(120)))
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model


def test_it_ends_with_the_zeros_asked_for_and_a_lower_loss_than_magnitude() -> None:
    data = clusters()
    model, rival = trained(), trained()
    masks = prune_directional(model, data, 0.6, directions=40)
    prune(rival, 0.6)
    zeros = sum(int((p == 0).sum()) for name, p in model.named_parameters() if name in masks)
    assert masks.entries == 144 and zeros == 86 == masks.entries - masks.kept
    masks.verify(model)
    assert Risk(model, data).loss() < 0.7 * Risk(rival, data).loss()
    assert model.training and all(p.grad is None for p in model.parameters())


def test_the_record_says_what_was_done() -> None:
    found = directional(trained(), clusters(), 0.5, directions=20, refresh=0.2)
    assert found.path.zeros == 72 and found.path.curvatures == len(found.pairs) == 3
    assert found.examples == 120 and found.products > 0 and found.hidden >= 0
    assert found.loss[0] < found.loss[1]
    assert all(pairs.vectors.numel() == 0 for pairs in found.pairs)


def test_what_is_zero_stays_zero_and_a_soft_filter_will_do() -> None:
    model = trained()
    before = prune(model, 0.3)
    found = directional(model, clusters(), 0.5, flat=lambda pairs: by_filter(pairs, 0.6, 50.0), adjust=False)
    assert found.masks.kept == 72
    assert (found.masks & before) == found.masks
    assert directional(model, clusters(), 0.2).masks.kept == 72


def test_adjusted_it_needs_few_directions_to_be_better_than_magnitude() -> None:
    rival = trained()
    prune(rival, 0.6)
    known = directional(trained(), clusters(), 0.6, directions=5)
    assert known.loss[1] < 0.7 * Risk(rival, clusters()).loss()
    by_the_letter = directional(trained(), clusters(), 0.6, directions=5, adjust=False)
    assert by_the_letter.masks.kept == known.masks.kept and by_the_letter.loss != known.loss


def test_relaxing_is_said() -> None:
    found = directional(trained(), clusters(), 0.97, directions=72, refresh=1.0)
    assert found.masks.kept == 4 and any("were given up" in note for note in found.notes)


def test_bad_input_is_refused() -> None:
    with pytest.raises(EspalierError, match=r"`refresh` is a share of the weights in \(0, 1\], got 0"):
        directional(trained(), clusters(), 0.5, refresh=0)
    with pytest.raises(EspalierError, match=r"a sparsity is a fraction in \[0, 1\), got 90"):
        prune_directional(trained(), clusters(), 90)
    complex_one = nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(EspalierError, match=r"the model has complex parameters \(weight, bias\)"):
        directional(complex_one, clusters(), 0.5)


def test_with_every_direction_known_it_follows_the_dense_path() -> None:
    """One step of a small network against dense linear algebra on its own Gauss-Newton matrix."""
    model, data = trained(), clusters()
    risk = Risk(model, data, dtype=torch.float64)
    matrix = Curvature(risk, kind="gauss-newton").dense()
    values, vectors = torch.linalg.eigh(matrix)
    stiff = vectors[:, -40:]
    found = directional(
        model.double(), data, 1 / risk.dimension, scope="all", directions=40, tolerance=1e-9, adjust=False
    )
    signs = risk.weights.sign()
    down = signs - stiff @ (stiff.T @ signs)
    times = torch.where(signs * down > 0, risk.weights / down, torch.inf)
    expected = risk.weights - times.min() * down
    expected[times.argmin()] = 0
    assert torch.allclose(found.path.weights, expected, atol=1e-6)
    assert values[-40] > 1e-6  # what was called stiff is


def test_what_grda_changes_in_a_network_follows_the_scores() -> None:
    """Same start, same batches: each layer on a line of slope near c sqrt(lr) t^mu, within a factor of two."""
    data, lr, steps, c, mu = clusters(), 0.05, 1200, 0.002, 0.6
    x, y = next(iter(data.batches(120)))
    ends = []
    for constant in (c, 0.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 3)).double()
        optimizer = GRDA(model.parameters(), lr=lr, c=constant, mu=mu, scope="paper")
        g = torch.Generator().manual_seed(1)
        for _ in range(steps):
            rows = torch.randint(120, (24,), generator=g)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows].double()), y[rows]).backward()
            optimizer.step()
        ends.append(model)
    grda, sgd = (dict(model.named_parameters()) for model in ends)
    risk = Risk(ends[1], data, dtype=torch.float64)
    pairs = leading(Curvature(risk, kind="gauss-newton"), risk.dimension)
    s = scores(risk.weights, by_filter(pairs, mu, lr * steps))
    for fit in (fit for fit in regress(grda, sgd, risk.named(s)) if fit.n > 20):
        assert 0.5 < fit.slope / (c * lr**0.5 * (lr * steps) ** mu) < 2
        assert fit.correlation > 0.8 and fit.slope > 4 * fit.error
