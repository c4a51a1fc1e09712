"""What scores read of a live network: against dense truths, and without a trace left on the network."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier import EspalierError
from espalier._types import Tensors
from espalier.masks import Masks
from espalier.methods import gather
from espalier.scores import (
    OBD,
    SNIP,
    AbstractScore,
    Evidence,
    GraSP,
    HessianOBD,
    Saliency,
    Sampling,
    SynFlow,
    WoodFisher,
    ranked,
)
from tests.contract.cases import CASES
from tests.reference.scores import woodfisher

SCORES: list[AbstractScore] = [Saliency(), SNIP(), OBD(), HessianOBD(), WoodFisher(), GraSP()]
ALL = frozenset(
    {"gradients", "squared_gradients", "gradient_samples", "hessian_gradient", "hessian_diagonal"}
)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def data(n: int = 12, size: int = 5) -> list[tuple[Tensor, Tensor]]:
    x, y = torch.randn(n, 4), torch.randint(2, (n,))
    return list(zip(x.split(size), y.split(size), strict=True))


class Counted:
    """Batches, cut at the count asked for."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.x, self.y = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])

    def __call__(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self.x[:count].split(5), self.y[:count].split(5), strict=True)


class Flat(nn.Module):
    """Makes logits of whatever a module returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x).flatten(1)
        return out


def names(model: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in model.named_parameters())


def dense_hessian(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The Hessian of the mean loss in all parameters, flat, by differentiating twice."""
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    shapes = {name: p.shape for name, p in model.named_parameters()}

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split([s.numel() for s in shapes.values()])
        weights = {name: piece.view(s) for (name, s), piece in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat)  # type: ignore[no-any-return]


def flat(tensors: Tensors | None) -> Tensor:
    assert tensors is not None
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


def test_first_order_evidence_is_what_autograd_says_example_by_example() -> None:
    model, batches = net(), Counted(data())
    rows = []
    for x, y in zip(batches.x.double(), batches.y, strict=True):
        grads = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    each = torch.stack(rows)
    found = gather(model, names(model), ALL, batches, Sampling(12, 1))
    torch.testing.assert_close(flat(found.gradients), each.mean(0))
    torch.testing.assert_close(flat(found.squared_gradients), each.square().mean(0))
    assert found.gradient_samples is not None
    samples = torch.cat([found.gradient_samples[name].flatten(1) for name in names(model)], dim=1)
    torch.testing.assert_close(samples, each)


def test_groups_cross_batches_and_an_incomplete_one_is_left_out() -> None:
    model, batches = net(), Counted(data())
    found = gather(model, names(model), ALL, batches, Sampling(11, 4))  # batches of 5, 5, 1: groups of 4, 4
    direct = torch.autograd.grad(
        F.cross_entropy(model(batches.x[:8].double()), batches.y[:8]), list(model.parameters())
    )
    torch.testing.assert_close(flat(found.gradients), torch.cat([g.flatten() for g in direct]))
    assert found.gradient_samples is not None and len(found.gradient_samples["0.weight"]) == 2
    few = gather(model, names(model), ALL, batches, Sampling(100, 100))  # fewer than a group: all there are
    assert few.gradient_samples is not None and len(few.gradient_samples["0.weight"]) == 1


def test_hessian_products_are_those_of_the_dense_hessian() -> None:
    model, batches = net(), Counted(data())
    x, y = batches.x.double(), batches.y
    hessian = dense_hessian(model, x, y)
    found = gather(model, names(model), ALL, batches, Sampling(12, 4))
    torch.testing.assert_close(flat(found.hessian_gradient), hessian @ flat(found.gradients))


def test_the_hessian_diagonal_is_estimated_without_bias() -> None:
    model = nn.Linear(4, 3).double()
    x, y = torch.randn(1, 4).double(), torch.tensor([1])
    truth = dense_hessian(model, x, y).diagonal()
    many = Counted([(x, y)] * 600)
    found = flat(gather(model, names(model), ALL, many, Sampling(600, 1)).hessian_diagonal)
    assert (found - truth).norm() < 0.2 * truth.norm()


def test_only_what_is_needed_is_gathered() -> None:
    model, batches = net(), Counted(data())
    for score in SCORES:
        found = gather(model, names(model), score.needs, batches, Sampling(8, 4))
        given = set(Evidence.__dataclass_fields__) - {"seed", "groups"}
        there = {field for field in given if getattr(found, field) is not None}
        assert there == score.needs
    assert gather(model, names(model), frozenset({"weights"}), None).gradients is None


