"""When the zeros have settled: the rule alone, and the optimizer that freezes by it."""

import copy
import io

import pytest
import torch
from torch.nn import Parameter

from espalier import EspalierError
from espalier.optim import DualAveraging, MaskReport, PowerLaw, Settled, TensorMask


def report(zeros: int, pruned: int, regrown: int, first: bool = False) -> MaskReport:
    return MaskReport({"w": TensorMask(1000, zeros, pruned, regrown)}, first=first, frozen=False)


@pytest.mark.parametrize(
    ("rule", "found", "calm"),
    [
        (Settled(0.01), report(900, 6, 4), True),
        (Settled(0.01), report(900, 7, 4), False),
        (Settled(0.01), report(0, 0, 0), False),  # nothing is pruned yet
        (Settled(0.01), report(900, 0, 0, first=True), False),  # there was nothing to compare with
        (Settled(0.01, regrown=0.0), report(900, 10, 0), True),
        (Settled(0.01, regrown=0.0), report(900, 5, 1), False),
        (Settled(0.01, regrown=0.002), report(900, 5, 2), True),
    ],
)
def test_a_calm_report(rule: Settled, found: MaskReport, calm: bool) -> None:
    assert rule.calm(found) is calm


def test_so_many_in_a_row() -> None:
    calm, wild = report(900, 0, 0), report(900, 500, 0)
    rule = Settled(0.01, reports=2)
    assert [rule.reached(found) for found in ([], [calm], [calm, calm], [calm, wild, calm])] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Settled(1.5), "`churn` of Settled is 1.5; it is a fraction of the entries"),
        (lambda: Settled(0.1, regrown=-1.0), "`regrown` of Settled is -1.0"),
        (lambda: Settled(0.1, reports=0), "`reports` of Settled is 0; it counts reports in a row"),
        (
            lambda: DualAveraging(
                [Parameter(torch.ones(1, 1))],
                0.1,
                law=PowerLaw(0.1, 0.5),
                freeze_below="soon",  # type: ignore[arg-type]
            ),
            "`freeze_below` is 'soon'; give a fraction of the entries, such as 0.001, or a Settled",
        ),
    ],
)
def test_bad_rules(make, message) -> None:
    with pytest.raises(EspalierError, match=message):
        make()


def still(rule: float | Settled) -> tuple[DualAveraging, Parameter]:
    """An optimizer whose weights hardly move any more, with zeros."""
    w = Parameter(torch.tensor([[0.0, 2.0, 3.0, 4.0]]))
    return DualAveraging([("w", w)], 1e-6, law=PowerLaw(0.0, 0.5), freeze_below=rule), w


def step(optimizer: DualAveraging, w: Parameter) -> bool:
    w.grad = torch.zeros_like(w)
    optimizer.step()
    return optimizer.mask_report().frozen


@pytest.mark.parametrize(
    ("rule", "when"), [(0.1, 2), (Settled(0.1), 2), (Settled(0.1, reports=3, regrown=0.0), 4)]
)
def test_freezes_after_so_many_calm_reports(rule: float | Settled, when: int) -> None:
    optimizer, w = still(rule)
    assert [step(optimizer, w) for _ in range(5)] == [n >= when for n in range(1, 6)]


def test_a_wild_report_starts_the_count_anew() -> None:
    optimizer, w = still(Settled(0.1, reports=2))
    step(optimizer, w)
    step(optimizer, w)
    optimizer.state[w]["latent"][0, 1] = 0.0
    assert [step(optimizer, w) for _ in range(3)] == [False, False, True]


def test_the_count_survives_a_resume_and_the_rule_is_the_new_optimizers() -> None:
    optimizer, w = still(Settled(0.1, reports=2))
    step(optimizer, w)
    step(optimizer, w)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again, u = still(Settled(0.2, reports=2))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.param_groups[0]["freeze_below"] == Settled(0.2, reports=2)
    assert step(again, u)
    assert step(copy.deepcopy(optimizer), w)
