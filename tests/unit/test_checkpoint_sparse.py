import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from espalier._errors import CheckpointError
from espalier.checkpoint import load_sparse, open_checkpoint, rewrite, save_checkpoint, unpack
from espalier.checkpoint.codec import (
    BLOCK,
    Block,
    CodecError,
    block_length,
    count_blocks,
    decode_mask,
    encode_blocks,
)
from espalier.checkpoint.safetensors_file import read_header
from espalier.checkpoint.sparse_format import Sparse, encode
from espalier.checkpoint.sparse_map import SPARSE_KEY
from espalier.checkpoint.stored import StoredCheckpoint

SPECIFICATION = Path(__file__).parents[2] / "docs" / "sparse-format.md"


def iid(entries: int, zeros: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(entries, generator=generator)
    return values.masked_fill(torch.rand(entries, generator=generator) < zeros, 0)


def keep(name: str, tensor: Tensor) -> Tensor:
    return tensor


def write(path: Path, tensors: dict[str, Tensor]) -> Path:
    rewrite(open_checkpoint(tensors), path, keep, sparse=True)
    return path


def runs_of(path: Path) -> Any:
    """The map of a sparse file."""
    return json.loads(zlib.decompress(load_file(path)["espalier.map"].numpy().tobytes()))


def as_bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def forge(path: Path, runs: Any, masks: bytes, head: dict[str, Any] | None = None, **tensors: Tensor) -> Path:
    """A sparse file written by hand."""
    found = {"m": as_bytes(masks), "t": as_bytes(zlib.compress(json.dumps(runs).encode()))} | tensors
    metadata = {"version": 3, "map": "t", "masks": "m"} | (head or {})
    save_file(found, path, {SPARSE_KEY: json.dumps(metadata)})
    return path


def reader(data: bytes) -> Any:
    import io

    return io.BytesIO(data).read


def unpacked(blocks: Iterator[Block]) -> np.ndarray:
    masks = []
    for count, index in blocks:
        masks.append(np.zeros(count, np.bool_))
        masks[-1][index] = True
    return np.concatenate(masks)


def stream(body: bytes) -> bytes:
    """A mask with its checksum."""
    return body + zlib.crc32(body).to_bytes(4, "little")


def block(stored: int, *rest: int) -> bytes:
    return stored.to_bytes(4, "little") + bytes(rest)


def entropy(zeros: float) -> float:
    return float(-sum(p * np.log2(p) for p in (zeros, 1 - zeros) if p))


@pytest.mark.parametrize(
    ("zeros", "slack"),
    [(0.5, 0.001), (0.75, 0.022), (0.9, 0.016), (0.95, 0.016), (0.969, 0.016), (0.99, 0.017), (0.999, 0.05)],
)
def test_a_file_is_close_to_values_and_entropy(tmp_path: Path, zeros: float, slack: float) -> None:
    weight = iid(500_000, zeros)
    stored = int(weight.count_nonzero())
    bound = stored * 4 + weight.numel() * entropy(1 - stored / weight.numel()) / 8
    size = write(tmp_path / "x.safetensors", {"w": weight}).stat().st_size
    assert size <= bound * (1 + slack) + 550  # header and map
    assert load_sparse(tmp_path / "x.safetensors")["w"].equal(weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_negative_zero_and_nan_payloads_come_back(tmp_path: Path, dtype: torch.dtype) -> None:
    weight = torch.zeros(30, 40, dtype=dtype)
    integers = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    weight.view(-1)[3] = -0.0
    weight.view(-1)[5] = 1.5
    weight.view(integers).view(-1)[7] = -1  # a NaN with every payload bit set
    weight.view(integers).view(-1)[9] = 1  # the smallest subnormal number
    path = write(tmp_path / "x.safetensors", {"w": weight})
    assert SPARSE_KEY in read_header(path).metadata
    back = load_sparse(path)["w"]
    assert back.dtype == dtype and back.view(integers).equal(weight.view(integers))
    assert read_header(path).tensors["espalier.0"].shape == (4,)


def test_what_would_not_shrink_stays_dense(tmp_path: Path) -> None:
    tensors = {
        "dense": torch.ones(1000),
        "small": torch.zeros(10),
        "scalar": torch.tensor(0.0),
        "empty": torch.empty(0),
        "whole": torch.zeros(1000, dtype=torch.int32),
        "zeros": torch.zeros(1000),
        "turned": iid(1200, 0.8).view(30, 40).t(),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    entries = {name: item for items in runs_of(path).values() for name, item in items.items()}
    assert entries.keys() == tensors.keys()  # small ones lie in runs whether sparse or not
    assert {name for name, item in entries.items() if len(item) > 1} == {"zeros", "turned"}
    back = open_checkpoint(path)
    assert all(back[name].equal(tensor) for name, tensor in tensors.items())
    assert SPARSE_KEY not in back.metadata
    assert torch.cat(list(back.chunks("turned", 7))).equal(tensors["turned"].flatten())


def test_unpack_gives_the_dense_file_byte_for_byte(tmp_path: Path) -> None:
    tensors = {"b": iid(5000, 0.9), "a": iid(4000, 0.7).double(), "n": torch.tensor(3)}
    tensors["h"] = iid(999, 0.5).half()
    rewrite(open_checkpoint(tensors), tmp_path / "dense.safetensors", keep, {"k": "v"})
    rewrite(open_checkpoint(tensors), tmp_path / "sparse.safetensors", keep, {"k": "v"}, sparse=True)
    unpack(tmp_path / "sparse.safetensors", tmp_path / "back.safetensors")
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "dense.safetensors").read_bytes()
    assert list(open_checkpoint(tmp_path / "sparse.safetensors")) == ["a", "n", "b", "h"]
    load_file(tmp_path / "sparse.safetensors")  # plain safetensors opens it


def test_two_of_four_costs_less_than_a_bit(tmp_path: Path) -> None:
    weight = torch.randn(100_000).view(-1, 4)
    weight.scatter_(1, weight.abs().argsort(1)[:, :2], 0)
    encoded = encode(weight.bfloat16())
    assert encoded is not None and encoded.packing == "zlib"
    assert encoded.mask.numel() * 8 < 0.67 * weight.numel()  # log2(6) / 4 = 0.646
    encoded = encode(weight)  # a fiftieth of the file is not worth the time
    assert encoded is not None and encoded.packing == "none"


def test_structured_masks_take_almost_nothing() -> None:
    weight = torch.ones(512, 512)
    weight[torch.rand(512) < 0.5] = 0
    encoded = encode(weight)
    assert encoded is not None and encoded.mask.numel() < 2000


AWKWARD = [1, 7, 8, 255, 256, 511, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]


@pytest.mark.parametrize("entries", AWKWARD)
def test_masks_of_awkward_lengths_come_back(entries: int) -> None:
    for kept in ([], [0], [entries - 1], range(0, entries, 3), range(0, entries, 9), range(entries)):
        mask = np.zeros(entries, np.bool_)
        mask[list(kept)] = True
        flat = mask * np.arange(1, entries + 1, dtype=np.int32)
        counts = count_blocks(flat)
        values = np.empty(sum(counts), np.int32)
        raw = encode_blocks(flat, counts, values).tobytes()
        assert (values == flat[mask]).all()
        for blocks in (
            decode_mask("none", len(raw), entries, reader(raw)),
            decode_mask("zlib", len(raw), entries, reader(zlib.compress(raw))),
        ):
            assert (unpacked(blocks) == mask).all()


def test_the_bytes_are_those_of_the_specification() -> None:
    flat = np.zeros(40, np.int32)
    flat[[0, 9, 21, 38]] = 1  # 40 / 4 = 10, so 3 low bits: 0, 1, 5, 6; high parts 0, 1, 2, 4
    mask = encode_blocks(flat, [4], np.empty(4, np.int32)).tobytes()
    planes = [0b0110, 0b1000, 0b1100]  # bit k of 0, 1, 5, 6, the first in the lowest bit
    high = [0b10010101, 0]  # ones at 0 + 0, 1 + 1, 2 + 2, 4 + 3; 4 + 4 + 1 bits
    assert mask == stream(block(4, *planes, *high))
    half = encode_blocks(np.array([1, 0, 0, 1, 1], np.int16), [3], np.empty(3, np.int16)).tobytes()
    assert half == stream(block(3, 0b11001))


CORRUPT = [
    (block(9), 8, "a block of 8 entries claims to store 9"),
    (block(2, 0b111), 8, "stores 2 entries, its mask keeps 3"),
    (block(1, 0b10000), 4, "keeps an entry after its last one"),
    (block(1, 0, 0, 0, 0, 0b100), 16, "keeps an entry after its last one"),
    (block(1, 1, 1, 1, 0b10), 12, "keeps an entry after its last one"),
    (block(1, 0, 0, 0, 0b100), 12, "keeps an entry after its last one"),
]


@pytest.mark.parametrize(("body", "entries", "message"), CORRUPT)
def test_corrupt_masks_are_refused(body: bytes, entries: int, message: str) -> None:
    data = stream(body)
    with pytest.raises(CodecError, match=message):
        list(decode_mask("none", len(data), entries, reader(data)))


def test_the_stream_itself_is_checked() -> None:
    data = stream(block(2, 0b101))

    def decode(packing: Any, data: bytes, length: int = len(data)) -> None:
        list(decode_mask(packing, length, 3, reader(data)))

    decode("none", data)
    decode("zlib", zlib.compress(data))
    with pytest.raises(CodecError, match="there are bytes after the mask"):
        decode("none", data + b"x")
    with pytest.raises(CodecError, match="there are bytes after the mask"):
        decode("zlib", zlib.compress(data) + b"x")
    with pytest.raises(CodecError, match="there are bytes after the mask"):
        decode("zlib", zlib.compress(data + b"x"))
    with pytest.raises(CodecError, match="there are bytes after the mask"):
        decode("none", data, len(data) + 1)
    with pytest.raises(CodecError, match="ends early"):
        decode("none", data[:-1])
    with pytest.raises(CodecError, match="ends early"):
        decode("zlib", zlib.compress(data[:-1]))
    with pytest.raises(CodecError, match="longer than it says"):
        decode("none", data, len(data) - 1)
    with pytest.raises(CodecError, match="does not inflate"):
        decode("zlib", b"x" + zlib.compress(data))
    with pytest.raises(CodecError, match=r"there are bytes|does not inflate"):
        decode("zlib", zlib.compress(data)[:-2])
    with pytest.raises(CodecError, match="checksum of the mask is wrong"):
        decode("none", data[:-5] + b"\6" + data[-4:])  # as many entries, others


MASK_OF_TWO = stream(block(2, 0b10, *[0] * 7, 0b11, *[0] * (block_length(1000, 2) - 9)))  # entries 0 and 1
LENGTH = len(MASK_OF_TWO)


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    runs = {"a": {"w": [[10, 100], 2, LENGTH], "b": [[3]]}, "h": {"s": [[]]}}
    path = tmp_path / "x.safetensors"
    half = torch.tensor([7.0]).half()
    forge(path, runs, MASK_OF_TWO, a=torch.arange(1.0, 6.0), h=half, x=torch.ones(2))
    back = open_checkpoint(path)
    assert back["w"].shape == (10, 100) and back["w"].flatten()[:3].tolist() == [1, 2, 0]
    assert back["w"].count_nonzero() == 2 and back["b"].tolist() == [3, 4, 5]
    assert back["s"].item() == 7 and back["s"].shape == () and back["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ([], "needed are a shape, and of sparse tensors entries stored"),
        ({}, "needed are a shape"),
        ([[1000], 2], "needed are a shape"),
        ([1000, 2, LENGTH], "needed are a shape"),
        ([[-1000], 2, LENGTH], "natural numbers"),
        ([[1000], True, LENGTH], "natural numbers"),
        ([[1000.0], 2, LENGTH], "natural numbers"),
        ([[1 << 50, 1 << 50], 2, LENGTH], "no tensor has so many entries"),
        ([[16], 2, LENGTH], "do not fit together"),
        ([[0], 2, LENGTH], "do not fit together"),
        ([[1 << 50], 2, LENGTH], "do not fit together"),
        ([[1000], 2, 3], "do not fit together"),
        ([[1000], 2, 1 << 40, LENGTH], "do not fit together"),
        ([[1000], 2, LENGTH, LENGTH], "does not inflate"),
        ([[1000], 2, LENGTH + 1], f"'m' has {LENGTH} bytes, the map needs {LENGTH + 1}"),
        ([[1000], 2, LENGTH - 1], f"'m' has {LENGTH} bytes, the map needs {LENGTH - 1}"),
        ([[1100], 2, LENGTH], "a block says that it stores 2 entries, its mask keeps"),
        ([[1000], 3, LENGTH], "'v' has 2 entries, its tensors in the map more"),
        ([[1000], 1, LENGTH], "'v' has 2 entries, its tensors in the map only 1"),
        ([[3]], "'v' has 2 entries, its tensors in the map more"),
        ([[2]], f"'m' has {LENGTH} bytes, the map needs 0"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, item: Any, message: str) -> None:
    path = forge(tmp_path / "x.safetensors", {"v": {"w": item}}, MASK_OF_TWO, v=torch.ones(2))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sparse(path)
    assert str(path) in str(caught.value)


RIGHT: Any = {"v": {"w": [[1000], 2, LENGTH]}}


@pytest.mark.parametrize(
    ("runs", "head", "tensors", "message"),
    [
        (
            RIGHT,
            {"version": 2},
            {},
            "version 2, this Espalier reads 3: unpack the file with the Espalier that",
        ),
        (RIGHT, {"version": 4}, {}, "version 4, this Espalier reads 3"),
        (RIGHT, {"map": "nowhere"}, {}, "needs the 1-D U8 tensor 'nowhere'"),
        (RIGHT, {"masks": None}, {}, "needs the 1-D U8 tensor None"),
        (RIGHT, {"map": "v"}, {}, "needs the 1-D U8 tensor 'v'"),
        (RIGHT, {"map": "m"}, {}, "the map 'm' does not inflate"),
        (RIGHT, {}, {"w": torch.ones(1)}, "'w' is there twice"),
        (
            {"v": {"w": [[1000], 2, LENGTH]}, "u": {"w": [[1]]}},
            {},
            {"u": torch.ones(1)},
            "'w' is there twice",
        ),
        ([], {}, {}, "must be an object of objects"),
        ({"v": []}, {}, {}, "must be an object of objects"),
        ({"x": {}}, {}, {}, "needs the 1-D tensor 'x'"),
        ({"v": {}}, {}, {"v": torch.ones(1, 2)}, "needs the 1-D tensor 'v'"),
        (RIGHT, {}, {"v": torch.ones(2, dtype=torch.int32)}, "1000 entries of torch.int32, 2 stored"),
    ],
)
def test_a_head_or_map_of_another_form_is_refused(
    tmp_path: Path, runs: Any, head: dict[str, Any], tensors: dict[str, Tensor], message: str
) -> None:
    path = forge(tmp_path / "x.safetensors", runs, MASK_OF_TWO, head, **{"v": torch.ones(2)} | tensors)
    with pytest.raises(CheckpointError, match=message):
        load_sparse(path)


def test_head_and_map_must_be_json_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for text, message in (
        ("{", "`espalier.sparse` is not JSON"),
        ("3", "must be an object with version"),
        ('{"version": 3, "masks": "m"}', "must be an object with version, map and masks"),
        ('{"map": "t", "masks": "m"}', "must be an object with version, map and masks"),
    ):
        save_file({"v": torch.ones(1)}, path, {SPARSE_KEY: text})
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)
    forge(path, RIGHT, MASK_OF_TWO, v=torch.ones(2))
    whole = load_file(path)["t"].numpy().tobytes()
    for data, message in (
        (zlib.compress(b"{"), "the map 't' is not JSON"),
        (whole[:-3], "the map 't' is cut, too long"),
        (whole + b"x", "followed by bytes"),
    ):
        forge(path, RIGHT, MASK_OF_TWO, v=torch.ones(2), t=as_bytes(data))
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)


def test_a_file_of_version_2_is_refused_with_what_to_do(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1000], "stored": 2, "packing": "none", "length": LENGTH}
    table = {"version": 2, "tensors": {"w": entry | {"mask": "m", "values": "v"}}}
    path = tmp_path / "x.safetensors"
    save_file({"m": as_bytes(MASK_OF_TWO), "v": torch.ones(2)}, path, {SPARSE_KEY: json.dumps(table)})
    with pytest.raises(
        CheckpointError, match="sparse format version 2, this Espalier reads 3: unpack the file"
    ):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("stored", "message"), [(1, "keeps more than the 1 entries"), (3, "keeps 2 entries, 3 are")]
)
def test_the_mask_must_keep_what_is_stored(tmp_path: Path, stored: int, message: str) -> None:
    runs = {"v": {"w": [[1000], stored, LENGTH]}}
    path = forge(tmp_path / "x.safetensors", runs, MASK_OF_TWO, v=torch.ones(stored))
    with pytest.raises(CheckpointError, match=message):
        load_sparse(path)


