"""Each allocation on arrays worked by hand, and against slow transcriptions of the papers."""

import pytest
import torch
from torch import Tensor

from espalier._errors import EspalierError
from espalier.allocate import ERK, LAMP, AbstractAllocation, Global, Uniform, UniformPlus
from espalier.allocate.apportion import apportion
from espalier.allocate.lamp import lamp
from tests.reference.allocations import erk_densities, lamp_scores, top_of_all

INF = float("inf")
RESNET = {
    "conv1.weight": (16, 3, 3, 3),
    "block.conv1.weight": (32, 16, 3, 3),
    "block.conv2.weight": (64, 32, 3, 3),
    "fc.weight": (10, 64),
}


def network(shapes: dict[str, tuple[int, ...]] = RESNET) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def test_global_follows_the_scores() -> None:
    scores = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([3.0, 2.0, 0.5])}
    assert Global().counts(scores, 3) == {"a": 1, "b": 2}
    assert Global().counts(scores, 0) == {"a": 0, "b": 0}
    assert Global().counts(scores, 5) == {"a": 2, "b": 3}


def test_global_floor_takes_from_the_last_ranked() -> None:
    scores = {"a": torch.tensor([9.0, 8.0, 7.0, 6.0]), "b": torch.tensor([0.2, 0.1, 0.4, 0.3])}
    assert Global().counts(scores, 3) == {"a": 3, "b": 0}
    assert Global(floor=0.25).counts(scores, 3) == {"a": 2, "b": 1}
    assert Global(floor=0.3).counts(scores, 4) == {"a": 2, "b": 2}  # 0.3 of 4 rounds up to 2


def test_floor_gives_each_tensor_its_share_where_scores_are_infinite() -> None:
    scores = {"a": torch.tensor([INF, INF, INF]), "b": torch.tensor([0.0, 1.0])}
    assert Global(floor=0.3).counts(scores, 2) == {"a": 1, "b": 1}


def test_floor_is_not_pushed_up_by_rounding() -> None:
    # 0.07 * 100 is 7.000000000000001 in floating point.
    scores = {"a": torch.arange(100.0), "b": torch.arange(100.0) + 1000}
    assert Global(floor=0.07).counts(scores, 50) == {"a": 7, "b": 43}


def test_uniform_rounds_to_the_nearest() -> None:
    scores = {"a": torch.rand(10), "b": torch.rand(30), "c": torch.rand(60)}
    assert Uniform().counts(scores, 20) == {"a": 2, "b": 6, "c": 12}
    assert Uniform().counts(scores, 21) == {"a": 2, "b": 6, "c": 13}


def test_uniform_ties_go_to_the_smaller_name() -> None:
    assert Uniform().counts({"b": torch.rand(4), "a": torch.rand(4)}, 3) == {"b": 1, "a": 2}


def test_what_a_tensor_cannot_hold_goes_to_the_others() -> None:
    zeros = torch.full((8,), -INF)
    scores = {"a": torch.cat([torch.rand(2), zeros]), "b": torch.rand(10)}
    assert Uniform().counts(scores, 10) == {"a": 2, "b": 8}


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_last_layer() -> None:
    scores = network()
    counts = UniformPlus().counts(scores, 2000)
    assert counts["conv1.weight"] == 16 * 3 * 3 * 3
    assert counts["fc.weight"] == 128
    rest = 2000 - 432 - 128
    assert counts["block.conv1.weight"] == round(rest / 5)
    assert counts["block.conv2.weight"] == round(rest * 4 / 5)
    roomy = UniformPlus().counts(scores, 12000)
    assert roomy["fc.weight"] / 640 == pytest.approx((12000 - 432) / (4608 + 18432 + 640), abs=1e-3)


def test_uniform_plus_can_be_told_the_names() -> None:
    scores = network()
    plus = UniformPlus(first="block.conv1.weight", last="conv1.weight")
    counts = plus.counts(scores, 6000)
    assert counts["block.conv1.weight"] == 4608
    assert plus.counts(dict(reversed(scores.items())), 6000) == counts


def test_uniform_plus_without_convolution_holds_the_last_layer_only() -> None:
    counts = UniformPlus().counts({"1.weight": torch.rand(10, 10), "2.weight": torch.rand(5, 10)}, 15)
    assert counts == {"1.weight": 5, "2.weight": 10}


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.02])
def test_erk_matches_its_definition(density: float) -> None:
    kept = round(density * sum(t.numel() for t in network().values()))
    counts = ERK().counts(network(), kept)
    expected = erk_densities(RESNET, kept / sum(t.numel() for t in network().values()))
    for name, tensor in network().items():
        assert abs(counts[name] - expected[name] * tensor.numel()) <= 1
    assert sum(counts.values()) == kept


def test_erk_is_sane_for_depthwise_one_dimensional_and_scalar_tensors() -> None:
    shapes = {"depthwise": (32, 1, 3, 3), "pointwise": (64, 32, 1, 1), "bias": (64,), "scale": ()}
    counts = ERK().counts(network(shapes), 700)
    assert counts["scale"] == 1 and counts["bias"] == 64  # a bias has density proportional to 1: dense
    assert counts["depthwise"] / 288 > counts["pointwise"] / 2048
    assert sum(counts.values()) == 700


