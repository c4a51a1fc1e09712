"""Train at masks that are there already."""

from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from espalier.masks import Masks
from espalier.methods._base import AbstractMethod, Plan
from espalier.methods.masked import MaskRule


@dataclass(frozen=True)
class Fixed(AbstractMethod):
    """Keeps what the masks keep, from before the first step to the end.

    Args:
        masks: for some or all parameters of the network.
    """

    masks: Masks

    def rule(self, model: nn.Module, plan: Plan) -> MaskRule:
        """A rule that holds these masks; the plan's sparsity has no say."""
        return _Held(self, model, plan)


class _Held(MaskRule):
    def __init__(self, method: Fixed, model: nn.Module, plan: Plan) -> None:
        super().__init__(model, plan)
        self.fixed = method.masks

    def begin(self, optimizer: Optimizer) -> None:
        self.hold(self.fixed, optimizer)

    def state_dict(self) -> dict[str, object]:
        return {}  # the masks are part of the run's specification

    def load_state_dict(self, state: dict[str, object], optimizer: Optimizer) -> None:
        self.hold(self.fixed, optimizer)
