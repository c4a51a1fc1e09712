"""Masks as few bytes that are fast to read: a bitmask, or positions cut into low bits and a bitmap of high parts.

Pure functions on NumPy arrays; `docs/sparse-format.md` specifies what they write. A mask is written and read in
blocks, so that memory is bounded by a block whatever the size of the tensor. How a block is written follows from
how many of its entries are stored, so a block needs no header but that number.
"""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Packing = Literal["none", "zlib"]
Bytes = NDArray[np.uint8]
Index = NDArray[np.int64]
Read = Callable[[int], bytes]

BLOCK = 1 << 18
"""Entries of a block. Part of the format; large enough to hide the cost of a call, small enough for the cache."""

Block = tuple[int, Index]
"""Entries of a block, and the positions in it of those that are stored, ascending."""

_COUNT = 4  # bytes of the number of stored entries before each block
_SUM = 4  # bytes of the checksum after the last block
_SAMPLE = 1 << 13  # bytes on which deflate is tried, from two places
_WORTH = 32  # deflate must save one part in so many of mask and values: it costs more time than reading them
_STRATEGIES = ((6, zlib.Z_HUFFMAN_ONLY), (6, zlib.Z_RLE), (4, zlib.Z_DEFAULT_STRATEGY))
_RANKS: Index = np.arange(BLOCK)


class CodecError(ValueError):
    """The bytes are not what an encoder writes; the caller adds file and tensor."""


def sizes(entries: int) -> Iterator[int]:
    """Entries of each block of a tensor: `BLOCK`, and the rest."""
    for start in range(0, entries, BLOCK):
        yield min(BLOCK, entries - start)


