"""The linear layers of any module, pruned one after the other from the inputs that reach them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from espalier._errors import EspalierError, listing
from espalier._forward import modes
from espalier.checkpoint import open_checkpoint
from espalier.layerwise._base import NM, AbstractLayerRule, LayerInputs
from espalier.masks import Masks, unwrapped
from espalier.pruning import kept_entries
from espalier.selection import select

Progress = Callable[[int, int, str], None]
"""Called after every layer with layers done, layers in all, and the name of the parameter."""


def prune_linears(
    module: nn.Module,
    inputs: Iterable[Any],
    rule: AbstractLayerRule,
    target: float | NM,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    sequential: bool = True,
    progress: Progress | None = None,
) -> Masks:
    """Prune every linear layer of a module in place, each to the same sparsity or pattern.

    Sequentially, each layer sees the inputs it gets from the layers pruned before it, in the order in which they run:
    the module runs on all inputs once for each layer, up to that layer. This is finer than the papers' way, which
    is block by block with the inputs of a whole transformer block gathered at once, and knows nothing of blocks. In
    one pass, all layers see what they get in the dense network: as many times faster as there are layers, and every
    layer's statistics are held at the same time.

    Eval mode, without gradients; modes are restored. Beyond the module there are the inputs, the statistics and a
    few tensors of the size of one layer. Every row of a layer's input counts, also of padding: give inputs without.

        >>> import torch
        >>> from espalier.layerwise import SparseGPT, prune_linears
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> masks = prune_linears(model, [torch.randn(32, 8)], SparseGPT(), 0.5)
        >>> masks.sparsity, int((model[0].weight == 0).sum())
        (0.5, 64)

    Args:
        module: holds `nn.Linear` layers that are called; others (in attention modules of torch, say) must be excluded.
        inputs: a tensor, a tuple of arguments, or a mapping of keyword arguments each; on the module's device. Read
            into a list.
        rule: how a layer is pruned.
        target: a sparsity in [0, 1), exact in each layer, or a pattern.
        include: globs on full parameter names; only these.
        exclude: globs on full parameter names; not these.
        sequential: layer by layer, or all in one pass.
        progress: called after every layer.

    Returns:
        The masks of the pruned weights. Weights that are kept may have changed, if the rule does that.

    Raises:
        EspalierError: no linear layer, no inputs, a layer that the inputs never reach, weights or inputs that are not
            finite, a sparsity outside [0, 1), or a pattern that does not divide the inputs of a layer.
    """
    module = unwrapped(module)
    layers = _layers(module, include, exclude)
    _check(layers, target)
    given = list(inputs)
    if not given:
        raise EspalierError("layer-wise pruning needs calibration inputs, and there are none")
    masks: dict[str, Tensor] = {}
    with modes(module), torch.no_grad():
        module.eval()
        calls = _calls(module, given[0], layers)
        if missing := [name for name in layers if name not in calls]:
            raise EspalierError(
                f"the calibration inputs never reach {listing(map(repr, missing))}; leave them out with `exclude`"
            )
        groups = [[name] for name in calls] if sequential else [list(calls)]
        for group in groups:
            chosen = {name: layers[name] for name in group}
            alone = sequential and calls[group[0]] == 1
            statistics = _statistics(module, given, chosen, rule.reads_gram, stop=alone)
            for name in group:
                masks[name] = _prune(name, layers[name], statistics.pop(name), rule, target)
                if progress is not None:
                    progress(len(masks), len(layers), name)
    return Masks({name: masks[name] for name in layers})


def _layers(module: nn.Module, include: Sequence[str], exclude: Sequence[str]) -> dict[str, nn.Linear]:
    """The selected weights that belong to linear layers, by their full names."""
    owners = {
        f"{name}.weight" if name else "weight": layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    if not owners:
        raise EspalierError(
            "there is no nn.Linear layer in this module, and layer-wise pruning knows no other"
        )
    selected = select(open_checkpoint(module), "weights", include, exclude).names
    found = {name: owners[name] for name in selected if name in owners}
    if not found:
        raise EspalierError(
            f"no weight of a linear layer is selected (only {listing(selected)}); change `include` or `exclude`"
        )
    return found


def _check(layers: Mapping[str, nn.Linear], target: float | NM) -> None:
    for name, layer in layers.items():
        if isinstance(target, NM):
            if layer.in_features % target.m:
                raise EspalierError(
                    f"{name!r} has {layer.in_features} inputs, which cannot be cut into groups of {target.m}; "
                    "leave it out with `exclude`"
                )
        else:
            kept_entries(layer.weight.numel(), target)
        if not torch.isfinite(layer.weight).all():
            raise EspalierError(
                f"{name!r} holds weights that are NaN or infinite; repair it, or use `exclude`"
            )


class _Stop(Exception):
    """Everything that was asked of this forward pass has been seen."""


def _run(module: nn.Module, given: Any) -> None:
    if isinstance(given, Mapping):
        module(**given)
    else:
        module(*(given if isinstance(given, tuple) else (given,)))


@contextmanager
def _watching(layers: Mapping[str, nn.Linear], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Call `see` with the name and the input of a layer whenever it is called."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: see(name, args[0] if args else kwargs["input"])

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _calls(module: nn.Module, given: Any, layers: Mapping[str, nn.Linear]) -> dict[str, int]:
    """How often each layer is called for one input, in the order of the first call."""
    calls: dict[str, int] = {}

    def see(name: str, _: Tensor) -> None:
        calls[name] = calls.get(name, 0) + 1

    with _watching(layers, see):
        _run(module, given)
    return calls


def _statistics(
    module: nn.Module, inputs: Sequence[Any], layers: Mapping[str, nn.Linear], gram: bool, *, stop: bool
) -> dict[str, LayerInputs]:
    """What reaches the layers over all inputs; stops each forward pass at the only layer, if asked."""
    found = {name: _empty(layer, gram) for name, layer in layers.items()}

    def see(name: str, x: Tensor) -> None:
        found[name] = found[name].plus(x)
        if stop:
            raise _Stop

    with _watching(layers, see):
        for given in inputs:
            try:
                _run(module, given)
            except _Stop:
                continue
    return found


def _empty(layer: nn.Linear, gram: bool) -> LayerInputs:
    cols, device = layer.in_features, layer.weight.device
    squares = torch.zeros(cols, dtype=torch.float64, device=device)
    return LayerInputs(
        0, squares, torch.zeros(cols, cols, dtype=torch.float64, device=device) if gram else None
    )


def _prune(
    name: str, layer: nn.Linear, inputs: LayerInputs, rule: AbstractLayerRule, target: float | NM
) -> Tensor:
    """Prune one layer in place; what is kept."""
    if not torch.isfinite(inputs.squares).all():
        raise EspalierError(
            f"the calibration inputs of {name!r} are not finite; the layers before it have been pruned already, load "
            "the module anew"
        )
    weight = layer.weight.detach()
    work = weight if weight.dtype == torch.float64 else weight.float()
    pruned, kept = rule.prune(work, inputs, target)
    layer.weight.copy_(pruned)
    return kept
