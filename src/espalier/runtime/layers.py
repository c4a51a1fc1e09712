"""Linear and Conv2d with a sparse product for inference, and their own dense product for everything else."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.runtime.kernels import AbstractKernel

Layout = Literal["rows", "columns"]


@dataclass(frozen=True)
class Choice:
    """How a layer is computed.

    Args:
        kernel: name of the kernel.
        tile: positions (tokens, pixels) that go through the kernel at once, about; what fits in the caches is fast.
        layout: how a linear layer leaves its result in memory. "rows" is torch's way, features last. "columns"
            is a view of feature-major memory: the same numbers at the same indices, and if the next sparse
            layer meets it with only pointwise functions between, nothing is ever transposed.
        shared: linear layers with the same word here get the very same input (query, key and value): the first
            that is called computes all of them in one product. "" for a layer of its own.
    """

    kernel: str
    tile: int
    layout: Layout = "rows"
    shared: str = ""


class _Sparse(nn.Module):
    """What the two layers share: the packed weight, and when it may be used."""

    weight: Tensor
    kernel: AbstractKernel
    packed: Any
    choice: Choice
    _origin: tuple[Tensor, int] | None
    """The memory that was packed, held so that no other weight can get it, and how often it had been written to."""

    @classmethod
    def of(cls, layer: nn.Module, kernel: AbstractKernel, choice: Choice) -> Self:
        """Take over a dense layer: parameters, hooks, mode. The layer given must not be used any more."""
        new = cls.__new__(cls)
        new.__dict__.update(layer.__dict__)
        new.kernel, new.choice = kernel, choice
        with torch.inference_mode(False), torch.no_grad():
            new.packed = kernel.pack(new.weight.detach().reshape(new.weight.shape[0], -1))
        new._origin = _origin(new.weight)
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Copies and files: the weight of the copy is another one, and counts its writes anew."""
        return {**self.__dict__, "_origin": self._fresh()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._origin = _origin(self.weight) if state["_origin"] else None

    def _fresh(self) -> bool:
        """Whether the weight is still the one that was packed."""
        if self._origin is None:
            return False
        packed, version = self._origin
        weight = self.weight
        return _version(weight) == version and weight.data_ptr() == packed.data_ptr()

    def _usable(self, x: Tensor) -> bool:
        """Inference of float32 on the CPU with the weights that were packed; everything else stays dense."""
        if self.training or x.dtype is not torch.float32 or x.device.type != "cpu" or not x.numel():
            return False
        if torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad):
            return False
        return self._fresh() and not torch.is_autocast_enabled("cpu")


