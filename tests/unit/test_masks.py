"""Masks on arrays small enough to check by eye, and every message."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from espalier._errors import CheckpointError, EspalierError
from espalier._types import LazyTensors
from espalier.masks import Masks, indivisible

INF = float("inf")


def two() -> Masks:
    return Masks({"b": torch.tensor([[True, False, True]]), "a": torch.tensor([False, True])})


def test_a_mapping_of_fresh_bool_tensors_in_the_given_order() -> None:
    masks = two()
    assert list(masks) == ["b", "a"] and len(masks) == 2 and "a" in masks and "c" not in masks
    assert masks["b"].tolist() == [[True, False, True]]
    masks["b"].fill_(False)
    assert masks["b"].tolist() == [[True, False, True]]
    assert masks.shapes == {"b": (1, 3), "a": (2,)}
    assert (masks.entries, masks.kept, masks.sparsity) == (5, 3, 0.4)
    assert masks.counts == {"b": 2, "a": 1}
    assert repr(masks) == "Masks(3 of 5 entries kept in 2 tensors)"


def test_the_tensors_given_may_change_afterwards() -> None:
    given = torch.tensor([True, False])
    masks = Masks({"w": given})
    given.fill_(True)
    assert masks["w"].tolist() == [True, False]


def test_from_scores_keeps_the_highest() -> None:
    scores = {"w": torch.tensor([[1.0, 3.0], [3.0, 2.0]])}
    assert Masks.from_scores(scores, {"w": 1})["w"].tolist() == [[False, True], [False, False]]
    assert Masks.from_scores(scores, {"w": 3})["w"].tolist() == [[False, True], [True, True]]


def test_masks_made_on_access_are_the_same_value() -> None:
    scores = {"w": torch.rand(5, 3), "v": torch.rand(7)}
    counts = {"w": 4, "v": 7}
    made = []

    def load(name: str) -> Tensor:
        made.append(name)
        return scores[name]

    shapes = {name: tuple(tensor.shape) for name, tensor in scores.items()}
    lazy = Masks.from_scores(LazyTensors(["w", "v"], load), counts, shapes=shapes)
    assert (lazy.kept, lazy.entries, lazy.counts) == (11, 22, counts)
    assert made == []
    assert lazy == Masks.from_scores(scores, counts)
    assert (~lazy).kept == 11


def test_from_zeros_takes_both_zeros_for_zero() -> None:
    assert Masks.from_zeros({"w": torch.tensor([0.0, -0.0, 1e-30, float("nan")])})["w"].tolist() == [
        False,
        False,
        True,
        True,
    ]


def test_two_of_four_along_the_input_axis() -> None:
    rows = torch.tensor([[1.0, 4.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]])
    expected = [[False, True, True, False, True, True, False, False]]
    assert Masks.from_nm({"w": rows}, 2, 4)["w"].tolist() == expected
    kernel = torch.stack([rows, -rows], dim=-1)  # (1, 8, 2): groups run along dimension 1 for each place
    mask = Masks.from_nm({"w": kernel}, 2, 4)["w"]
    assert mask[..., 0].tolist() == expected
    assert mask[..., 1].tolist() == [[True, False, False, True, True, True, False, False]]


def test_what_cannot_be_grouped_is_kept_dense_and_listed() -> None:
    scores = {"conv": torch.rand(8, 3, 3, 3), "fc": torch.rand(2, 8), "bias": torch.rand(8)}
    masks = Masks.from_nm(scores, 2, 4)
    assert masks.counts == {"conv": 216, "fc": 8, "bias": 8}
    assert indivisible(masks.shapes, 4) == ("conv", "bias")


def test_nm_keeps_existing_zeros() -> None:
    scores = {"fc": torch.tensor([[-INF, -INF, -INF, 1.0]]), "bias": torch.tensor([-INF, 1.0])}
    masks = Masks.from_nm(scores, 2, 4)
    assert masks["fc"].tolist() == [[False, False, False, True]]
    assert masks["bias"].tolist() == [False, True]


def test_algebra() -> None:
    one = Masks({"w": torch.tensor([True, True, False, False])})
    other = Masks({"w": torch.tensor([True, False, True, False])})
    assert (one & other)["w"].tolist() == [True, False, False, False]
    assert (one | other)["w"].tolist() == [True, True, True, False]
    assert (~one)["w"].tolist() == [False, False, True, True]
    assert one.overlap(other) == pytest.approx(1 / 3)
    assert one.lost(other) == 0.5
    assert one.overlap(one) == 1 and one.lost(one) == 0


def test_overlap_and_loss_of_nothing() -> None:
    nothing = Masks({"w": torch.zeros(3, dtype=torch.bool)})
    assert nothing.overlap(nothing) == 1 and nothing.lost(nothing) == 0
    assert Masks({}).sparsity == 0 and Masks({}).kept == 0


def test_digest_and_equality_ignore_the_order_of_names() -> None:
    masks = two()
    same = Masks(dict(reversed(list(masks.items()))))
    assert same == masks and hash(same) == hash(masks) and same.digest == masks.digest
    assert masks.digest == "55b6814dbce29855e23c2f869287d09571f52ab4fdde4b5fb7af2de231bc8bee"
    assert masks != ~masks and masks != "masks"
    # The same bits in another shape are other masks.
    assert Masks({"w": torch.ones(2, 3, dtype=torch.bool)}) != Masks(
        {"w": torch.ones(3, 2, dtype=torch.bool)}
    )


def test_summary_line_by_line() -> None:
    lines = two().summary()
    assert [(line.name, line.shape, line.kept, line.entries) for line in lines] == [
        ("b", (1, 3), 2, 3),
        ("a", (2,), 1, 2),
    ]
    assert lines[1].sparsity == 0.5
    assert Masks({"e": torch.ones(0, dtype=torch.bool)}).summary()[0].sparsity == 0


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    masks = Masks(
        {"w": torch.rand(3, 7) > 0.5, "s": torch.tensor(True), "e": torch.ones(0, 4, dtype=torch.bool)}
    )
    masks.save(tmp_path / "masks.safetensors")
    again = Masks.load(tmp_path / "masks.safetensors")
    assert again == masks and again.shapes == masks.shapes
    assert load_file(tmp_path / "masks.safetensors")["w"].shape == (3,)  # 21 bits
    assert [path.name for path in tmp_path.iterdir()] == ["masks.safetensors"]


def test_masked_is_a_copy_and_leaves_other_tensors_alone() -> None:
    weight = torch.tensor([[-1.0, -2.0, float("nan")]])
    masked = two().masked("b", weight)
    assert masked[0, :2].tolist() == [-1.0, 0.0] and not torch.signbit(masked[0, 1])
    assert weight[0, 1] == -2
    assert two().masked("unknown", weight) is weight


def test_apply_sets_plus_zero_in_place() -> None:
    tensors = {"a": torch.tensor([float("nan"), -3.0]), "b": torch.tensor([[1.0, -INF, 2.0]])}
    two().apply_(tensors)
    assert tensors["a"].tolist() == [0.0, -3.0] and tensors["b"].tolist() == [[1.0, 0.0, 2.0]]
    assert not torch.signbit(tensors["b"]).any()


def test_verify_names_the_tensor_and_the_number() -> None:
    tensors = {"a": torch.tensor([0.5, 1.0]), "b": torch.ones(1, 3)}
    with pytest.raises(
        EspalierError, match=r"1 pruned entries of 'b' are not zero \(2 in 2 tensors\); .*apply_"
    ):
        two().verify(tensors)
    two().apply_(tensors)
    two().verify(tensors)
    tensors["a"][0] = float("nan")
    with pytest.raises(EspalierError, match=r"1 pruned entries of 'a' are not zero \(1 in 1 tensors\)"):
        two().verify(tensors)


def test_nothing_is_applied_when_something_does_not_fit() -> None:
    tensors = {"b": torch.ones(1, 3), "aa": torch.ones(2)}
    with pytest.raises(EspalierError, match=r"a mask for 'a' but no such parameter. Did you mean 'aa'"):
        two().apply_(tensors)
    with pytest.raises(EspalierError, match=r"mask of 'a' has shape \(2,\) and the parameter \(3,\)"):
        two().apply_({"b": torch.ones(1, 3), "a": torch.ones(3)})
    assert tensors["b"].tolist() == [[1.0, 1.0, 1.0]]


def test_wrapped_modules_have_the_names_of_what_they_wrap() -> None:
    layer = nn.Linear(2, 2)
    masks = Masks({"weight": torch.eye(2) > 0})
    masks.apply_(torch.compile(layer, backend="eager"))  # type: ignore[arg-type]
    masks.apply_(nn.DataParallel(layer))
    masks.verify(layer)
    assert int((layer.weight == 0).sum()) == 2


def test_messages_of_construction() -> None:
    with pytest.raises(EspalierError, match=r"the mask of 'w' is torch.float32; masks are bool"):
        Masks({"w": torch.ones(1)})
    with pytest.raises(EspalierError, match="cannot keep 3 of the 2 entries of 'w'"):
        Masks.from_scores({"w": torch.ones(2)}, {"w": 3})
    with pytest.raises(
        EspalierError, match=r"names differ: 'fc.weight' in scores but not in counts. Did you mean 'fc.wait'"
    ):
        Masks.from_scores({"fc.weight": torch.ones(2)}, {"fc.wait": 1})
    with pytest.raises(EspalierError, match="names differ: 'v' in counts but not in scores"):
        Masks.from_scores({"w": torch.ones(2)}, {"w": 1, "v": 1})
    with pytest.raises(EspalierError, match="cannot keep 5 of every 4 entries"):
        Masks.from_nm({}, 5, 4)
    with pytest.raises(EspalierError, match="'w' has scores that are NaN"):
        Masks.from_nm({"w": torch.full((4, 4), float("nan"))}, 2, 4)


def test_messages_of_the_algebra() -> None:
    with pytest.raises(EspalierError, match="names differ: 'b' in one but not in the other"):
        two() & Masks({"a": torch.ones(2, dtype=torch.bool)})
    with pytest.raises(EspalierError, match=r"masks of 'w' have the shapes \(2,\) and \(1, 2\)"):
        Masks({"w": torch.ones(2, dtype=torch.bool)}).overlap(
            Masks({"w": torch.ones(1, 2, dtype=torch.bool)})
        )


def test_messages_of_load(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot read masks from .*masks.safetensors"):
        Masks.load(path)
    path.write_bytes(b"not a file")
    with pytest.raises(CheckpointError, match=r"cannot read masks from .*masks.safetensors"):
        Masks.load(path)
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(
        CheckpointError, match=r"not a mask file: its format is 'none'.* use `Masks.from_zeros`"
    ):
        Masks.load(path)


@pytest.mark.parametrize(
    "damage",
    [
        {"digest": "0" * 64},
        {"shapes": json.dumps({"w": [4, 4]})},
        {"shapes": json.dumps({"v": [3, 7]})},
        {"shapes": "[]"},
        {"shapes": "{"},
    ],
)
def test_a_damaged_file_is_recognized(tmp_path: Path, damage: dict[str, str]) -> None:
    path = tmp_path / "masks.safetensors"
    masks = Masks({"w": torch.ones(3, 7, dtype=torch.bool)})
    metadata = {"format": "espalier-masks-1", "shapes": json.dumps({"w": [3, 7]}), "digest": masks.digest}
    bits = torch.tensor([255, 255, 31], dtype=torch.uint8)
    save_file({"w": bits}, path, metadata)
    assert Masks.load(path) == masks
    save_file({"w": bits}, path, metadata | damage)
    with pytest.raises(CheckpointError, match="is damaged: its masks do not match their digest"):
        Masks.load(path)
