"""Which floating tensors are the scales, zero points and tables of a quantized weight beside them."""

import re
from collections.abc import Mapping

import torch

from espalier.checkpoint._base import REAL_DTYPES

QUANTIZATION = "quantization scales"

_INTEGERS = frozenset(
    getattr(torch, name)
    for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "uint4", "int4")
    if hasattr(torch, name)
)
# Codes of a weight, as against positions, counters, masks and lookup indices, which are integers too.
_CODES = re.compile(
    r"weight(?!_(mask|shape|index))|^W_q$|packed|blocks$|^codes|^Qidxs|^CB$|^kernel$|_quantized$|^_?(data|qdata|int_data)$"
)
_SCALES = re.compile(
    r"scale|zero|absmax|absmean|amax|quant|^SCB$|^SC[AB]|g_idx|codebook|centroid|^biases$|offset|smooth|"
    r"^S[UV]$|^(input|in|act|output)_(min|max)$|^(min|max)_val$|perm$|^code$"
)
_ONE_NUMBER = re.compile(r"_scale(_inv)?$|_zero_point$")


def quantization_scales(
    dtypes: Mapping[str, torch.dtype], shapes: Mapping[str, tuple[int, ...]]
) -> frozenset[str]:
    """Names of the floating tensors that belong to a quantized weight.

    A weight is quantized if it is float8, or has integers and the name of a weight (`qweight`, `W_q`,
    `weight_packed`). What stands under the same prefix is a scale if its name says so (`scales`, `zero`,
    `weight_scale_inv`), or its name continues that of the quantized weight after a dot (`weight.absmax`). A bias
    is none. A single number called a scale counts wherever the file holds a quantized weight (`k_scale`).

    Args:
        dtypes: of every tensor, by name.
        shapes: of every tensor whose shape is known, by name.
    """
    stems = {name for name in dtypes if _quantized(name, dtypes[name], shapes.get(name, ()))}
    prefixes = {name.rpartition(".")[0] for name in stems} | stems
    found = set()
    for name, dtype in dtypes.items():
        if dtype not in REAL_DTYPES or not stems:
            continue
        prefix, _, last = name.rpartition(".")
        beside = prefix in prefixes and bool(_SCALES.search(last))
        single = shapes.get(name) in ((), (1,)) and bool(_ONE_NUMBER.search(last))
        if beside or single or prefix in stems:
            found.add(name)
    return frozenset(found)


def _quantized(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    if dtype.is_floating_point:
        return dtype.itemsize == 1
    if dtype.is_complex or dtype == torch.bool:
        return False
    integers = dtype in _INTEGERS or dtype in (torch.qint8, torch.quint8, torch.qint32)
    return integers and len(shape) >= 1 and bool(_CODES.search(name.rpartition(".")[2]))
