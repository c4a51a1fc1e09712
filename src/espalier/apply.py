"""Keep pruned weights at zero while somebody else's loop trains the module.

`torch.nn.utils.prune` replaces the Parameter by a plain tensor computed in a hook, which is why a pruned
module there cannot be deep-copied, has other state-dict keys and twice the bytes. Here Parameter objects
and keys stay as they are: the optimizer's own hooks mask what goes in (gradients) and what comes out
(weights), so that momentum, Adam moments and weight decay have nothing to revive.
"""

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from espalier.masks import Masks, named_parameters, unwrapped


def hold(module: nn.Module, masks: Masks, optimizer: torch.optim.Optimizer | None = None) -> "Hold":
    """Prunes a module and keeps it pruned through training.

    Weights under the masks are set to +0.0 now. With an optimizer, every `step` then sees gradients without
    their pruned entries (also those of a closure), and leaves weights that are zero there; state of a
    parameter's shape (momentum, moments) is cleared there, now and after `optimizer.load_state_dict`.
    Weights loaded into the module by `load_state_dict` are pruned at once. Steps skipped by a gradient
    scaler change nothing.

        >>> import torch
        >>> from espalier.masks import Masks
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> with hold(model, Masks({"weight": torch.tensor([[True, False]])}), optimizer) as held:
        ...     model(torch.ones(3, 2)).sum().backward()
        ...     optimizer.step()
        ...     held.verify()
        >>> model.weight[0, 1].item()
        0.0

    A deep copy (or a pickle) of `(module, optimizer, hold)` together is held like the original. A copy of
    the module alone stays pruned, but training it needs a `hold` of its own, because optimizers do not copy
    their hooks. Old curvature pairs of LBFGS are not of a parameter's shape and are not cleared: hold
    before its first step. Modules whose parameters are sharded over processes (FSDP) are not supported;
    replicas (DDP) are.

    Args:
        module: any module; wrappers of `torch.compile` and data parallelism are seen through.
        masks: for some or all of its parameters.
        optimizer: what trains them; None to prune and verify only.

    Returns:
        The hold, which is also a context manager that releases itself.

    Raises:
        EspalierError: if a masked parameter is missing or has another shape; nothing is changed then.
    """
    masks.apply_(module)
    parameters = named_parameters(module)
    held = _Held({name: (parameters[name], masks[name].logical_not_()) for name in masks})
    return Hold(module, masks, optimizer, held)


class Hold:
    """What `hold` returns: verifies, re-applies, releases.

    Attributes:
        module: the module held.
        masks: what is kept.
        optimizer: what is watched, if anything.
    """

    def __init__(
        self, module: nn.Module, masks: Masks, optimizer: torch.optim.Optimizer | None, held: "_Held"
    ) -> None:
        self.module, self.masks, self.optimizer, self._held = module, masks, optimizer, held
        # Apart from those of the optimizer, because a copied module brings its hooks along and an optimizer
        # does not.
        self._module_handle = unwrapped(module).register_load_state_dict_post_hook(held.after_load)  # type: ignore[no-untyped-call]
        self._handles: list[Any] = []
        self._active = True
        self._watch()

    def apply_(self) -> None:
        """Sets what is pruned to zero again: weights, and the optimizer's state."""
        self._held.clear_weights()
        if self.optimizer is not None:
            self._held.clear_state(self.optimizer)

    def mask_gradient(self, name: str) -> None:
        """Sets the gradient of a parameter to zero where it is pruned, now: before clipping by norm, say.

        `step` does it for all by itself. A name without a mask is left alone.
        """
        self._held.clear_gradient(name)

    def verify(self) -> None:
        """Checks that every pruned entry is zero; see `Masks.verify`."""
        self.masks.verify(self.module)

    def release(self) -> None:
        """Removes every hook; weights stay as they are. Doing it twice is harmless."""
        self._active = False
        for handle in [self._module_handle, *self._handles]:
            handle.remove()
        self._handles = []

    def __enter__(self) -> "Hold":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __getstate__(self) -> dict[str, Any]:
        # Optimizers are copied and pickled without their hooks, so those are registered anew.
        return self.__dict__ | {"_handles": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._active:
            self._watch()

    def _watch(self) -> None:
        if self.optimizer is not None:
            self._held.clear_state(self.optimizer)
            self._handles = [
                self.optimizer.register_step_pre_hook(self._before_step),
                self.optimizer.register_step_post_hook(self._after_step),
                self.optimizer.register_load_state_dict_post_hook(self._after_load),
            ]

    # Bound methods, not closures: a deep copy of a bound method is bound to the copy.

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._held.clear_gradients()
        # A closure computes gradients anew inside the step. `args` begins with the optimizer itself.
        if len(args) > 1 and callable(args[1]):
            return (args[0], _Closure(args[1], self._held), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, kwargs | {"closure": _Closure(kwargs["closure"], self._held)}
        return None

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: Any) -> None:
        self._held.clear_weights()

    def _after_load(self, optimizer: torch.optim.Optimizer) -> None:
        self._held.clear_state(optimizer)


class _Held:
    """Parameters with the places where they are pruned; no step here waits for the device.

    Without reference to the optimizer, because the module holds it through a hook: a copy of the module
    alone must not copy the optimizer.
    """

    def __init__(self, pairs: dict[str, tuple[nn.Parameter, Tensor]]) -> None:
        self._pairs = {
            name: (parameter, removed.to(parameter.device)) for name, (parameter, removed) in pairs.items()
        }

    def clear_weights(self) -> None:
        with torch.no_grad():
            for parameter, removed in self._each():
                # Fills rather than multiplies: no -0.0, and no NaN from NaN * 0.
                parameter.masked_fill_(removed, 0.0)

    def clear_gradients(self) -> None:
        for name in self._pairs:
            self.clear_gradient(name)

    def clear_gradient(self, name: str) -> None:
        if name not in self._pairs:
            return
        parameter, removed = self._on_its_device(name)
        gradient = parameter.grad
        if gradient is None:
            return
        with torch.no_grad():
            if gradient.layout == torch.sparse_coo:  # of an embedding: whole rows by index
                gradient._values().masked_fill_(removed[gradient._indices()[0]], 0.0)
            else:
                gradient.masked_fill_(removed, 0.0)

    def clear_state(self, optimizer: torch.optim.Optimizer) -> None:
        with torch.no_grad():
            for parameter, removed in self._each():
                for key, value in optimizer.state.get(parameter, {}).items():
                    if key != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.masked_fill_(removed.to(value.device), 0.0)

    def after_load(self, module: nn.Module, incompatible: object) -> None:
        # `assign=True` puts other Parameter objects in place.
        parameters = named_parameters(module)
        self._pairs = {
            name: (parameters.get(name, parameter), removed)
            for name, (parameter, removed) in self._pairs.items()
        }
        self.clear_weights()

    def _each(self) -> list[tuple[nn.Parameter, Tensor]]:
        return [self._on_its_device(name) for name in self._pairs]

    def _on_its_device(self, name: str) -> tuple[nn.Parameter, Tensor]:
        parameter, removed = self._pairs[name]
        if removed.device != parameter.device:  # the module has moved
            removed = removed.to(parameter.device)
            self._pairs[name] = (parameter, removed)
        return parameter, removed


class _Closure:
    """A closure of `optimizer.step` whose gradients come out masked."""

    def __init__(self, closure: Any, held: _Held) -> None:
        self._closure, self._held = closure, held

    def __call__(self) -> Any:
        loss = self._closure()
        self._held.clear_gradients()
        return loss
