"""The risk against dense truth by autograd, and what it refuses."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from espalier._errors import EspalierError
from espalier.checkpoint import open_checkpoint
from espalier.data import TensorSplit
from espalier.landscape.operators import Curvature, Matrix, Restricted
from espalier.landscape.risk import Risk, cross_entropy
from espalier.selection import select

# Torch warns about its own code when it first loads what torch.func.hessian needs.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")


def split(n: int = 30, classes: int = 3) -> TensorSplit:
    g = torch.Generator().manual_seed(1)
    images, labels = torch.randn(n, 1, 2, 2, generator=g), torch.randint(classes, (n,), generator=g)
    return TensorSplit("train", images, labels, torch.arange(n), scale=1.0)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3))


def truth(model: nn.Module, data: TensorSplit, names: tuple[str, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, gradient and Hessian of the mean loss, dense and in float64, by autograd of one function."""
    model = model.double().eval()
    x, y = next(iter(data.batches(len(data))))
    weights = dict(model.named_parameters())
    sizes = [weights[name].numel() for name in names]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split(sizes)
        named = {name: piece.view_as(weights[name]) for name, piece in zip(names, pieces, strict=True)}
        return F.cross_entropy(functional_call(model, named, (x.double(),)), y)

    flat = torch.cat([weights[name].detach().reshape(-1) for name in names])
    slope = torch.func.grad(loss)(flat)
    return loss(flat).detach(), slope, torch.func.hessian(loss)(flat)


@pytest.mark.parametrize("batch_size", [7, 30])
def test_loss_gradient_and_hessian_are_the_dense_ones(batch_size: int) -> None:
    model, data = network(), split()
    risk = Risk(model, data, dtype=torch.float64, batch_size=batch_size)
    loss, slope, hessian = truth(network(), data, risk.names)
    assert abs(risk.loss() - float(loss)) < 1e-12
    assert torch.allclose(risk.loss_and_gradient()[1], slope, atol=1e-12)
    assert torch.allclose(Curvature(risk).dense(), hessian, atol=1e-12)
    assert {name: tuple(g.shape) for name, g in risk.gradient().items()} == {
        name: tuple(p.shape) for name, p in model.named_parameters()
    }


def test_float32_is_within_1e_4_of_dense_truth() -> None:
    risk = Risk(network(), split())
    assert risk.dtype == torch.float32
    _, _, hessian = truth(network(), split(), risk.names)
    assert torch.allclose(Curvature(risk).dense().double(), hessian, atol=1e-4)


def test_gauss_newton_is_the_hessian_of_a_linear_network_and_never_negative() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    risk = Risk(linear, split(), dtype=torch.float64)
    inner = Curvature(risk, kind="gauss-newton").dense()
    assert torch.allclose(Curvature(risk).dense(), inner, atol=1e-12)
    deep = Risk(network(), split(), dtype=torch.float64)
    assert torch.linalg.eigvalsh(Curvature(deep, kind="gauss-newton").dense()).min() > -1e-12


def test_the_other_library_gives_the_same_products() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from curvlinops import GGNLinearOperator, HessianLinearOperator
    model, data = network().double().eval(), split()
    risk = Risk(model, data, dtype=torch.float64)
    batches = [(x.double(), y) for x, y in data.batches(10)]
    v = torch.randn(risk.dimension, dtype=torch.float64)
    for kind, theirs in (("hessian", HessianLinearOperator), ("gauss-newton", GGNLinearOperator)):
        other = theirs(model, nn.CrossEntropyLoss(), list(model.parameters()), batches)
        assert torch.allclose(Curvature(risk, kind=kind) @ v, (other @ v).detach(), atol=1e-10)  # type: ignore[arg-type]


def test_only_the_selected_weights_are_variables() -> None:
    model, data = network(), split()
    selection = select(open_checkpoint(model))
    risk = Risk(model, data, selection=selection, dtype=torch.float64)
    assert risk.names == ("1.weight", "4.weight") and risk.dimension == 20 + 15
    _, slope, _ = truth(network(), data, risk.names)
    assert torch.allclose(risk.loss_and_gradient()[1], slope, atol=1e-12)


