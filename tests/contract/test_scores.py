"""What every score must keep. A new score is one line in SCORES."""

import copy
import zlib

import pytest
import torch
from torch import nn

from espalier._errors import EspalierError
from espalier._types import LazyTensors, Tensors
from espalier.allocate import ERK, LAMP, AbstractAllocation, Global, Uniform
from espalier.masks import Masks
from espalier.pruning import kept_entries, prune
from espalier.scores import (
    OBD,
    SNIP,
    AbstractScore,
    Evidence,
    GraSP,
    HessianOBD,
    Magnitude,
    Movement,
    Random,
    Saliency,
    SynFlow,
    WoodFisher,
    ranked,
)
from espalier.threshold import top_counts
from tests.contract.cases import CASES

SCORES: dict[str, AbstractScore] = {
    "magnitude": Magnitude(),
    "random": Random(7),
    "saliency": Saliency(),
    "saliency squared": Saliency(squared=True),
    "snip": SNIP(),
    "obd": OBD(),
    "hessian obd": HessianOBD(),
    "woodfisher": WoodFisher(block=7),
    "woodfisher, one block": WoodFisher(block=None, damping=0.1),
    "grasp": GraSP(),
    "synflow": SynFlow(),
    "movement": Movement(),
}
NEVER_NEGATIVE = {"squared_gradients", "synaptic_flow"}

scores = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
cases = pytest.mark.parametrize("case", CASES)


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters())


def evidence(weights: Tensors) -> Evidence:
    """Every field of tensors, drawn by the name of the field and the tensor."""
    found = {}
    for field in set(Evidence.__dataclass_fields__) - {"weights", "seed", "groups"}:

        def load(name: str, field: str = field) -> torch.Tensor:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{field} {name}".encode()))
            rows = (5,) if field == "gradient_samples" else ()
            drawn = torch.randn((*rows, *weights[name].shape), generator=generator)
            return drawn.abs() if field in NEVER_NEGATIVE else drawn

        found[field] = {name: load(name) for name in weights}
    return Evidence(weights, **found)  # type: ignore[arg-type]


@scores
@cases
def test_keys_shapes_and_devices_are_those_of_the_weights(score: AbstractScore, case: str) -> None:
    weights = weights_of(CASES[case].module())
    answer = score.scores(evidence(weights))
    assert list(answer) == list(weights)
    for name, weight in weights.items():
        assert answer[name].shape == weight.shape and answer[name].device == weight.device
        assert answer[name].is_floating_point() and not answer[name].requires_grad
        assert not answer[name].isnan().any()


@scores
@cases
def test_the_model_is_left_as_it_was(score: AbstractScore, case: str) -> None:
    module = CASES[case].module().eval()
    CASES[case].loss(module).backward()
    before, state = copy.deepcopy(module.state_dict()), torch.random.get_rng_state()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in module.named_parameters()}
    answer = ranked(score, evidence(weights_of(module)))
    for name in answer:
        answer[name].fill_(3.0)  # the scores are the caller's
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    for name, parameter in module.named_parameters():
        old = gradients[name]
        assert (parameter.grad is None) if old is None else torch.equal(parameter.grad, old)  # type: ignore[arg-type]
    assert not module.training
    assert torch.equal(torch.random.get_rng_state(), state)


@scores
@cases
def test_the_same_evidence_gives_the_same_scores_in_any_order(score: AbstractScore, case: str) -> None:
    weights = weights_of(CASES[case].module())
    first = score.scores(evidence(weights))
    torch.rand(3)
    last = score.scores(evidence(dict(reversed(weights.items()))))
    for name in weights:
        assert torch.equal(first[name], last[name])


@scores
def test_scores_of_a_mapping_that_reads_on_access(score: AbstractScore) -> None:
    weights = weights_of(CASES["lstm"].module())
    lazy = ranked(score, evidence(LazyTensors(list(weights), weights.__getitem__)))
    for name, values in ranked(score, evidence(weights)).items():
        assert torch.equal(lazy[name], values)


@scores
@cases
def test_existing_zeros_are_the_last_to_be_kept(score: AbstractScore, case: str) -> None:
    module = CASES[case].module()
    prune(module, 0.5, score=Random(99), scope=CASES[case].scope)  # type: ignore[arg-type]
    weights = weights_of(module)
    nonzero = Masks.from_zeros(weights)
    values = ranked(score, evidence(weights))
    for kept in (0, nonzero.kept // 2, nonzero.kept, nonzero.entries):
        masks = Masks.from_scores(values, top_counts(values, kept))
        assert masks.kept == min(kept, nonzero.kept)
        assert (masks & nonzero) == masks


@scores
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_dtype_can_be_ranked(score: AbstractScore, dtype: torch.dtype) -> None:
    module = CASES["depthwise convolution"].module().to(dtype)
    weights = {name: weights_of(module)[name] for name in CASES["depthwise convolution"].names}
    values = ranked(score, evidence(weights))
    entries = sum(weight.numel() for weight in weights.values())
    kept = kept_entries(entries, 0.75)
    masks = Masks.from_scores(values, top_counts(values, kept))
    assert masks.kept == kept
    masks.apply_(module)
    masks.verify(module)


@scores
def test_strides_do_not_matter(score: AbstractScore) -> None:
    weight = torch.randn(6, 5)
    strided = weight.T.contiguous().T
    assert not strided.is_contiguous()
    one, other = (score.scores(evidence({"w": w}))["w"] for w in (weight, strided))
    assert torch.equal(one, other)


@scores
def test_scores_are_values(score: AbstractScore) -> None:
    assert copy.deepcopy(score) == score and hash(copy.deepcopy(score)) == hash(score)
    assert score.needs <= {"weights"} | set(Evidence.__dataclass_fields__)


@scores
@pytest.mark.parametrize("allocation", [Global(), Global(floor=0.1), Uniform(), ERK(), LAMP()], ids=repr)
def test_every_allocation_takes_it(score: AbstractScore, allocation: AbstractAllocation) -> None:
    if isinstance(allocation, LAMP) and score.signed:
        pytest.skip("LAMP squares scores and refuses those below zero")
    values = ranked(score, evidence(weights_of(CASES["lstm"].module())))
    kept = sum(tensor.numel() for tensor in values.values()) // 3
    assert Masks.from_scores(values, allocation.counts(values, kept)).kept == kept


@scores
def test_a_score_without_its_evidence_is_refused(score: AbstractScore) -> None:
    if score.needs == {"weights"}:
        return
    with pytest.raises(EspalierError, match=f"{type(score).__name__} needs .*, which nothing has gathered"):
        ranked(score, Evidence(weights_of(CASES["lstm"].module())))