def test_lamp_by_hand() -> None:
    # 1/1, 4/5, 9/14 for |w| = 1, 2, 3 would be the ascending sums; the definition sums from the entry
    # upwards.
    values = lamp(torch.tensor([1.0, 3.0, 2.0]))
    torch.testing.assert_close(values, torch.tensor([1.0, 4 / 13, 1 / 14], dtype=torch.float64))


def test_lamp_matches_its_definition() -> None:
    generator = torch.Generator().manual_seed(3)
    scores = {name: (torch.rand(20, generator=generator) * 8).round() + 1 for name in ("b", "a")}
    scores["c"] = scores["a"] * 1e-6  # the scale of a tensor does not matter
    reference = {name: lamp_scores(t.tolist()) for name, t in scores.items()}
    for name, tensor in scores.items():
        expected = torch.tensor(sorted(reference[name], reverse=True), dtype=torch.float64)
        torch.testing.assert_close(lamp(tensor), expected, rtol=1e-6, atol=0)
    for kept in (0, 1, 2, 3, 17, 40, 59, 60):
        assert LAMP().counts({"a": scores["a"], "b": scores["b"]}, min(kept, 40)) == top_of_all(
            {"a": reference["a"], "b": reference["b"]}, min(kept, 40)
        )


def test_lamp_empties_no_tensor() -> None:
    scores = {"large": torch.rand(1000) + 1, "small": torch.rand(10) * 1e-8}
    assert Global().counts(scores, 100)["small"] == 0
    assert LAMP().counts(scores, 2) == {"large": 1, "small": 1}


def test_lamp_survives_squares_that_underflow() -> None:
    assert lamp(torch.tensor([1e-200, 2e-200], dtype=torch.float64)).tolist() == pytest.approx([1.0, 0.2])
    assert lamp(torch.zeros(2)).tolist() == [0.0, 0.0]
    assert lamp(torch.tensor([-INF, 2.0])).tolist() == [1.0, -INF]
    assert lamp(torch.tensor([-INF])).tolist() == [-INF]


@pytest.mark.parametrize("scores", [torch.tensor([-1.0, 2.0]), torch.tensor([INF, 1.0])])
def test_lamp_refuses_scores_without_a_square(scores: Tensor) -> None:
    with pytest.raises(
        EspalierError, match="LAMP needs scores that are finite and not negative, and 'w' has others"
    ):
        LAMP().counts({"w": scores}, 1)


@pytest.mark.parametrize(
    "allocation", [Global(floor=0.2), Uniform(floor=0.2), ERK(floor=0.2), LAMP(floor=0.2)]
)
def test_a_floor_out_of_reach_says_what_can_be_reached(allocation: AbstractAllocation) -> None:
    scores = {"a": torch.rand(8) + 1, "b": torch.rand(15) + 1}  # 2 + 3 of 23: 0.782608...
    with pytest.raises(
        EspalierError, match=r"`floor`=0.2 keeps at least 5 of 23 .* can be reached is 0.782608:"
    ):
        allocation.counts(scores, 4)
    assert allocation.counts(scores, 5) == {"a": 2, "b": 3}


def test_uniform_plus_out_of_reach_says_what_can_be_reached() -> None:
    with pytest.raises(EspalierError, match=r"dense first convolution .* keeps at least 560 .* 0.97677"):
        UniformPlus().counts(network(), 400)


@pytest.mark.parametrize("kept", [-1, 24])
@pytest.mark.parametrize("allocation", [Global(floor=0.1), Uniform(), UniformPlus(), ERK()])
def test_a_budget_out_of_range_is_refused(allocation: AbstractAllocation, kept: int) -> None:
    with pytest.raises(EspalierError, match=f"cannot keep {kept} of 23 entries"):
        allocation.counts({"a": torch.rand(8), "b": torch.rand(15)}, kept)


@pytest.mark.parametrize("kept", [-1, 24])
@pytest.mark.parametrize("allocation", [Global(), LAMP()])
def test_a_rank_out_of_range_is_refused(allocation: AbstractAllocation, kept: int) -> None:
    with pytest.raises(EspalierError, match=f"(rank|keep) {kept} "):
        allocation.counts({"a": torch.rand(8), "b": torch.rand(15)}, kept)


@pytest.mark.parametrize("kind", [Global, Uniform, UniformPlus, ERK, LAMP])
def test_floors_are_fractions(kind: type) -> None:
    with pytest.raises(EspalierError, match="`floor` is a kept fraction between 0 and 1, got 5"):
        kind(floor=5)


def test_uniform_plus_refuses_what_it_cannot_find() -> None:
    with pytest.raises(EspalierError, match="`last_floor` is a kept fraction"):
        UniformPlus(last_floor=-0.1)
    with pytest.raises(EspalierError, match=r"UniformPlus names 'fc.wait'.* Did you mean 'fc.weight'"):
        UniformPlus(last="fc.wait").counts(network(), 1000)


def test_shares_do_not_shrink_when_the_total_grows() -> None:
    # The classical example: with largest remainders the third share falls from 2 to 1 when the total goes
    # to 11.
    shares, lower, upper = {"a": 6.0, "b": 6.0, "c": 2.0}, dict.fromkeys("abc", 0), dict.fromkeys("abc", 100)
    assert apportion(shares, lower, upper, 10) == {"a": 5, "b": 4, "c": 1}
    assert apportion(shares, lower, upper, 11) == {"a": 5, "b": 5, "c": 1}
    assert apportion(shares, lower, upper, 12) == {"a": 5, "b": 5, "c": 2}