@pytest.mark.parametrize("case", CASES)
def test_the_network_is_left_as_it_was_and_asked_twice_answers_alike(case: str) -> None:
    case_ = CASES[case]
    model = Flat(case_.module()).train()
    x = case_.batch()
    batches = Counted([(x, torch.zeros(len(x), dtype=torch.int64))])
    chosen = tuple(f"inner.{name}" for name in case_.names)
    model(x).sum().backward()
    before, rng = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    old = {name: (p.requires_grad, p.grad, id(p), p.data_ptr()) for name, p in model.named_parameters()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    sampling = Sampling(6, 2, batch_statistics=True)
    first, second = (gather(model, chosen, ALL, batches, sampling) for _ in range(2))
    for field in ALL:
        one, other = getattr(first, field), getattr(second, field)
        assert list(one) == list(chosen)
        assert all(torch.equal(one[name], other[name]) for name in chosen)
        assert all(one[name].shape[-before[name].ndim :] == before[name].shape for name in chosen)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    for name, p in model.named_parameters():
        assert (p.requires_grad, p.grad, id(p), p.data_ptr()) == old[name]
        assert p.grad is None or torch.equal(p.grad, gradients[name])  # type: ignore[arg-type]
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_batch_statistics_are_those_of_the_group() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    batches = Counted(data())
    buffers = copy.deepcopy(dict(model.named_buffers()))
    found = gather(model, names(model), SNIP.needs, batches, Sampling(12, 12, batch_statistics=True))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    model.train()
    loss = F.cross_entropy(model(batches.x.double()), batches.y)
    loss.backward()
    assert found.gradients is not None
    for name, p in model.named_parameters():
        torch.testing.assert_close(found.gradients[name], p.grad)


def test_saliency_and_obd_by_hand() -> None:
    """One weight a class, one example: softmax of (2, 0) is (p, 1 - p), the label is 0."""
    model = nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0], [1.0]]))
    batches = Counted([(torch.ones(1, 1), torch.tensor([0]))])
    q = 1 / (1 + torch.tensor(1.0).exp().item())  # probability of the other class: e^1 / (e^2 + e^1)
    found = gather(model, ("weight",), Saliency.needs | OBD.needs, batches, Sampling(1, 1))
    close = pytest.approx
    assert Saliency().scores(found)["weight"].flatten().tolist() == close([2 * q, q], rel=1e-6)
    assert Saliency(squared=True).scores(found)["weight"].flatten().tolist() == close(
        [4 * q**2, q**2], rel=1e-6
    )
    assert SNIP().scores(found)["weight"].flatten().tolist() == close([2 * q, q], rel=1e-6)
    assert OBD().scores(found)["weight"].flatten().tolist() == close([2 * q**2, q**2 / 2], rel=1e-6)
    curved = gather(model, ("weight",), GraSP.needs | HessianOBD.needs, batches, Sampling(1, 1))
    h = q * (1 - q)  # Hessian h (1, -1; -1, 1), gradient q (-1, 1): H g = 2 q h (-1, 1)
    assert GraSP().scores(curved)["weight"].flatten().tolist() == close([-4 * q * h, 2 * q * h], rel=1e-5)


@pytest.mark.parametrize("block", [1, 4, 7, 30])
def test_woodfisher_is_the_inverse_built_by_rank_one_updates(block: int) -> None:
    samples, weight = torch.randn(9, 30).double(), torch.randn(30).double()
    truth = woodfisher(samples, weight, 1e-3, block)
    evidence = Evidence({"w": weight.view(5, 6)}, gradient_samples={"w": samples.view(9, 5, 6)})
    found = WoodFisher(block=block, damping=1e-3).scores(evidence)["w"]
    torch.testing.assert_close(found, truth.view(5, 6), rtol=1e-8, atol=0)
    whole = WoodFisher(block=None, damping=1e-3).scores(evidence)["w"]
    torch.testing.assert_close(whole, woodfisher(samples, weight, 1e-3, 30).view(5, 6), rtol=1e-8, atol=0)


def test_woodfisher_of_a_dead_weight_is_its_magnitude_and_never_negative() -> None:
    samples = torch.zeros(3, 4)
    samples[:, 0] = 1e6
    evidence = Evidence({"w": torch.full((4,), 2.0)}, gradient_samples={"w": samples})
    found = WoodFisher(damping=1e-5).scores(evidence)["w"]
    assert found[1:].tolist() == pytest.approx([2e-5] * 3) and found[0] > 1e5


