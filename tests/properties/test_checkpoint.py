import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors.torch import load_file
from torch import Tensor

from espalier.checkpoint import open_checkpoint, rewrite, save_checkpoint, unpack
from espalier.checkpoint.codec import count_blocks, decode_mask, encode_blocks

INTEGERS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.float8_e5m2,
]


@st.composite
def tensor(draw: st.DrawFn) -> Tensor:
    """Any bits at all, most of them zero, in any shape; sometimes a transposed view."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(0, 30), max_size=3)))
    seed, zeros = draw(st.integers(0, 1 << 30)), draw(st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
    generator = torch.Generator().manual_seed(seed)
    integer = INTEGERS[dtype.itemsize]
    bits = torch.randint(0, 1 << 62, shape, generator=generator).to(integer)
    bits = bits.masked_fill(torch.rand(shape, generator=generator) < zeros, 0)
    value = bits.view(dtype)
    return value.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else value


states = st.dictionaries(st.text("ab.é_0", min_size=1, max_size=8), tensor(), min_size=1, max_size=5)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def same(left: Tensor, right: Tensor) -> bool:
    integer = INTEGERS[left.dtype.itemsize]
    return left.dtype == right.dtype and left.contiguous().view(integer).equal(
        right.contiguous().view(integer)
    )


@settings(deadline=None, max_examples=40)
@given(states, st.integers(1, 2000))
def test_what_is_written_is_read_bit_by_bit(state: dict[str, Tensor], entries: int) -> None:
    with folder() as at:
        save_checkpoint(at / "x.safetensors", state)
        checkpoint, plain = open_checkpoint(at / "x.safetensors"), load_file(at / "x.safetensors")
        assert checkpoint.keys() == state.keys() == plain.keys()
        for name, tensor in state.items():
            assert same(checkpoint[name], tensor) and same(plain[name], tensor)
            pieces = list(checkpoint.chunks(name, entries))
            assert all(0 < len(piece) <= entries for piece in pieces)
            bits = [piece.view(torch.uint8) for piece in pieces]
            whole = torch.cat([torch.empty(0, dtype=torch.uint8), *bits])
            assert whole.equal(tensor.contiguous().view(-1).view(torch.uint8))


@settings(deadline=None, max_examples=40)
@given(states, st.integers(1, 2000))
def test_sparse_stands_for_dense_byte_by_byte(state: dict[str, Tensor], entries: int) -> None:
    with folder() as at:
        source = open_checkpoint(state)
        rewrite(source, at / "dense.safetensors", lambda _, tensor: tensor)
        written = rewrite(source, at / "sparse.safetensors", lambda _, tensor: tensor, sparse=True)
        sparse = open_checkpoint(at / "sparse.safetensors")
        assert sparse.keys() == state.keys()
        assert all(same(sparse[name], tensor) for name, tensor in state.items())
        for name, tensor in state.items():
            assert written.tensors[name] <= tensor.nbytes
            assert sum(len(piece) for piece in sparse.chunks(name, entries)) == tensor.numel()
        unpack(at / "sparse.safetensors", at / "back.safetensors")
        assert (at / "back.safetensors").read_bytes() == (at / "dense.safetensors").read_bytes()


@settings(deadline=None, max_examples=40)
@given(states, st.booleans())
def test_torch_files_read_like_torch_load(state: dict[str, Tensor], nested: bool) -> None:
    with folder() as at:
        torch.save({"state_dict": state} if nested else state, at / "x.pt")
        checkpoint = open_checkpoint(at / "x.pt")
        assert checkpoint.keys() == state.keys()
        assert all(same(checkpoint[name], tensor) for name, tensor in state.items())


@settings(deadline=None, max_examples=60)
@given(arrays.arrays(np.bool_, st.integers(1, 3000)), st.integers(1, 50))
def test_masks_come_back(mask: np.ndarray, repeat: int) -> None:
    mask = np.repeat(mask, repeat)
    counts = count_blocks(mask.view(np.uint8))
    raw = encode_blocks(mask.view(np.uint8), counts, np.empty(sum(counts), np.uint8)).tobytes()
    ((count, index),) = decode_mask("none", len(raw), len(mask), BytesIO(raw).read)
    assert count == len(mask) and (index == np.flatnonzero(mask)).all()