def test_bombs_are_read_in_pieces_and_refused_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = 1 << 44  # 64 TiB of zeros in a file of some kilobytes would be a lie about the mask
    length = 4 * (entries // BLOCK) + 4
    runs = {"v": {"w": [[entries], 0, length, 9000]}}
    path = forge(tmp_path / "x.safetensors", runs, bytes(9000), v=torch.ones(0))
    with pytest.raises(CheckpointError, match="do not fit together"):
        open_checkpoint(path)
    monkeypatch.setattr("espalier.checkpoint.sparse_map.HEADER_LIMIT", 1000)
    forge(path, {"v": {"w" * 2000: [[2]]}}, MASK_OF_TWO, v=torch.ones(2))
    with pytest.raises(CheckpointError, match="the map 't' is cut, too long"):
        open_checkpoint(path)


def test_small_tensors_share_rows_and_large_dense_ones_have_their_own(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": iid(4000, 0.9, i).view(40, 100) for i in range(30)}
    tensors |= {f"layers.{i}.bias": torch.randn(100) for i in range(30)}
    tensors |= {"count": torch.tensor(3), "table": torch.randn(64, 64)}
    path = write(tmp_path / "x.safetensors", tensors)
    assert set(load_file(path)) == {"espalier.0", "espalier.1", "table", "espalier.masks", "espalier.map"}
    assert load_file(path)["table"].equal(tensors["table"])  # any reader finds it
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header + read_header(path).tensors["espalier.map"].entries < 20 * len(tensors)
    back = open_checkpoint(path)
    assert all(back[name].equal(tensor) for name, tensor in tensors.items())
    nothing = write(tmp_path / "y.safetensors", {"a": torch.ones(3), "b": torch.ones(5000)})
    assert set(load_file(nothing)) == {"a", "b"}  # no run where nothing is sparse


@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.969, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_sparsity_and_dtype_comes_back(tmp_path: Path, zeros: float, dtype: torch.dtype) -> None:
    weight = iid(BLOCK + 1000, zeros).to(dtype).view(-1, 8)
    tensors = {"w": weight, "t": weight.t(), "slice": weight[::3, 1:7], "n": torch.zeros((), dtype=dtype)}
    path = write(tmp_path / "x.safetensors", tensors)
    back = open_checkpoint(path)
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype and back[name].equal(tensor)
        assert torch.cat([piece.clone() for piece in back.chunks(name, 1000)]).equal(tensor.reshape(-1))
    packed = SPARSE_KEY in read_header(path).metadata
    assert packed == (zeros > 0)
    load_file(path)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 16), (4, 32)])
