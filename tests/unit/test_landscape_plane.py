import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from espalier import EspalierError, Masks, open_checkpoint
from espalier.landscape.cka import linear_cka
from espalier.landscape.embedding import embed, prediction_distances
from espalier.landscape.functions import compare_functions
from espalier.landscape.norms import norms, series
from espalier.landscape.plane import (
    difference,
    filter_normalized,
    measure_plane,
    radial,
    random_plane,
    through,
)
from espalier.landscape.points import Space
from espalier.landscape.surface import Surface
from espalier.landscape.topology import connectivity, dead_units, grouped_perhaps, groups_of, overlaps
from tests.unit.test_landscape_surface import normed, plain, split


def test_three_networks_span_their_plane():
    a, b, c = torch.zeros(3), torch.tensor([4.0, 0, 0]), torch.tensor([1.0, 2, 0])
    plane = through({"a": a, "b": b, "c": c, "d": torch.tensor([1.0, 1, 3])})
    assert (plane.marks["c"].x, plane.marks["c"].y) == pytest.approx((1, 2))
    assert plane.marks["d"].residual == pytest.approx(3) and plane.marks["b"].residual == 0
    assert plane.x == pytest.approx((-0.8, 4.8)) and torch.allclose(plane.at(1, 2), c)
    with pytest.raises(EspalierError, match="lie on one line: there is no plane"):
        through({"a": a, "b": b, "c": b / 2})
    with pytest.raises(EspalierError, match="needs three of them, got 2"):
        through({"a": a, "b": b})


def test_radial_slice_holds_origin_start_and_end():
    plane = radial(torch.tensor([0.0, 2]), torch.tensor([3.0, 1]))
    assert (plane.marks["start"].x, plane.marks["start"].y) == pytest.approx((1, 3))
    assert plane.marks["origin"].x == 0 and plane.marks["end"].x == pytest.approx(2)
    with pytest.raises(EspalierError, match="multiples of each other"):
        radial(torch.ones(2), torch.ones(2) * 3)


def test_filters_of_a_random_direction_are_as_long_as_those_of_the_network():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))
    space = Space(net)
    direction = space.weights(filter_normalized(space, space.vector(net), 0))
    own = net.get_parameter("0.weight")
    assert torch.allclose(direction["0.weight"].flatten(1).norm(dim=1), own.flatten(1).norm(dim=1))
    assert not direction["0.bias"].any() and not direction["1.weight"].any()


def test_a_grid_costs_its_points_and_resumes(tmp_path: Path):
    net = normed()
    surface = Surface(net, split(), split(seed=1))
    center = surface.space.vector(net)
    plane = random_plane(surface.space, center)
    grid = measure_plane(surface, plane, points=(5, 3), folder=tmp_path / "g")
    assert surface.evaluations == 15 and grid.heights[1][2] == surface(center)
    lines = (tmp_path / "g" / "points.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "g" / "points.jsonl").write_text("".join(lines[:11]) + "{")
    assert measure_plane(surface, plane, points=(5, 3), folder=tmp_path / "g").heights == grid.heights
    assert surface.evaluations == 16 + 4
    gap = difference(grid, grid)
    assert (gap.largest, gap.points) == (0, 15)
    with pytest.raises(EspalierError, match="different grids"):
        difference(grid, measure_plane(surface, plane, points=2))
    with pytest.raises(EspalierError, match="at least 2 points a side"):
        measure_plane(surface, plane, points=1)
    with pytest.raises(EspalierError, match="reach of a plane must be positive"):
        random_plane(surface.space, center, reach=0)


def test_cka_does_not_see_rotation_and_scale():
    x = torch.randn(40, 6)
    q = torch.linalg.qr(torch.randn(6, 6)).Q
    for biased in (True, False):
        assert linear_cka(x, 3 * x @ q, biased=biased) == pytest.approx(1)
    assert abs(linear_cka(torch.randn(40, 500), torch.randn(40, 500))) < 0.1
    assert linear_cka(torch.randn(40, 500), torch.randn(40, 500), biased=True) > 0.8
    with pytest.raises(EspalierError, match="at least 4 inputs"):
        linear_cka(x[:3], x[:3])
    with pytest.raises(EspalierError, match="the same inputs"):
        linear_cka(x, x[:9])


def test_distances_of_predictions_and_their_picture():
    sure = torch.tensor([[50.0, 0.0]] * 3)
    assert prediction_distances([sure, sure.flip(1)])[0, 1] == pytest.approx(math.sqrt(2))
    nets = {str(i): torch.randn(8, 3) for i in range(6)}
    found = embed(nets, torch.zeros(8, dtype=torch.int64))
    assert found.positions.shape == (6, 2) and -1 <= found.faithfulness <= 1
    with pytest.raises(EspalierError, match="at least 4 networks"):
        embed({"a": sure}, torch.zeros(3))


def test_norms_by_hand():
    found = norms(open_checkpoint({"a.weight": torch.tensor([[3.0, -4.0], [0.0, 0.0]])}))
    assert (found.l1, found.l2, found.zeros, found.floor) == (7, 5, 2, 0.5)
    with pytest.raises(EspalierError, match="not checkpoints of one network"):
        series({k: open_checkpoint({"a.weight": torch.ones(2, n)}) for k, n in (("x", 2), ("y", 3))})


def test_topology_by_hand():
    mask = torch.tensor([[True, False, False], [False, False, False]])
    (layer,) = connectivity(Masks({"a": mask}))
    assert (layer.kept, layer.no_incoming, layer.no_outgoing, layer.fan_in) == (1, 1, 2, 0.5)
    assert dead_units([layer]) == {"a": 3}
    together, _ = overlaps(Masks({"a": mask}), Masks({"a": torch.ones(2, 3, dtype=torch.bool)}))
    assert together.jaccard == pytest.approx(1 / 6) and together.lost == 0
    assert together.churn == pytest.approx(5 / 6)
    with pytest.raises(EspalierError, match="two or more dimensions"):
        connectivity(Masks({"a": mask[0]}))


def test_sources_of_a_grouped_convolution():
    conv = nn.Conv2d(4, 4, 1, groups=2)
    assert groups_of(nn.Sequential(conv)) == {"0.weight": 2} and groups_of(conv) == {"weight": 2}
    # Units 0 and 1 read inputs 0 and 1, units 2 and 3 read inputs 2 and 3; input 1 is used by nobody.
    mask = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]], dtype=torch.bool)[..., None, None]
    (layer,) = connectivity(Masks({"weight": mask}), groups_of(conv))
    assert (layer.inputs, layer.sources, layer.no_incoming, layer.no_outgoing) == (2, 4, 1, 1)
    (layer,) = connectivity(Masks({"weight": mask}))
    assert (layer.sources, layer.no_outgoing) == (2, 0)
    with pytest.raises(EspalierError, match="weight has 4 units, which 3 groups do not divide"):
        connectivity(Masks({"weight": mask}), {"weight": 3})


