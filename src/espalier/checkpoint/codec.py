"""Masks as few bytes: a bitmask or gaps between stored entries, packed with deflate.

Pure functions on NumPy arrays; `docs/sparse-format.md` specifies what they write. Both codes are read and
written in blocks, so that memory is bounded by a block whatever the size of the tensor.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Code = Literal["bits", "gaps"]
Bits = NDArray[np.uint8]

BLOCK = 1 << 20
"""Entries read or written at a time; a multiple of 8, so that blocks of the bitmask begin at whole bytes."""

Block = tuple[int, NDArray[np.int64]]
"""Entries of a block, and the positions in it of those that are stored."""

_SAMPLE = 1 << 16  # bytes of bitmask on which the codes are tried
_ESCAPE = 255
# Huffman-only wins on masks without structure (within 2 % of their entropy), matching on masks with (N:M, channels);
# a mask of half zeros does not shrink, and storing it is ten times faster than finding that out.
_STRATEGIES = (
    (0, zlib.Z_DEFAULT_STRATEGY),
    (6, zlib.Z_HUFFMAN_ONLY),
    (6, zlib.Z_RLE),
    (4, zlib.Z_DEFAULT_STRATEGY),
)
_STORED_BONUS = 0.99


class CodecError(ValueError):
    """The bytes are not what an encoder writes; the caller adds file and tensor."""


@dataclass(frozen=True)
class PackedMask:
    """A mask at rest.

    Args:
        code: "bits" or "gaps".
        length: bytes before deflate.
        data: the zlib stream.
    """

    code: Code
    length: int
    data: bytes


def encode_mask(bits: Bits, entries: int) -> PackedMask:
    """Pack a bitmask by the code and deflate strategy that win on a sample of it.

    Args:
        bits: ceil(entries / 8) bytes, one bit an entry, the first entry in the lowest bit; padding bits are
            0.
        entries: number of entries, at least 1.
    """
    sample = _sample(bits)
    raw: dict[Code, bytes] = {"bits": sample.tobytes(), "gaps": b"".join(_gaps(sample, len(sample) * 8))}
    code, how = min(itertools.product(raw, _STRATEGIES), key=lambda trial: _cost(raw[trial[0]], *trial[1]))
    pieces = iter([bits.tobytes()]) if code == "bits" else _gaps(bits, entries)
    return PackedMask(code, *_deflate(pieces, *how))


def _cost(raw: bytes, level: int, strategy: int) -> float:
    return len(_deflate(iter([raw]), level, strategy)[1]) * (1 if level else _STORED_BONUS)


def _sample(bits: Bits) -> Bits:
    if len(bits) <= 2 * _SAMPLE:
        return bits
    middle = len(bits) // 2
    return np.concatenate([bits[:_SAMPLE], bits[middle : middle + _SAMPLE]])


def _deflate(pieces: Iterator[bytes], level: int, strategy: int) -> tuple[int, bytes]:
    packer = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    length, packed = 0, []
    for piece in pieces:
        length += len(piece)
        packed.append(packer.compress(piece))
    return length, b"".join([*packed, packer.flush()])


def _gaps(bits: Bits, entries: int) -> Iterator[bytes]:
    """Zeros before each stored entry, and after the last; 255 is 255 zeros and goes on.

    The gap after the last entry makes the length of the code grow with the tensor, so that a few bytes cannot
    claim a tensor of any size.
    """
    last = -1
    for start in range(0, entries, BLOCK):
        block = np.unpackbits(bits[start // 8 : (start + BLOCK) // 8], bitorder="little")
        index = np.flatnonzero(block.view(np.bool_)) + start
        if not len(index):
            continue
        yield _escaped(np.diff(index, prepend=last) - 1)
        last = int(index[-1])
    yield _escaped(np.array([entries - 1 - last]))


def _escaped(gaps: NDArray[np.int64]) -> bytes:
    if gaps.max() < _ESCAPE:
        return gaps.astype(np.uint8).tobytes()
    escapes = gaps // _ESCAPE
    out = np.full(int(escapes.sum()) + len(gaps), _ESCAPE, np.uint8)
    out[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    return out.tobytes()


def decode_mask(code: str, length: int, entries: int, read: Callable[[int], bytes]) -> Iterator[Block]:
    """Unpack a mask in blocks of `BLOCK` entries (the last one shorter).

    Each block comes as its number of entries and the positions of the stored ones in it, ascending.

    Nothing is allocated beyond a block and what the stream really holds: a stream that inflates to more than
    `length` bytes is refused, not inflated.

    Args:
        code: "bits" or "gaps".
        length: bytes after inflating.
        entries: entries of the mask.
        read: gives the next bytes of the zlib stream, at most as many as asked, b"" at its end.

    Raises:
        CodecError: the stream is not such a mask.
    """
    inflate = _Inflate(length, read)
    blocks = _bit_blocks if code == "bits" else _gap_blocks
    try:
        yield from blocks(inflate, entries)
        inflate.finish()
    except zlib.error as error:
        raise CodecError(f"the mask does not inflate ({error})") from None


class _Inflate:
    """A zlib stream of known inflated length, read piece by piece."""

    def __init__(self, length: int, read: Callable[[int], bytes]) -> None:
        self.left = length
        self._read = read
        self._stream = zlib.decompressobj()
        self._packed = b""

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        out = bytearray()
        while len(out) < count:
            self._packed = self._packed or self._read(1 << 16)
            piece = self._stream.decompress(self._packed, count - len(out))
            if not piece and (not self._packed or self._stream.eof):
                raise CodecError("the mask ends early")
            self._packed = self._stream.unconsumed_tail
            out += piece
        self.left -= count
        return bytes(out)

    def finish(self) -> None:
        """Check that the stream ends here, checksum included; zero bytes may pad it."""
        while not self._stream.eof:
            self._packed = self._packed or self._read(1 << 16)
            if not self._packed or self._stream.decompress(self._packed, 1):
                raise CodecError("the mask goes on after its end, or its checksum is missing")
            self._packed = self._stream.unconsumed_tail
        rest = self._stream.unused_data
        while rest:
            if rest.strip(b"\0"):
                raise CodecError("there are bytes after the mask")
            rest = self._read(1 << 16)


def _bit_blocks(inflate: _Inflate, entries: int) -> Iterator[Block]:
    for start in range(0, entries, BLOCK):
        count = min(BLOCK, entries - start)
        raw = np.frombuffer(inflate.take((count + 7) // 8), np.uint8)
        index = np.flatnonzero(np.unpackbits(raw, bitorder="little").view(np.bool_))
        if len(index) and index[-1] >= count:
            raise CodecError("the padding after the last entry is not zero")
        yield count, index


def _gap_blocks(inflate: _Inflate, entries: int) -> Iterator[Block]:
    source = _indices(inflate, entries)
    ready = np.empty(0, np.int64)
    for start in range(0, entries, BLOCK):
        end = min(start + BLOCK, entries)
        while not len(ready) or ready[-1] < end:
            more = next(source, None)
            if more is None:
                break
            ready = np.concatenate([ready, more])
        cut = int(np.searchsorted(ready, end))
        yield end - start, ready[:cut] - start
        ready = ready[cut:]
    if next(source, None) is not None:
        raise CodecError("there are gaps after the last entry")


def _indices(inflate: _Inflate, entries: int) -> Iterator[NDArray[np.int64]]:
    position = 0  # zeros and stored entries passed so far
    while inflate.left:
        raw = np.frombuffer(inflate.take(min(inflate.left, BLOCK)), np.uint8)
        ends = raw != _ESCAPE
        passed = position + np.cumsum(raw, dtype=np.int64)
        index = passed if ends.all() else passed.take(np.flatnonzero(ends))
        index = index + np.arange(len(index))
        position = int(passed[-1]) + len(index)
        if not inflate.left:
            if not ends[-1] or index[-1] != entries:
                raise CodecError("the last gap does not lead to the last entry")
            index = index[:-1]
        if len(index) and index[-1] >= entries:
            raise CodecError("a gap leads past the last entry")
        yield index