def test_synaptic_flow_by_hand_and_conserved() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        model.get_parameter("2.weight").copy_(torch.tensor([[-1.0, 2.0]]))
    found = gather(
        model, ("0.weight", "2.weight"), SynFlow.needs, lambda n: iter([(torch.zeros(1, 2), torch.zeros(1))])
    )
    scores = SynFlow().scores(found)
    assert scores["0.weight"].tolist() == [[1.0, 2.0], [6.0, 1.0]]
    assert scores["2.weight"].tolist() == [[3.0, 7.0]]
    assert scores["0.weight"].sum() == scores["2.weight"].sum() == 10.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_synaptic_flow_leaves_the_network_bit_for_bit(dtype: torch.dtype) -> None:
    model = Flat(CASES["cnn with batch norm"].module().to(dtype))
    with torch.no_grad():
        model.get_parameter("inner.0.weight").view(-1)[:3] = torch.tensor([-0.0, 0.0, -1e-30])
    x = CASES["cnn with batch norm"].batch().to(dtype)
    model(x).sum().backward()
    before = {
        name: (t.clone(), torch.signbit(t), t.dtype, t.stride()) for name, t in model.state_dict().items()
    }
    old = {name: (id(p), p.grad, p.requires_grad) for name, p in model.named_parameters()}
    found = gather(model, ("inner.0.weight", "inner.5.weight"), SynFlow.needs, lambda n: iter([(x, x)]))
    flow = SynFlow().scores(found)
    torch.testing.assert_close(flow["inner.0.weight"].sum(), flow["inner.5.weight"].sum())
    for name, t in model.state_dict().items():
        value, sign, kind, stride = before[name]
        assert torch.equal(t, value) and torch.equal(torch.signbit(t), sign)
        assert t.dtype == kind and t.stride() == stride
    assert {name: (id(p), p.grad, p.requires_grad) for name, p in model.named_parameters()} == old


def test_synaptic_flow_of_a_deep_network_does_not_overflow() -> None:
    model = nn.Sequential(
        *[layer for _ in range(40) for layer in (nn.Linear(300, 300, bias=False), nn.ReLU())]
    )
    for p in model.parameters():
        nn.init.normal_(p)
    found = gather(
        model, ("0.weight",), SynFlow.needs, lambda n: iter([(torch.zeros(1, 300), torch.zeros(1))])
    )
    assert SynFlow().scores(found)["0.weight"].sum() > 1e40


def test_the_network_comes_back_when_the_pass_fails() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(3, 1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        gather(model, ("0.weight",), SynFlow.needs, lambda n: iter([(torch.zeros(1, 2), torch.zeros(1))]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())


def test_zeros_that_are_there_stay_and_the_masks_are_exact() -> None:
    model, batches = net(), Counted(data())
    with torch.no_grad():
        model.get_parameter("0.weight")[0] = 0.0
    for score in SCORES:
        found = gather(model, ("0.weight", "2.weight"), score.needs, batches, Sampling(8, 4))
        scores = ranked(score, found)
        masks = Masks.from_scores(scores, {"0.weight": 3, "2.weight": 2})
        assert masks.kept == 5 and not masks["0.weight"][0].any()


def test_refusals() -> None:
    model, batches = net(), Counted(data())
    with pytest.raises(
        EspalierError, match="gradients are measured on training data, and there is none here"
    ):
        gather(model, names(model), SNIP.needs, None)
    with pytest.raises(
        EspalierError, match="synaptic flow needs the shape of the inputs, and there is no data"
    ):
        gather(model, names(model), SynFlow.needs, None)
    with pytest.raises(EspalierError, match="needs training examples, and there are none"):
        gather(model, names(model), SNIP.needs, lambda n: iter([]))
    with pytest.raises(EspalierError, match="needs labels, and some training examples have none"):
        gather(model, names(model), SNIP.needs, lambda n: iter([(torch.ones(2, 4), torch.tensor([0, -1]))]))
    with pytest.raises(EspalierError, match=r"no input of floating numbers \(got int64, shape \(1, 4\)\)"):
        gather(
            model,
            names(model),
            SynFlow.needs,
            lambda n: iter([(torch.ones(1, 4, dtype=torch.int64), torch.ones(1))]),
        )
    with torch.no_grad():
        model.get_parameter("2.weight").zero_()
    with pytest.raises(EspalierError, match="the synaptic flow of this network is 0: a layer is empty"):
        gather(model, names(model), SynFlow.needs, batches)
    with pytest.raises(
        EspalierError, match="a group has at least 1 example and at most all 5, got `group`=6"
    ):
        Sampling(5, 6)
    with pytest.raises(EspalierError, match="a temperature is positive, got 0"):
        Sampling(temperature=0.0)
    with pytest.raises(EspalierError, match="`block` counts entries, at least 1, got 0"):
        WoodFisher(block=0)
    with pytest.raises(EspalierError, match="`damping` must be a positive number, got 0"):
        WoodFisher(damping=0.0)
