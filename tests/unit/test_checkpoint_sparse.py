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
from espalier.checkpoint.sparse_format import SPARSE_KEY, encode, physical_names

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
    assert size <= bound * (1 + slack) + 800  # the header and its map
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
    assert read_header(path).tensors["w.espalier_values"].shape == (4,)


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
    assert {name for name in tensors if name not in read_header(path).tensors} == {"zeros", "turned"}
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


def forge(path: Path, **changes: object) -> Path:
    """A sparse file of one tensor whose map says something else."""
    write(path, {"w": iid(1000, 0.9)})
    header = read_header(path)
    table = json.loads(header.metadata[SPARSE_KEY])
    for key, value in changes.items():
        if key in table:
            table[key] = value
        else:
            table["tensors"]["w"][key] = value
    tensors = load_file(path)
    tensors["w.espalier_mask"] = tensors["w.espalier_mask"].clone()
    save_file(tensors, path, {SPARSE_KEY: json.dumps(table)})
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "version 3, this Espalier reads 2: unpack the file with the Espalier that wrote it"),
        ({"tensors": []}, "must be an object with version and tensors"),
        ({"tensors": {"w": {}}}, "'w' must have exactly dtype, shape, stored"),
        ({"extra": 1}, "'w' must have exactly"),
        ({"dtype": 3}, "must be strings"),
        ({"dtype": "I32"}, "has dtype 'I32'"),
        ({"dtype": "F64"}, r"needs 'w.espalier_values' with \d+ entries of F64"),
        ({"packing": "runs"}, "packing 'runs'"),
        ({"shape": [-1000]}, "must be natural numbers"),
        ({"shape": 1000}, "must be natural numbers"),
        ({"shape": [500]}, "do not fit together"),
        ({"shape": [0]}, "do not fit together"),
        ({"packing": "zlib"}, "does not inflate"),
        ({"shape": [1 << 20]}, "the mask is longer than it says"),
        ({"shape": [1 << 50]}, "do not fit together"),
        ({"shape": [1 << 50, 1 << 50]}, "do not fit together"),
        ({"stored": 3}, "which is not in the file"),
        ({"length": 3}, "do not fit together"),
        ({"length": 1 << 40}, "do not fit together"),
        ({"mask": "nowhere"}, "needs the 1-D U8 tensor 'nowhere'"),
        ({"mask": "w.espalier_values"}, "needs the 1-D U8 tensor"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = forge(tmp_path / "x.safetensors", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_sparse(path)
    assert str(path) in str(caught.value)


def test_a_map_must_be_json_and_name_each_part_once(tmp_path: Path) -> None:
    path = forge(tmp_path / "x.safetensors")
    header, tensors = read_header(path), load_file(path)
    save_file(tensors, path, {SPARSE_KEY: "{"})
    with pytest.raises(CheckpointError, match="is not JSON"):
        open_checkpoint(path)
    table = json.loads(header.metadata[SPARSE_KEY])
    table["tensors"]["v"] = table["tensors"]["w"]
    save_file(tensors, path, {SPARSE_KEY: json.dumps(table)})
    with pytest.raises(CheckpointError, match="share their mask or values"):
        open_checkpoint(path)
    save_file(tensors | {"w": torch.ones(1)}, path, dict(header.metadata))
    with pytest.raises(CheckpointError, match="'w' is there twice, dense and sparse"):
        open_checkpoint(path)


MASK_OF_TWO = [*[0] * 8, 0b11, *[0] * (block_length(1000, 2) - 9)]  # entries 0 and 1


@pytest.mark.parametrize(
    ("stored", "message"), [(1, "keeps more than the 1 entries"), (3, "keeps 2 entries, 3 are")]
)
def test_the_mask_must_keep_what_is_stored(tmp_path: Path, stored: int, message: str) -> None:
    mask = torch.frombuffer(bytearray(stream(block(2, *MASK_OF_TWO))), dtype=torch.uint8)
    entry = {"dtype": "F32", "shape": [1000], "stored": stored, "packing": "none", "length": len(mask)}
    table = {"version": 2, "tensors": {"w": entry | {"mask": "m", "values": "v"}}}
    path = tmp_path / "x.safetensors"
    save_file({"m": mask, "v": torch.ones(stored)}, path, {SPARSE_KEY: json.dumps(table)})
    with pytest.raises(CheckpointError, match=message):
        load_sparse(path)


def test_a_bomb_is_read_in_pieces_and_refused_whole(tmp_path: Path) -> None:
    entries = 1 << 44  # 64 TiB of zeros in a file of some kilobytes would be a lie about `length`
    length = 4 * (entries // BLOCK) + 4
    table = {"dtype": "F32", "shape": [entries], "stored": 0, "packing": "zlib", "length": length}
    path = tmp_path / "x.safetensors"
    save_file(
        {"m": torch.ones(9000, dtype=torch.uint8), "v": torch.ones(0)},
        path,
        {SPARSE_KEY: json.dumps({"version": 2, "tensors": {"w": table | {"mask": "m", "values": "v"}}})},
    )
    with pytest.raises(CheckpointError, match="do not fit together"):
        open_checkpoint(path)


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
    table = json.loads(read_header(path).metadata[SPARSE_KEY])["tensors"]
    for name, tensor in tensors.items():
        at = read_header(path).tensors[table[name]["values"]]
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
    assert physical_names("w", {"w.espalier_mask"}) == ("w.espalier__mask", "w.espalier__values")
    tensors = {"w": iid(1000, 0.9), "w.espalier_mask": iid(1000, 0.8), "w.espalier_values": torch.ones(2)}
    back = load_sparse(write(tmp_path / "x.safetensors", tensors))
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
        "dense": torch.ones(4),
        "n": torch.tensor(3),
    }
    path = write(tmp_path / "x.safetensors", tensors)
    table = json.loads(read_header(path).metadata[SPARSE_KEY])
    assert {entry["packing"] for entry in table["tensors"].values()} == {"none", "zlib"}
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
    entry = {"dtype": "BF16", "shape": [rows, 64], "stored": 1, "packing": "none", "length": len(mask)}
    table = {"version": 2, "tensors": {"w": entry | {"mask": "m", "values": "v"}}}
    save_file(
        {"m": torch.frombuffer(bytearray(mask), dtype=torch.uint8), "v": torch.ones(1, dtype=torch.bfloat16)},
        path,
        {SPARSE_KEY: json.dumps(table)},
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.infos["w"].entries == entries > 1 << 31
    assert path.stat().st_size < 40_000
    whole = checkpoint["w"]  # 4 GiB of zeros that are never touched
    assert whole.shape == (rows, 64) and whole[-1].tolist() == [0.0] * 8 + [1.0] + [0.0] * 55