def test_vectors_go_in_and_out_by_name() -> None:
    risk = Risk(network(), split(), dtype=torch.float64)
    v = {name: torch.randn(shape, dtype=torch.float64) for name, shape in risk.shapes.items()}
    curvature = Curvature(risk)
    assert torch.equal(risk.flat(curvature.product(v)), curvature @ risk.flat(v))
    assert curvature.products == 2
    assert risk.loss(risk.named(risk.weights)) == risk.loss(risk.weights) == risk.loss()


def test_the_model_is_as_it_was() -> None:
    model = network().train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state = torch.get_rng_state()
    risk = Risk(model, split(), dtype=torch.float64)
    risk.product(risk.weights, risk.weights)
    assert model.training and all(module.training for module in model.modules())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())


def test_tied_weights_are_one_variable() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x.flatten(1))))[:, :3]  # type: ignore[no-any-return]

    model = Tied()
    risk = Risk(model, split(), dtype=torch.float64)
    assert risk.names == ("a.weight",)
    moved = model.double()(split().images.double()).detach()
    assert abs(risk.loss() - float(F.cross_entropy(moved, split().labels))) < 1e-12


def test_outputs_may_be_an_object_and_the_loss_any_sum() -> None:
    class Answer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.linear(x.flatten(1))}

    def square(outputs: Tensor, labels: Tensor) -> Tensor:
        return ((outputs - F.one_hot(labels, 3)) ** 2).sum() / 2

    risk = Risk(Answer(), split(), loss=square, dtype=torch.float64)
    x = split().images.flatten(1).double()
    x1 = torch.cat([x, torch.ones(30, 1).double()], 1)
    inner = x1.T @ x1 / 30  # of one output: weights, then the bias
    matrix = Curvature(risk).dense()
    assert torch.allclose(matrix[:4, :4], inner[:4, :4], atol=1e-12)
    assert torch.allclose(Curvature(risk, kind="gauss-newton").dense(), matrix, atol=1e-12)


def test_batches_of_a_list_do_as_well_as_a_split() -> None:
    data = split()
    one = Risk(network(), data, dtype=torch.float64)
    other = Risk(network(), list(data.batches(8)), dtype=torch.float64)
    assert abs(one.loss() - other.loss()) < 1e-12


