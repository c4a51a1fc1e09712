"""Mixed precision and channels-last "where they pay": what "auto" means on this machine, and under Accelerate."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier._forward import takes_channels_last
from espalier.train.training import Training


def native_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices itself (emulated bf16 is many times slower than fp32)."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        cpu = torch.cpu
        return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())
    return False


def use_bf16(training: Training, device: torch.device, mixed: str = "no") -> bool:
    """Resolve `precision` beside the mixed precision that Accelerate was started with ("no", "bf16", "fp16", ...).

    Raises:
        EspalierError: the two contradict each other.
    """
    if mixed != "no":
        if training.precision not in ("auto", mixed):
            raise EspalierError(
                f"the training asks for precision {training.precision}, and Accelerate was started with mixed "
                f"precision {mixed}: give one of them, or the same"
            )
        return mixed == "bf16"
    return training.precision == "bf16" or (training.precision == "auto" and native_bf16(device))


def autocast(accelerator: Accelerator, *, bf16: bool) -> AbstractContextManager[Any]:
    """Mixed precision as Accelerate was started with, or bf16 where `use_bf16` says so."""
    if accelerator.mixed_precision != "no":
        return accelerator.autocast()  # type: ignore[no-any-return]
    return torch.autocast(accelerator.device.type, torch.bfloat16, enabled=bf16)


def prepared(accelerator: Accelerator, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
    """Network and optimizer as Accelerate wraps them, without its mixed precision in the caller's `forward`.

    That would stay there after the training, and measure in it; `autocast` is for the steps alone.
    """
    patched = ("forward", "_original_forward")
    own = {name: vars(model)[name] for name in patched if name in vars(model)}
    wrapped, stepper = accelerator.prepare(model, optimizer)
    for name in patched:
        vars(model).pop(name, None)
    vars(model).update(own)
    return wrapped, stepper


def use_channels_last(training: Training, model: nn.Module, x: Tensor) -> bool:
    """Resolve `channels_last`: on for networks with 2-D convolutions, if they run on such inputs (tried on `x`).

    Measured per training step on a CPU with AVX2, fp32, one thread, contiguous and channels-last steps in turn:
    15 to 17 % less time for ResNet-20 (batch 128), 18 to 22 % for LeNet5 (256), 20 % for the digits CNN (128).
    """
    if training.channels_last is not None:
        return training.channels_last
    try:
        # The weights too: with one input channel the layout of the inputs alone says nothing.
        model.to(memory_format=torch.channels_last)
        return takes_channels_last(model, x)
    finally:
        model.to(memory_format=torch.contiguous_format)