def test_grouped_convolutions_show_in_the_shapes():
    shapes = {"stem.weight": (8, 3, 3, 3), "wide.weight": (8, 8, 3, 3), "depth.weight": (8, 1, 3, 3)}
    assert grouped_perhaps(shapes) == ("depth.weight",)
    dense = {"stem.weight": (6, 1, 5, 5), "next.weight": (16, 6, 5, 5), "joined.weight": (8, 22, 3, 3)}
    assert not grouped_perhaps(dense), "22 = 6 + 16 side by side"
    assert not grouped_perhaps({**shapes, "depth.weight": (8, 1, 1, 1)}), "a scale for each channel"


def test_overlap_by_chance_is_the_mean_over_masks():
    one = Masks({"a": torch.tensor([[True, True, True, False, False, False]])})
    shared = []
    for kept in itertools.combinations(range(6), 3):
        mask = torch.zeros(1, 6, dtype=torch.bool)
        mask[0, list(kept)] = True
        shared.append(one.overlap(Masks({"a": mask})))
    assert overlaps(one, one)[0].chance == pytest.approx(sum(shared) / len(shared), rel=0.01)
    none = Masks({"a": torch.zeros(1, 6, dtype=torch.bool)})
    assert overlaps(none, none)[0].chance == 1


def test_functions_of_networks_side_by_side():
    a, b = plain(), normed().train()
    found = compare_functions({"a": a, "b": b}, split(), cka=10, progress=lambda done, of: None)
    (pair,) = found.pairs
    assert set(pair.cka) == {"1"} and found.cka_inputs == 10 and b.training
    assert pair.similarity.agreement == pytest.approx(
        (found.logits["a"].argmax(1) == found.logits["b"].argmax(1)).double().mean().item()
    )
    assert compare_functions({"a": a, "b": b}, split(), cka=0).pairs[0].cka == {}


class _Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(self.net(x), 0.5)


def test_functions_that_do_not_compare():
    broken = plain()
    nn.init.constant_(broken[3].bias, math.nan)  # type: ignore[arg-type]
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    for other, words in (
        (broken, "b gives logits that are not finite for 24 of 24 inputs"),
        (lazy, "b is lazily initialized: '1.weight' has no shape yet"),
        (_Noisy(), "b gives different answers to the same inputs in eval mode"),
        (plain(classes=4), "b has 4 classes and a 3"),
    ):
        with pytest.raises(EspalierError, match=words):
            compare_functions({"a": plain(), "b": other}, split(), cka=0)
    with pytest.raises(EspalierError, match="needs at least 2 networks, got 1"):
        compare_functions({"a": plain()}, split())