def test_patterns_come_back(tmp_path: Path, pattern: tuple[int, int]) -> None:
    kept, group = pattern
    weight = iid(64 * 1024, 0).view(-1, group)
    weight.scatter_(1, weight.abs().argsort(1)[:, : group - kept], 0)
    for dtype in (torch.float32, torch.bfloat16):
        encoded = encode(weight.to(dtype))
        assert encoded is not None
        assert encoded.mask.nbytes * 8 < min(1.01, 1.2 * entropy(1 - kept / group)) * weight.numel()
        path = write(tmp_path / "x.safetensors", {"w": weight.to(dtype)})
        assert load_sparse(path)["w"].equal(weight.to(dtype))


def test_a_memory_map_sees_aligned_values(tmp_path: Path) -> None:
    tensors = {"a": iid(5001, 0.9), "h": iid(999, 0.5).half(), "d": iid(4001, 0.97).double()}
    path = write(tmp_path / "x.safetensors", tensors)
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, StoredCheckpoint)
    for name, tensor in tensors.items():
        stored = checkpoint.stored(name)
        assert isinstance(stored, Sparse)
        at = stored.values
        assert at.offset % tensor.itemsize == 0
        flat = tensor.numpy()
        mapped = np.memmap(path, flat.dtype, "r", at.offset, at.shape)
        assert (mapped == flat[flat != 0]).all()