class SparseLinear(_Sparse, nn.Linear):
    """A linear layer whose weight is mostly zeros.

    Same parameters, same state dict, same numbers within rounding. In training mode, for an input or weight
    that requires a gradient, under autocast, for other dtypes and devices, and once the weight has been
    replaced or written to (where torch counts that: not for tensors made in inference mode), it is the dense
    layer it was.
    """

    siblings: "Siblings | None" = None
    member: int = 0

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        if not self._usable(input):
            return super().forward(input)
        if self.siblings is not None:
            return self.siblings.output(self.member, input)
        return self.sparse(input)

    def sparse(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), whatever the strides of the input."""
        bias = None if self.bias is None else self.bias.detach()
        return linear(x, self.kernel, self.packed, bias, self.out_features, self.choice)


class Siblings:
    """Linear layers that get the very same input, computed by the first of them that is called.

    The others find their part by the identity of the input tensor, and by its version where torch counts it
    (not in inference mode). A model that writes into the input between two of them must not be given this;
    the comparison of outputs on the example sees that.

    Args:
        layers: all with the same kernel and tile, none with a bias or all of them.
    """

    def __init__(self, layers: Sequence[SparseLinear]) -> None:
        first = layers[0]
        self.kernel, self.choice = first.kernel, first.choice
        self.sizes = [layer.out_features for layer in layers]
        with torch.inference_mode(False), torch.no_grad():
            self.packed = self.kernel.pack(torch.cat([layer.weight.detach() for layer in layers]))
            biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
            self.bias = torch.cat(biases) if biases else None
        self._waiting: tuple[Any, int, dict[int, Tensor]] | None = None

    def output(self, member: int, x: Tensor) -> Tensor:
        """The output of one of the layers."""
        version = _version(x)
        waiting = self._waiting
        if waiting is not None and waiting[0]() is x and waiting[1] == version and member in waiting[2]:
            parts = waiting[2]
        else:
            whole = linear(x, self.kernel, self.packed, self.bias, sum(self.sizes), self.choice)
            parts = dict(enumerate(torch.split(whole, self.sizes, dim=-1)))
            self._waiting = (weakref.ref(x), version, parts)
        found = parts.pop(member)
        if not parts:
            self._waiting = None
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_waiting": None}


def _origin(weight: Tensor) -> tuple[Tensor, int]:
    return weight.detach(), _version(weight)


def _version(tensor: Tensor) -> int:
    """How often a tensor was written to; of tensors made in inference mode torch does not say."""
    return -1 if tensor.is_inference() else tensor._version


def linear(
    x: Tensor, kernel: AbstractKernel, packed: Any, bias: Tensor | None, outputs: int, choice: Choice
) -> Tensor:
    """A sparse linear map: (..., inputs) -> (..., outputs), whatever the strides of the input.

    Args:
        x: float32.
        kernel: that packed the weight.
        packed: the weight (outputs, inputs).
        bias: (outputs,), or None.
        outputs: features of the result.
        choice: tile and layout.
    """
    by_last = x.ndim > 2 and (choice.layout == "columns" or _is_flipped(x))
    lead, t = (x.shape[:-2], x.shape[-2]) if by_last else (x.shape[:0], x.numel() // x.shape[-1])
    blocks = x.reshape(-1, t, x.shape[-1])
    flipped = choice.layout == "columns"
    column = None if bias is None else bias.unsqueeze(1)
    out = None
    for b, start, stop in _tiles(len(blocks), t, choice.tile):
        found = kernel.matmul(packed, blocks[b, start:stop].t().contiguous())
        if stop - start == len(blocks) * t:
            found = found if column is None else found.add_(column)
            out = found if flipped else found.t().contiguous()
            break
        if out is None:
            out = x.new_empty((len(blocks), outputs, t) if flipped else (len(blocks), t, outputs))
        if not flipped:
            out[b, start:stop].copy_((found if column is None else found.add_(column)).t())
        elif column is None:
            out[b, :, start:stop].copy_(found)
        else:
            torch.add(found, column, out=out[b, :, start:stop])
    assert out is not None
    if not flipped:
        return out.view(*x.shape[:-1], outputs)
    return out.view(outputs) if x.ndim == 1 else out.view(*lead, outputs, t).mT


class SparseConv2d(_Sparse, nn.Conv2d):
    """A convolution whose weight is mostly zeros: 1x1 directly, k x k by unfolding a few rows of pixels at a time.

    Unfolding the whole image would write k² times its size to memory and cost as much as the dense
    convolution; the windows of a few rows stay in the cache. When it stays dense, see `SparseLinear`.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102
        usable = input.ndim == 4 and self._usable(input)
        return self.sparse(input) if usable else super().forward(input)

    def sparse(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W'), contiguous."""
        windows = self._windows(x)  # (B, C, kh, kw, H', W'), a view
        b, c, kh, kw, h, w = windows.shape
        bias = None if self.bias is None else self.bias.detach().view(-1, 1, 1, 1)
        out = x.new_empty(b, self.out_channels, h, w)
        images, rows = tile_of(self.choice.tile, h, w)
        for i in range(0, b, images):
            for y in range(0, h, rows):
                part = windows[i : i + images, ..., y : y + rows, :]
                n, g = part.shape[0], part.shape[4]
                table = part.permute(1, 2, 3, 0, 4, 5).reshape(c * kh * kw, n * g * w)
                found = self.kernel.matmul(self.packed, table.contiguous()).view(-1, n, g, w)
                place = out[i : i + n, :, y : y + g].transpose(0, 1)
                if bias is None:
                    place.copy_(found)
                else:
                    torch.add(found, bias, out=place)
        return out

    def _windows(self, x: Tensor) -> Tensor:
        (kh, kw), (sh, sw), (dh, dw) = self.kernel_size, self.stride, self.dilation
        around = _padding(self)
        x = F.pad(x, around) if any(around) else x.contiguous()
        b, c, height, width = x.shape
        h = (height - dh * (kh - 1) - 1) // sh + 1
        w = (width - dw * (kw - 1) - 1) // sw + 1
        of_b, of_c, of_h, of_w = x.stride()
        return x.as_strided(
            (b, c, kh, kw, h, w), (of_b, of_c, dh * of_h, dw * of_w, sh * of_h, sw * of_w), x.storage_offset()
        )


def tile_of(tile: int, h: int, w: int) -> tuple[int, int]:
    """How many images and how many of their `h` rows of `w` pixels make about `tile` positions."""
    rows = min(h, max(1, tile // w))
    return (max(1, tile // (h * w)) if rows == h else 1), rows


def supported(layer: nn.Module) -> str | None:
    """None if there is a sparse version of a layer, else why not."""
    if type(layer) is nn.Linear:
        return None
    if type(layer) is nn.Conv2d:
        if layer.groups != 1:
            return f"{layer.groups} groups"
        return None if layer.padding_mode == "zeros" else f"padding mode {layer.padding_mode}"
    return f"a {type(layer).__name__}"


def sparse_version(layer: nn.Module, kernel: AbstractKernel, choice: Choice) -> SparseLinear | SparseConv2d:
    """The sparse layer that takes the place of a supported one."""
    kind = SparseLinear if isinstance(layer, nn.Linear) else SparseConv2d
    return kind.of(layer, kernel, choice)


def _padding(layer: nn.Conv2d) -> list[int]:
    """Left, right, top, bottom, as `torch.nn.functional.pad` takes them."""
    if layer.padding == "valid":
        return [0, 0, 0, 0]
    if layer.padding == "same":
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size)]
        return [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    assert isinstance(layer.padding, tuple)
    down, across = layer.padding
    return [int(across), int(across), int(down), int(down)]


def _is_flipped(x: Tensor) -> bool:
    """Whether the last two axes lie in memory the other way around, as a layer with layout "columns" leaves them."""
    return min(x.shape[-2:]) > 1 and x.mT.is_contiguous()


def _tiles(blocks: int, length: int, tile: int) -> Iterator[tuple[int, int, int]]:
    for b in range(blocks):
        for start in range(0, length, tile):
            yield b, start, min(start + tile, length)
