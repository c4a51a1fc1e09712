import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from espalier._errors import CheckpointError
from espalier.checkpoint import open_checkpoint
from espalier.checkpoint.safetensors_file import DTYPES


def raw(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def row(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_tensors_come_back_bit_by_bit_in_file_order(tmp_path: Path) -> None:
    tensors = {
        "b": torch.tensor([1.5, -0.0, float("nan")]),
        "a": torch.arange(6, dtype=torch.int64).view(2, 3),
        "scalar": torch.tensor(2.0, dtype=torch.bfloat16),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.metadata == {"format": "pt"}
    assert set(checkpoint) == set(tensors) and len(checkpoint) == 5
    for name, tensor in tensors.items():
        assert same(checkpoint[name], tensor)
        assert checkpoint.infos[name].shape == tuple(tensor.shape)
    assert "nothing" not in checkpoint


def same(left: Tensor, right: Tensor) -> bool:
    assert left.dtype == right.dtype and left.shape == right.shape
    return left.contiguous().view(-1).view(torch.uint8).equal(right.contiguous().view(-1).view(torch.uint8))


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_dtype_is_carried(tmp_path: Path, name: str) -> None:
    tensor = torch.tensor([0, 1, 0, 1], dtype=torch.uint8).repeat(4).view(DTYPES[name])
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert same(checkpoint["x"], tensor)
    pieces = [piece.view(torch.uint8) for piece in checkpoint.chunks("x", 1)]
    assert same(torch.cat(pieces), tensor.view(torch.uint8))
    assert checkpoint.infos["x"].floating == (name in ("F64", "F32", "F16", "BF16"))


def test_chunks_are_consecutive_and_never_longer_than_asked(tmp_path: Path) -> None:
    save_file({"x": torch.arange(10.0).view(2, 5), "e": torch.empty(0)}, tmp_path / "x.safetensors")
    checkpoint = open_checkpoint(str(tmp_path / "x.safetensors"))
    assert [piece.tolist() for piece in checkpoint.chunks("x", 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert list(checkpoint.chunks("e")) == []
    with pytest.raises(ValueError, match="at least 1, got 0"):
        list(checkpoint.chunks("x", 0))


def test_an_unknown_name_suggests_near_ones(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(KeyError, match=r"no tensor 'conv2.weight'.*Did you mean 'conv1.weight'"):
        open_checkpoint(tmp_path / "x.safetensors")["conv2.weight"]


HEADERS = [
    (b"", 3, b"", "the header is not the JSON|truncated or not"),
    (
        {},
        1000,
        b"",
        r"claims 1000 bytes, but the file has 2 after the length .* truncated or not safetensors",
    ),
    ({}, 1 << 63, b"", "truncated or not safetensors"),
    (b'{"a":', None, b"", "not the JSON of a safetensors file"),
    (b"[1]", None, b"", "must be a JSON object, found list"),
    (b"[" * 50_000, None, b"", "not the JSON of a safetensors file"),
    (b"{\xff", None, b"", "not the JSON"),
    (b'{"a":1,"a":2}', None, b"", "'a' appears twice"),
    ({"__metadata__": {"a": 1}}, None, b"", "must map strings to strings"),
    ({"a": {"dtype": "F32"}}, None, b"", "'a' must have dtype, shape and data_offsets"),
    ({"a": row("F12")}, None, bytes(4), "'a' has dtype 'F12', which torch cannot hold; known: F64, F32"),
    ({"a": row(["F32"])}, None, bytes(4), "'a' has dtype"),
    ({"a": row("F4")}, None, bytes(4), "'a' has dtype 'F4'"),
    ({"a": row(shape=[-1])}, None, bytes(4), r"'a' has shape \[-1\]"),
    ({"a": row(shape=[True])}, None, bytes(4), r"'a' has shape \[True\]"),
    ({"a": row(shape=[1.0])}, None, bytes(4), r"'a' has shape \[1.0\]"),
    ({"a": row(shape=[1 << 62])}, None, bytes(4), r"'a' has shape"),
    ({"a": row(shape=[1 << 40, 1 << 40])}, None, bytes(4), r"needs \d+ bytes, its offsets \[0, 4\] span 4"),
    ({"a": row(offsets=[0])}, None, bytes(4), r"data_offsets \[0\]"),
    (
        {"a": row(offsets=[0, 3])},
        None,
        bytes(4),
        r"\[1\] and dtype F32 needs 4 bytes, its offsets \[0, 3\] span 3",
    ),
    ({"a": row(offsets=[4, 8])}, None, bytes(8), "leaves a hole before it; the file is corrupt"),
    ({"a": row(), "b": row()}, None, bytes(4), "'b' begins .* overlaps the tensor before it"),
    ({"a": row()}, None, bytes(3), "the tensors end at byte .*truncated: copy or download it again"),
    ({"a": row()}, None, bytes(5), "longer than its header says"),
]


@pytest.mark.parametrize(("header", "length", "data", "message"), HEADERS)
def test_a_corrupt_header_is_named(
    tmp_path: Path, header: object, length: int | None, data: bytes, message: str
) -> None:
    path = raw(tmp_path / "x.safetensors", header, data, length)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_file_of_a_few_bytes_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"abc")
    with pytest.raises(CheckpointError, match="3 bytes is too short"):
        open_checkpoint(tmp_path / "x.safetensors")


def test_a_file_cut_after_opening_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(100)}, path)
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="'x' needs 400 more bytes, but the file ended after 392"):
        checkpoint["x"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors: cannot be opened: No such file"):
        open_checkpoint(tmp_path / "nowhere.safetensors")


def test_what_is_no_checkpoint_says_how_it_begins(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"hello there, no weights here")
    with pytest.raises(CheckpointError, match=r"neither safetensors nor .*b'hello there, no '.* convert it"):
        open_checkpoint(tmp_path / "x.onnx")


def test_a_git_lfs_pointer_says_how_to_get_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.data
def test_the_prepared_resnet_reads_as_the_reference_reads_it(data_folder: Path) -> None:
    path = data_folder.parent / "checkpoints" / "resnet20-cifar10jpeg.safetensors"
    if not path.exists():
        pytest.skip(f"{path.name} is not beside the data")
    checkpoint, reference = open_checkpoint(path), load_file(path)
    assert checkpoint.keys() == reference.keys()
    assert all(same(checkpoint[name], reference[name]) for name in reference)
    kinds = [info.kind for info in checkpoint.infos.values()]
    assert (kinds.count("norm"), kinds.count("buffer"), kinds.count("weight")) == (38, 57, 21)


def test_a_tensor_of_more_than_two_to_the_31_entries(tmp_path: Path) -> None:
    entries = (1 << 31) + 3
    table = {"big": row(shape=[entries], offsets=[0, 4 * entries])}
    table["tail"] = row(offsets=[4 * entries, 4 * entries + 4])
    path = raw(tmp_path / "x.safetensors", table)
    data = path.stat().st_size
    with open(path, "r+b") as file:
        file.truncate(data + 4 * entries)  # a hole: nothing is written
        file.seek(0, 2)
        file.write(torch.tensor([7.0]).numpy().tobytes())
    checkpoint = open_checkpoint(path)
    assert checkpoint.infos["big"].entries == entries and checkpoint["tail"].item() == 7
    assert next(checkpoint.chunks("big", 4)).tolist() == [0, 0, 0, 0]