def test_shards_are_sparse_one_by_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    shards = {"a.safetensors": {"w": iid(4000, 0.9)}, "b.safetensors": {"v": iid(3000, 0.5).bfloat16()}}
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    rewrite(open_checkpoint(folder), tmp_path / "small", keep, sparse=True)
    back = open_checkpoint(tmp_path / "small")
    for file, tensors in shards.items():
        assert SPARSE_KEY in read_header(tmp_path / "small" / file).metadata
        assert all(back[name].equal(tensor) for name, tensor in tensors.items())
    unpack(tmp_path / "small", tmp_path / "back")
    assert load_file(tmp_path / "back" / "a.safetensors")["w"].equal(shards["a.safetensors"]["w"])


def test_names_of_parts_never_collide(tmp_path: Path) -> None:
    tensors = {"w": iid(1000, 0.9), "espalier.0": iid(1000, 0.8), "espalier_.map": torch.ones(2000)}
    path = write(tmp_path / "x.safetensors", tensors)
    assert set(load_file(path)) == {"espalier__.0", "espalier_.map", "espalier__.masks", "espalier__.map"}
    back = load_sparse(path)
    assert back.keys() == tensors.keys() and all(back[name].equal(tensors[name]) for name in tensors)


def test_a_dense_file_loads_too(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", {"w": torch.ones(3)})
    assert load_sparse(tmp_path / "x.safetensors")["w"].tolist() == [1, 1, 1]


def test_unpacking_what_is_not_packed_is_a_copy_and_says_so(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "x.safetensors", {"w": torch.ones(3)})
    written = unpack(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert load_sparse(tmp_path / "y.safetensors")["w"].tolist() == [1, 1, 1]
    (note,) = written.notes
    assert "was packed; " in note and note.endswith("y.safetensors is a copy")
    packed = write(tmp_path / "p.safetensors", {"w": iid(5000, 0.9)})
    assert unpack(packed, tmp_path / "z.safetensors").notes == ()


def test_the_reader_of_the_specification_reads(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", SPECIFICATION.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {}
    exec(code[1], names)
    generator = np.random.default_rng(0)
    tensors = {
        "sparse": iid(30_000, 0.95).view(100, 300),
        "half": iid(5_000, 0.5).half(),
        "zeros": torch.zeros(300, 5),
        "long": iid(2 * BLOCK + 77, 0.97),
        "rows": torch.ones(900, 800).index_fill(0, torch.arange(300, 700), 0.0),
        "rare": torch.zeros(100_000).index_fill(0, torch.from_numpy(generator.integers(0, 100_000, 9)), 2.0),
        "large": torch.ones(4000),
        "dense": torch.ones(4),
        "n": torch.tensor(3),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    # as it is, dense in a run, sparse, sparse with a deflated mask
    assert {len(item) for items in runs_of(path).values() for item in items.values()} == {1, 3, 4}
    read = names["load"](path)
    assert read.keys() == tensors.keys()
    assert all((read[name] == tensor.numpy()).all() for name, tensor in tensors.items())


def test_positions_beyond_32_bits_come_back() -> None:
    entries, last = (1 << 31) + 16, (1 << 31) + 5
    raw = stream(block(0) * (last // BLOCK) + block(1, 1, 0, 1, 0, 0b1))
    assert block_length(16, 1) == 5 and block_length(BLOCK, 0) == 0
    start, found = 0, []
    for count, index in decode_mask("none", len(raw), entries, reader(raw)):
        found += [start + int(at) for at in index]
        start += count
    assert start == entries and found == [last]


def test_offsets_beyond_32_bits_are_computed_and_nothing_is_allocated(tmp_path: Path) -> None:
    rows = (1 << 31) // 64 + 1
    entries, blocks = rows * 64, -(-rows * 64 // BLOCK)
    mask = stream(block(0) * (blocks - 1) + block(1, 0, 0, 0, 1, 0, 0, 0b1))
    path = tmp_path / "x.safetensors"
    runs = {"v": {"w": [[rows, 64], 1, len(mask)]}}
    forge(path, runs, mask, v=torch.ones(1, dtype=torch.bfloat16))
    checkpoint = open_checkpoint(path)
    assert checkpoint.infos["w"].entries == entries > 1 << 31
    assert path.stat().st_size < 40_000
    whole = checkpoint["w"]  # 4 GiB of zeros that are never touched
    assert whole.shape == (rows, 64) and whole[-1].tolist() == [0.0] * 8 + [1.0] + [0.0] * 55
