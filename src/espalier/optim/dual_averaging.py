"""The optimizer: latent + base step + threshold law + prox."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from espalier._errors import EspalierError
from espalier.optim import _members, _saving
from espalier.optim._batches import batches, kernel, start
from espalier.optim._groups import BUFFERS, Group, named, prunes, ridge, threshold_of, tick
from espalier.optim._members import Member
from espalier.optim._sharding import local, sum_rows
from espalier.optim.laws import AbstractPathLaw, Law, TargetSparsity
from espalier.optim.options import check_gradient, check_group, check_parameter, plain_options
from espalier.optim.report import MaskReport, TensorMask
from espalier.optim.stopping import Settled

_GUARD_EVERY = 32  # steps between two searches of the ceilings that `min_kept` sets


class DualAveraging(Optimizer):
    r"""Dual averaging with a soft threshold: gRDA, RDA, target sparsity and proximal SGD are instances.

    The base step moves a latent v that starts as a copy of the weights and is never thresholded itself; the
    weights are its soft threshold, so a pruned weight can come back as long as its latent moves.

    .. math::
        d_n &= \text{direction of the base step from } \nabla f(w_{n-1}) \\
        v_n &= v_{n-1} - \gamma_n d_n, \quad v_0 = w_0 \\
        w_n &= S_{g_n}(v_n) = \mathrm{sign}(v_n) (|v_n| - g_n)_+

    With a plain gradient step and `PowerLaw` this is Algorithm 2 of arXiv 2006.09358. With c = 0 it is
    `torch.optim.SGD`, bit for bit on the default and foreach paths.

    **Base steps.** `momentum` (heavy ball, or Nesterov) keeps the theory's limit with the rate gamma / (1 -
    momentum), which is the rate that the laws see. `betas` makes Adam-type steps: they move along
    preconditioned directions, so "flat" is measured in their metric and the paper's theorem does not cover
    them; the laws see `lr` itself.

    **Weight decay** (`decay`):
    "coupled" adds weight_decay * w to the gradient. The theorem then holds for the loss with the l2 penalty, whose
    Hessian has no exact null space: directions count as flat only while weight_decay * t is small.
    "decoupled" multiplies the latent by 1 - lr * weight_decay each step. The latent forgets w_0, and the theorem fails:
    with a long memory the path is no longer the SGD path minus a threshold.
    "prox" moves the penalty into the prox (elastic net): w = S_g(v) / (1 + weight_decay * t), t the sum of the rates.
    The latent still sums gradients alone, so the identities of dual averaging hold for it. For parameters
    without threshold, for `Lasso`, and once the mask is fixed it is the proximal step of the same penalty, / (1 +
    gamma_n * weight_decay). Both t and gamma_n are effective rates, lr / (1 - momentum).

    **Scope.** Parameters with fewer than two dimensions (norms, biases) take the base step alone, without a
    latent; `scope="paper"` thresholds all; a group's `prune` (True or False) overrides both.

    **Clock.** Threshold, time and step count belong to a group and advance at every `step`, also for
    parameters whose gradient is None; those stay put, and at their next gradient meet the group's threshold,
    like all others. A group added later starts its own clock at zero: it is not thresholded by a history that
    it does not have. Groups with equal `TargetSparsity` laws form one pool with the first group's clock.

    **Freezing.** `freeze` fixes the zeros: latents are dropped, weights continue from their (shrunk) values
    under the base step, and the threshold stands still. A target freezes by itself at its last step, because
    no soft threshold keeps an exact count while the latents move. Parameters that do not train then (`requires_grad`
    is False) stand outside: they are not counted, not pruned, and dense if they are let go later.

    **Memory.** Per thresholded entry one latent (float32, or float64 for float64 parameters), and what the
    base step needs; nothing but the base step's for others. bfloat16 and float16 parameters always keep a
    float32 copy that takes the steps. After freezing: a bool instead of the latent. float16 has no number below 3e-8:
    kept weights that small are stored as zeros, a few in a million; keep float32 parameters under autocast where the
    count must be exact.

    **NaN.** A NaN gradient enters latent and weight of its entry, as in SGD, and stays visible there (the
    prox of NaN is NaN, never 0); other entries are not touched. Skip such steps before they are taken, as
    `GradScaler` does.

    Weights that are overwritten from outside after the first step are overwritten back from the latent: call
    `restart` then. Under FSDP2 the state has the parameters' shards and placements; thresholds are global.

    Args:
        params: parameters, named parameters, or groups; groups may override every option below, the law
            included.
        lr: gamma >= 0.
        law: how the threshold moves.
        momentum: in [0, 1).
        nesterov: look ahead; needs momentum.
        betas: decay of Adam's two averages, for an Adam-type base step.
        eps: > 0, of the Adam-type step.
        weight_decay: >= 0.
        decay: where the decay acts, see above.
        scope: which parameters are thresholded.
        prune: True or False thresholds all or none of a group.
        min_kept: in [0, 1): no tensor keeps a smaller fraction. Searched every 32 steps from a sample, hence
            approximate between; exact when a target freezes. Needs a law with a latent.
        freeze_below: `mask_report` freezes a group when the churn since the report before it is at most this; a
            `Settled` asks for several such reports in a row, or for no regrowth.
        maximize: ascend.
        foreach: all tensors of an operation at once. Default: yes on accelerators; on a CPU tensor by tensor
            in pieces of a cache's size, which gives the same bits.
        compiled: one `torch.compile` graph per kind of parameter, with the least memory traffic; equal to the
            other paths up to fused multiply-adds. The first step compiles (a minute or more for hundreds of
            tensors).

    Raises:
        EspalierError: an option is out of range or contradicts another.

    Example:
        >>> import torch
        >>> from espalier.optim import DualAveraging, LinearLaw
        >>> w = torch.nn.Parameter(torch.tensor([[1.0, 0.1, -1.0]]))
        >>> optimizer = DualAveraging([w], lr=0.5, law=LinearLaw(penalty=0.4))
        >>> w.sum().backward()
        >>> optimizer.step()
        >>> w.data  # the latent is 0.5, -0.4, -1.5 and the threshold 0.2
        tensor([[ 0.3000, -0.2000, -1.3000]])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor,
        *,
        law: Law,
        momentum: float = 0.0,
        nesterov: bool = False,
        betas: tuple[float, float] | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Literal["coupled", "decoupled", "prox"] = "coupled",
        scope: Literal["weights", "paper"] = "weights",
        prune: bool | None = None,
        min_kept: float = 0.0,
        freeze_below: float | Settled | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        compiled: bool = False,
    ) -> None:
        options: dict[str, Any] = {
            **({} if betas is None else {"betas": betas}),  # torch's schedulers take its presence for Adam
            "lr": lr,
            "law": law,
            "momentum": momentum,
            "nesterov": nesterov,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay": decay,
            "scope": scope,
            "prune": prune,
            "min_kept": min_kept,
            "freeze_below": freeze_below,
            "maximize": maximize,
            "foreach": foreach,
            "compiled": compiled,
        }
        clock = {"steps": 0, "time": 0.0, "threshold": 0.0, "calm": 0, "frozen": False}
        super().__init__(params, {**plain_options(options), **clock})

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with their own options and, starting now, their own clock.

        Args:
            param_group: `params` and any option of the constructor; other keys are kept for schedulers.

        Raises:
            EspalierError: an option is out of range, or a parameter is complex or integer.
        """
        param_group = plain_options(param_group)
        check_group({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                check_parameter(parameter)
        except EspalierError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step. The host never waits for the device, but for a count before a target's first search.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned.

        Raises:
            EspalierError: a gradient is sparse, or a target cannot be reached from these weights.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._start(group)
            tick(group)
        pools = self._pools()
        for law, groups in pools:
            self._search(law, groups)
        for group in self.param_groups:
            for batch, base in batches(group, self.state):
                kernel(group, batch)(batch, base)
        for law, groups in pools:
            if law.rescale:
                self._rescale(groups)
            if groups[0]["steps"] >= law.steps:
                self._settle(law, groups)
        return loss

    # --- thresholds
    # ---------------------------------------------------------------------------------------------

    def _members(self, group: Group) -> list[Member]:
        """The group's thresholded parameters that train."""
        return [
            Member(name, parameter, self.state[parameter])
            for name, parameter in named(self.param_groups, group)
            if prunes(group, parameter) and parameter.requires_grad
        ]

    def _pools(self) -> list[tuple[TargetSparsity, list[Group]]]:
        """Groups that share a target which is not reached yet."""
        pools: list[tuple[TargetSparsity, list[Group]]] = []
        for group in self.param_groups:
            law = group["law"]
            if not isinstance(law, TargetSparsity) or group["frozen"]:
                continue
            for known, groups in pools:
                if known == law:
                    groups.append(group)
                    break
            else:
                pools.append((law, [group]))
        return pools

    def _search(self, law: TargetSparsity, groups: list[Group]) -> None:
        """Thresholds of a pool at this step, if they are due."""
        step = groups[0]["steps"]
        if step != 1 and not law.due(step) and step < law.steps:
            return
        members, caps = self._pooled(groups)
        alike = [group for group in self.param_groups if group["law"] == law]  # the frozen ones, too
        if step == 1 and not any(self._members(group) for group in alike):
            raise EspalierError(
                f"a sparsity of {law.sparsity} is asked for, but nothing is thresholded: no parameter of these groups "
                "has two dimensions and trains; say `prune=True` or `scope='paper'`, or give the groups another law"
            )
        if members and (step == 1 or not any("threshold" in member.state for member in members)):
            _members.check_target(law, members, caps)
        if members and law.due(step):
            _members.set_thresholds(law, members, caps, step)

    def _pooled(self, groups: list[Group]) -> tuple[list[Member], list[int]]:
        """A pool's parameters, and how many zeros each may have."""
        members, least = [], []
        for group in groups:
            found = self._members(group)
            members += found
            least += [group["min_kept"]] * len(found)
        return members, _members.limits(members, least)

    def _rescale(self, groups: list[Group]) -> None:
        """Multiply the weights that this step wrote by what their units lost."""
        for group in groups:
            for member in self._members(group):
                if member.parameter.grad is not None and "threshold" in member.state:
                    _members.rescale(member, threshold_of(group, member.state))

    def _settle(self, law: TargetSparsity, groups: list[Group]) -> None:
        """Prune to exactly the target and freeze."""
        members, caps = self._pooled(groups)
        divisors = [ridge(group, dual=True) + 1 for group in groups for _ in self._members(group)]
        masks = _members.settle(law, members, caps, divisors) if members else []
        for member, mask in zip(members, masks, strict=True):
            _members.fix(member, mask)
        for group in groups:
            group["frozen"] = True

    # --- the step
    # -----------------------------------------------------------------------------------------------

    def _start(self, group: Group) -> None:
        """Make the state of parameters that meet their first gradient; refresh the guard's ceilings."""
        for name, parameter in named(self.param_groups, group):
            if parameter.grad is not None:
                check_gradient(parameter.grad, name)
                start(group, parameter, self.state[parameter])
        guarded = group["min_kept"] and isinstance(group["law"], AbstractPathLaw) and not group["frozen"]
        if guarded and group["steps"] % _GUARD_EVERY == 0 and (members := self._members(group)):
            _members.set_ceilings(members, _members.limits(members, [group["min_kept"]] * len(members)))

    # --- masks
    # --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def freeze(self) -> None:
        """Fix the mask: weights that are zero now stay exactly zero, the others train on from where they are.

        The shrinkage offset is kept: the base step continues on the weights, not on the latents, so nothing
        jumps. The momentum of pruned entries is cleared. Groups that are frozen already, and dense
        parameters, are not touched.
        """
        for group in self.param_groups:
            if not group["frozen"]:
                self._fix(group)

    @property
    def frozen(self) -> bool:
        """Whether every group's mask is fixed."""
        return all(group["frozen"] for group in self.param_groups)

    @torch.no_grad()
    def restart(self) -> None:
        """Take the weights as they are now as w_0: drop latents and buffers and set the clocks to zero; masks stay."""
        for state in self.state.values():
            for key in ("latent", "step", "threshold", "ceiling", *BUFFERS):
                state.pop(key, None)
        for group in self.param_groups:
            group.update(steps=0, time=0.0, threshold=0.0, calm=0)
        self.__dict__.pop("_reported", None)

    @torch.no_grad()
    def mask_report(self) -> MaskReport:
        """Count zeros, and what changed since the last report; once per epoch is the intended use.

        Asked again without a step in between, it gives the same report.

        Waits for the device once, and keeps one bool per thresholded entry from the first call on. Freezes
        groups whose `freeze_below` is reached; the first report never does.

        Returns:
            The counts, over all processes.
        """
        members = [member for group in self.param_groups for member in self._members(group)]
        if not members:
            return MaskReport({}, first=False, frozen=self.frozen)
        last: tuple[Any, MaskReport] | None = self.__dict__.get("_reported")
        if last is not None and last[0] == self._moment():
            return last[1]
        first = any("seen" not in member.state for member in members)
        counts = sum_rows(
            torch.stack([_members.changes(member) for member in members]), _members.owners(members)
        ).tolist()
        tensors = {m.name: TensorMask(m.entries, *row) for m, row in zip(members, counts, strict=True)}
        if not first:
            self._freeze_settled(tensors)
        report = MaskReport(tensors, first=first, frozen=self.frozen)
        self.__dict__["_reported"] = (self._moment(), report)
        return report

    def _moment(self) -> list[tuple[Any, ...]]:
        """What tells whether a report is still that of now."""
        return [(group["steps"], group["frozen"], len(group["params"])) for group in self.param_groups]

    def _freeze_settled(self, tensors: dict[str, TensorMask]) -> None:
        """Freeze groups whose mask has settled."""
        for group in self.param_groups:
            rule, members = group["freeze_below"], self._members(group)
            if group["frozen"] or rule is None or not members:
                continue
            if not isinstance(rule, Settled):
                rule = Settled(rule)
            own = {member.name: tensors[member.name] for member in members}
            calm = rule.calm(MaskReport(own, first=False, frozen=False))
            group["calm"] = group["calm"] + 1 if calm else 0
            if group["calm"] >= rule.reports:
                self._fix(group)

    def _fix(self, group: Group) -> None:
        """Freeze a group at the zeros it has."""
        for member in self._members(group):
            _members.fix(member, local(member.parameter.detach()) != 0)
        group["frozen"] = True

    # --- saving
    # -------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain numbers, fit for `torch.load(weights_only=True)`; laws as their `repr`."""
        return _saving.portable(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved state; the steps that follow are those of the uninterrupted run, bit for bit.

        Dtypes stay as saved (torch would cast a float32 latent to the parameter's bfloat16), and nothing is
        shared with the argument. Laws are code, like a scheduler's function: they come from this optimizer.

        Args:
            state_dict: from `state_dict` of an optimizer with the same groups and laws.

        Raises:
            EspalierError: the state was saved under another law.
            ValueError: the groups differ (torch's message).
        """
        self.__dict__.pop("_reported", None)
        handle = self.register_load_state_dict_pre_hook(_saving.remember)
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            _saving.forget(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Undo what torch's loading does to dtypes, before anybody's load hook sees the state."""
        super().__setstate__(state)
        _saving.put_back(self)