def block_length(entries: int, stored: int) -> int:
    """Bytes of a block, without the number before it."""
    if stored in (0, entries):
        return 0
    if 4 * stored >= entries:
        return -(-entries // 8)
    low = low_bits(entries, stored)
    return low * -(-stored // 8) + -(-(stored + (entries - 1 >> low) + 1) // 8)


def low_bits(entries: int, stored: int) -> int:
    """Bits of a position that are written as they are: floor(log2(entries / stored))."""
    return (entries // stored).bit_length() - 1


def mask_length(entries: int, counts: list[int]) -> int:
    """Bytes of a mask before deflate; `counts` are the stored entries of each block."""
    blocks = zip(sizes(entries), counts, strict=True)
    return sum(_COUNT + block_length(size, stored) for size, stored in blocks) + _SUM


def count_blocks(flat: NDArray[Any]) -> list[int]:
    """Entries of each block that are not zero."""
    return [int(np.count_nonzero(flat[at : at + BLOCK])) for at in range(0, len(flat), BLOCK)]


def encode_blocks(flat: NDArray[Any], counts: list[int], values: NDArray[Any]) -> Bytes:
    """The mask of what is not zero; the entries themselves are written to `values`, in order.

    Args:
        flat: the entries, integers.
        counts: `count_blocks(flat)`.
        values: as many entries as are not zero, of the same dtype.
    """
    mask = np.empty(mask_length(len(flat), counts), np.uint8)
    at = done = 0
    for start, stored in zip(range(0, len(flat), BLOCK), counts, strict=True):
        block = flat[start : start + BLOCK]
        mask[at : at + _COUNT] = np.frombuffer(stored.to_bytes(_COUNT, "little"), np.uint8)
        at += _COUNT
        end = at + block_length(len(block), stored)
        kept = block != 0
        index = np.flatnonzero(kept)
        # "clip" because "raise" goes through a buffer; no index is out of range.
        np.take(block, index, out=values[done : done + stored], mode="clip")
        if end > at:
            mask[at:end] = _encode_block(kept, index)
        at, done = end, done + stored
    mask[at:] = np.frombuffer(zlib.crc32(mask[:at].data).to_bytes(_SUM, "little"), np.uint8)
    return mask


def _encode_block(kept: NDArray[np.bool_], index: Index) -> Bytes:
    entries, stored = len(kept), len(index)
    if 4 * stored >= entries:
        return np.packbits(kept, bitorder="little")
    low = low_bits(entries, stored)
    high = np.zeros(stored + (entries - 1 >> low) + 1, np.bool_)
    high[(index >> low) + _RANKS[:stored]] = True
    rest = index.astype(np.uint32)
    planes = [np.packbits((rest >> k & 1).astype(np.bool_), bitorder="little") for k in range(low)]
    return np.concatenate([*planes, np.packbits(high, bitorder="little")])


def deflate(mask: Bytes, others: int) -> bytes | None:
    """The mask as a zlib stream; None where that would save too little of mask and `others` (bytes) together.

    Random zeros gain nothing; patterns (N:M, whole channels) do. Tried on a sample first.
    """
    half = len(mask) // 2
    sample = (
        mask if len(mask) <= 2 * _SAMPLE else np.concatenate([mask[:_SAMPLE], mask[half : half + _SAMPLE]])
    )
    tried = [(len(_packed(sample, *how)), how) for how in _STRATEGIES]
    least, how = min(tried)
    saved = (1 - least / len(sample)) * len(mask)
    if saved * _WORTH < len(mask) + others:
        return None
    packed = _packed(mask, *how)
    return packed if (len(mask) - len(packed)) * _WORTH >= len(mask) + others else None


def _packed(raw: Bytes, level: int, strategy: int) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    return packer.compress(raw.data) + packer.flush()


def decode_mask(packing: Packing, length: int, entries: int, read: Read) -> Iterator[Block]:
    """Unpack a mask block by block.

    Nothing is allocated beyond a block: a stream that inflates to more than `length` bytes is refused, not
    inflated.

    Args:
        packing: "none" or "zlib".
        length: bytes of the mask, after inflating.
        entries: entries of the tensor.
        read: gives the next bytes of the mask as stored, at most as many as asked, b"" at its end.

    Raises:
        CodecError: the bytes are not such a mask.
    """
    stream = _Plain(length, read) if packing == "none" else _Inflate(length, read)
    found = 0
    try:
        for size in sizes(entries):
            number = stream.take(_COUNT)
            stored = int.from_bytes(number, "little")
            if stored > size:
                raise CodecError(f"a block of {size} entries claims to store {stored}")
            raw = stream.take(block_length(size, stored))
            found = zlib.crc32(raw, zlib.crc32(number, found))
            yield size, _decode_block(np.frombuffer(raw, np.uint8), size, stored)
        if int.from_bytes(stream.take(_SUM), "little") != found:
            raise CodecError("the checksum of the mask is wrong")
        stream.finish()
    except zlib.error as error:
        raise CodecError(f"the mask does not inflate ({error})") from None


def _decode_block(raw: Bytes, entries: int, stored: int) -> Index:
    if stored in (0, entries):
        return _RANKS[:stored]
    low = low_bits(entries, stored)
    plane = -(-stored // 8)
    plain = 4 * stored >= entries
    index = _ones(raw if plain else raw[low * plane :])
    if len(index) != stored:
        raise CodecError(f"a block says that it stores {stored} entries, its mask keeps {len(index)}")
    if not plain:
        index -= _RANKS[:stored]
        if int(index[-1]) > entries - 1 >> low:
            raise CodecError("a block keeps an entry after its last one")
        index <<= low
        index |= _planes(raw[: low * plane].reshape(low, plane), stored)
    # Low bits can only lead past the end of a block that is no multiple of their range.
    last = int(index[-1] if plain or not entries % (1 << low) else index.max())
    if last >= entries:
        raise CodecError("a block keeps an entry after its last one")
    return index


def _ones(bits: Bytes) -> Index:
    return np.flatnonzero(np.unpackbits(bits, bitorder="little").view(np.bool_))


def _planes(planes: Bytes, count: int) -> NDArray[Any]:
    """Numbers from their bits: row k holds bit k of each."""
    bits = np.unpackbits(planes, axis=1, count=count, bitorder="little")
    numbers: NDArray[Any] = _horner(bits[:8])
    for k in range(8, len(bits), 8):
        numbers = numbers | _horner(bits[k : k + 8]).astype(np.uint32) << k
    return numbers


def _horner(bits: Bytes) -> Bytes:
    """Up to 8 bits of each number as a byte. NumPy adds bytes with vector instructions, and shifts without."""
    numbers: Bytes = bits[-1].copy()
    for row in bits[-2::-1]:
        numbers += numbers
        numbers |= row
    return numbers


class _Stream(ABC):
    """The bytes of a mask, of known length, read piece by piece."""

    def __init__(self, length: int, read: Read) -> None:
        self._left = length
        self._read = read

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        self._left -= count
        if self._left < 0:
            raise CodecError("the mask is longer than it says")
        return self._take(count)

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._left or self._rest():
            raise CodecError("there are bytes after the mask")

    @abstractmethod
    def _take(self, count: int) -> bytes: ...

    @abstractmethod
    def _rest(self) -> bool: ...


class _Plain(_Stream):
    def _take(self, count: int) -> bytes:
        piece = self._read(count)
        while len(piece) < count:
            more = self._read(count - len(piece))
            if not more:
                raise CodecError("the mask ends early")
            piece += more
        return piece

    def _rest(self) -> bool:
        return bool(self._read(1))


class _Inflate(_Stream):
    def __init__(self, length: int, read: Read) -> None:
        super().__init__(length, read)
        self._stream = zlib.decompressobj()
        self._packed = b""

    def _take(self, count: int) -> bytes:
        out = bytearray()
        while len(out) < count:
            self._packed = self._packed or self._read(1 << 16)
            piece = self._stream.decompress(self._packed, count - len(out))
            if not piece and (not self._packed or self._stream.eof):
                raise CodecError("the mask ends early")
            self._packed = self._stream.unconsumed_tail
            out += piece
        return bytes(out)

    def _rest(self) -> bool:
        # Checking the checksum of the stream may take bytes that give none.
        while not self._stream.eof:
            self._packed = self._packed or self._read(1 << 16)
            if not self._packed or self._stream.decompress(self._packed, 1):
                return True
            self._packed = self._stream.unconsumed_tail
        return bool(self._stream.unused_data or self._read(1))