def test_operators_multiply_matrices_and_restrict() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    operator = Matrix(matrix)
    assert torch.equal(operator @ torch.eye(2), matrix) and operator.products == 2
    active = torch.tensor([True, False])
    assert torch.equal(Restricted(operator, active) @ torch.eye(2), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
    assert (operator.to_scipy() @ torch.tensor([1.0, 0.0]).numpy()).tolist() == [2.0, 1.0]


class Noisy(nn.Module):
    """Dropout that no mode turns off."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.dropout(x.flatten(1), 0.5))  # type: ignore[no-any-return]


class AlwaysOn(nn.Dropout):
    def train(self, mode: bool = True) -> "AlwaysOn":
        return super().train(True)


class Moving:
    """A loader that augments."""

    def __iter__(self):
        yield torch.randn(8, 1, 2, 2), torch.zeros(8, dtype=torch.long)


def test_what_changes_is_refused() -> None:
    with pytest.raises(EspalierError, match=r"gave two answers .* F.dropout without training=self.training"):
        Risk(Noisy(), split())
    with pytest.raises(EspalierError, match="loader that shuffles and drops, augments or samples"):
        Risk(network(), Moving())
    with pytest.raises(EspalierError, match=r"dropout 1 stays on in eval mode"):
        Risk(nn.Sequential(nn.Flatten(), AlwaysOn(), nn.Linear(4, 3)), split())


def test_ordinary_dropout_in_train_mode_is_fine() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(4, 3)).train()
    assert Risk(model, split()).loss() == Risk(model, split()).loss()


def test_unfit_networks_are_refused_with_the_reason() -> None:
    with pytest.raises(EspalierError, match=r"lazily initialized: '1.weight' has no shape yet"):
        Risk(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), split())
    with pytest.raises(EspalierError, match=r"has complex parameters \(1.weight, 1.bias\)"):
        Risk(nn.Sequential(nn.Flatten(), nn.Linear(4, 3, dtype=torch.complex64)), split())
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model[1].weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(EspalierError, match=r"is quantized \(1.weight\)"):
        Risk(model, split())
    bad = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with torch.no_grad():
        next(bad.parameters())[0, 0] = torch.nan
    with pytest.raises(EspalierError, match=r"not finite"):
        Risk(bad, split())


def test_unfit_data_and_selections_are_refused() -> None:
    model = network()
    with pytest.raises(EspalierError, match="no examples"):
        Risk(model, split().take(0))
    with pytest.raises(EspalierError, match="iterated over only once"):
        Risk(model, iter(split().batches(5)))
    x, y = next(iter(split().batches(8)))
    for label, words in ((-1, "label -1 found"), (7, r"label 7 found, but the model has 3 classes")):
        with pytest.raises(EspalierError, match=words):
            Risk(model, [(x, y), (x, torch.full_like(y, label))])
    other = select(open_checkpoint({"1.wieght": torch.zeros(5, 4)}))
    with pytest.raises(EspalierError, match=r"names 1.wieght, no parameters .* Did you mean '1.weight'"):
        Risk(model, split(), selection=other)
    frozen = network().requires_grad_(False)
    with pytest.raises(EspalierError, match="no parameter that requires a gradient"):
        Risk(frozen, split())


def test_vectors_that_do_not_fit_are_refused() -> None:
    risk = Risk(network(), split())
    with pytest.raises(EspalierError, match=r"needs '1.weight', which is not there"):
        risk.flat({"1.weigth": torch.zeros(5, 4)})
    with pytest.raises(EspalierError, match=r"shape \(4, 5\) where \(5, 4\) was needed; .*same architecture"):
        risk.flat({"1.weight": torch.zeros(4, 5)})
    with pytest.raises(
        EspalierError, match="curvature 'fisher' is unknown; use one of hessian, gauss-newton"
    ):
        risk.product(risk.weights, risk.weights, "fisher")  # type: ignore[arg-type]
    with pytest.raises(EspalierError, match=r"a vector \(53,\) or matrix"):
        Curvature(risk) @ torch.zeros(3)


def differences(risk: Risk, v: Tensor, step: float = 1e-5) -> Tensor:
    """The product with the Hessian by central differences of the gradient."""
    slopes = [risk.loss_and_gradient(risk.weights + sign * step * v)[1] for sign in (1, -1)]
    return (slopes[0] - slopes[1]) / (2 * step)


def test_attention_has_a_second_derivative() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoderLayer(4, 2, 4, dropout=0.0, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(x.flatten(1).unsqueeze(1)).mean(1))  # type: ignore[no-any-return]

    risk = Risk(Attention(), split(8), dtype=torch.float64)
    v = torch.randn(risk.dimension, dtype=torch.float64)
    assert torch.allclose(risk.product(risk.weights, v), differences(risk, v), atol=1e-5)


class Square(torch.autograd.Function):
    """x^2 that knows how to go back twice, and not forward."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Squared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(self.linear(x.flatten(1)))  # type: ignore[no-any-return]


def test_what_has_no_forward_derivative_goes_back_twice() -> None:
    risk = Risk(Squared(), split(), dtype=torch.float64)
    v = torch.randn(risk.dimension, dtype=torch.float64)
    assert torch.allclose(risk.product(risk.weights, v), differences(risk, v), atol=1e-5)
    with pytest.raises(RuntimeError):
        risk._along(risk.weights, v, next(iter(risk.batches()))[0])


def test_going_back_twice_gives_what_going_forward_does() -> None:
    for model in (network(), nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.GELU(), nn.LogSoftmax(1))):
        risk = Risk(model.eval(), split(), dtype=torch.float64)
        v = torch.randn(risk.dimension, dtype=torch.float64)
        each = [risk._back_twice(risk.weights, v, x, y) for x, y in risk.batches()]
        twice = torch.stack(each).sum(0) / risk.examples
        assert torch.allclose(risk.product(risk.weights, v), twice, atol=1e-12)
        assert torch.allclose(twice, differences(risk, v), atol=1e-5)


def test_cross_entropy_is_a_sum() -> None:
    outputs = torch.zeros(4, 2)
    assert torch.isclose(
        cross_entropy(outputs, torch.zeros(4, dtype=torch.long)), 4 * torch.tensor(2.0).log()
    )
