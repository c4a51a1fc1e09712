import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from espalier import EspalierError
from espalier.data import TensorSplit
from espalier.landscape.batches import FixedBatches
from espalier.landscape.points import Space, average
from espalier.landscape.surface import Surface


def split(n: int = 24, features: int = 5, classes: int = 3, seed: int = 0) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 1, features, generator=generator)
    y = torch.randint(classes, (n,), generator=generator)
    return TensorSplit("train", x, y, torch.arange(n), 1.0)


def plain(features: int = 5, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 4), nn.ReLU(), nn.Linear(4, classes))


def normed(features: int = 5, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, 4),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4, classes),
    )


def test_a_point_holds_every_parameter_in_order_and_gives_it_back():
    net = plain()
    space = Space(net)
    vector = space.vector(net)
    assert vector.shape == (5 * 4 + 4 + 4 * 3 + 3,) and space.size == 39
    assert torch.equal(vector, nn.utils.parameters_to_vector(net.parameters()).detach())
    for name, weight in space.weights(vector).items():
        assert torch.equal(weight, net.get_parameter(name))
    assert torch.equal(space.vector(net.state_dict()), vector)


def test_tied_parameters_are_one():
    first, second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    second.weight = first.weight
    net = nn.Sequential(first, second)
    space = Space(net)
    assert space.size == 9 and space.aliases == {"1.weight": "0.weight"}
    assert torch.equal(space.vector(net.state_dict()), first.weight.detach().flatten())
    saved = Surface(nn.Sequential(nn.Flatten(), net), split(features=3)).state_dict(torch.arange(9.0))
    assert torch.equal(saved["1.1.weight"], torch.arange(9.0).view(3, 3))


def test_loss_without_batch_norm_is_that_of_the_network():
    net, data = plain(), split()
    surface = Surface(net, data, data, batch_size=7)
    found = surface(surface.space.vector(net))
    x, y = next(iter(data.batches(24)))
    logits = net(x).double()
    assert found.train.loss == pytest.approx(F.cross_entropy(logits, y).item())
    assert found.train.accuracy == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert found.test is not None and found.test == found.train and surface.evaluations == 1


def test_batch_norm_is_estimated_as_update_bn_does_and_the_module_is_left_alone():
    torch.manual_seed(1)
    net, data = normed(), split()
    net.train()
    before = copy.deepcopy(net.state_dict())
    surface = Surface(net, data, data, batch_size=8, shared=False)
    found = surface(surface.space.vector(net))
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert net.training and net[2].training and net[2].momentum == 0.1

    reference = copy.deepcopy(net).eval()
    norm = reference[2]
    assert isinstance(norm, nn.BatchNorm1d) and norm.running_var is not None
    del reference[4]  # the dropout
    torch.optim.swa_utils.update_bn(((x, y) for x, y in data.batches(8, seed=0, augment=True)), reference)
    reference.eval()
    x, y = next(iter(data.batches(24)))
    assert found.train.loss == pytest.approx(F.cross_entropy(reference(x), y).item(), rel=1e-6)
    assert found.test == found.train
    saved = surface.state_dict(surface.space.vector(net))
    assert torch.allclose(saved["2.running_var"], norm.running_var)
    assert int(saved["2.num_batches_tracked"]) == 3


def test_the_shared_pass_gives_the_loss_of_the_batch_and_the_statistics_for_the_test():
    net, data = normed(), split()
    shared = Surface(net, data, data)(Space(net).vector(net))
    apart = Surface(net, data, data, shared=False)(Space(net).vector(net))
    assert shared.test == apart.test
    # One batch: only the factor n / (n - 1) of the variance is between them.
    assert shared.train.loss == pytest.approx(apart.train.loss, rel=0.05) and shared.train != apart.train


def test_forward_passes_are_shared():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.seen = normed(), 0

        def forward(self, x):
            self.seen += len(x)
            return self.net(x)

    net, data = Counting(), split()
    surface = Surface(net, data, data, batch_size=8)
    net.seen = 0
    surface(surface.space.vector(net))
    assert net.seen == 48
    apart = Surface(net, data, data, batch_size=8, shared=False)
    net.seen = 0
    apart(apart.space.vector(net))
    assert net.seen == 72


def test_dropout_left_on_is_handled():
    net, data = normed().train(), split()
    surface = Surface(net, data)
    vector = surface.space.vector(net)
    assert surface(vector) == surface(vector)


def test_a_loader_is_data_too_and_gradients_flow_to_the_point():
    data = split()
    x, y = next(iter(data.batches(24)))
    loader = DataLoader(TensorDataset(x, y), batch_size=12)
    surface = Surface(plain(), loader)
    vector = surface.space.vector(surface.module).requires_grad_()
    (gradient,) = torch.autograd.grad(surface.batch_loss(vector, x, y), vector)
    loss = F.cross_entropy(surface.module(x), y)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(surface.module.parameters()))])
    assert torch.allclose(gradient, expected, atol=1e-7)
    assert surface(vector.detach()).train.n == 24


def test_a_loader_is_shuffled_by_examples():
    x, y = torch.rand(10, 5), torch.arange(10)
    data = FixedBatches(DataLoader(TensorDataset(x, y), batch_size=4), "training")
    seen = [labels for _, labels in data.shuffled(3, 0, 0)]
    assert [len(labels) for labels in seen] == [3, 3, 3, 1] and data.steps(3) == 4
    assert sorted(torch.cat(seen).tolist()) == list(range(10)) and torch.cat(seen).tolist() != list(range(10))
    assert all(torch.equal(x[labels], inputs) for inputs, labels in data.shuffled(3, 0, 1))
    assert [len(labels) for _, labels in data] == [4, 4, 2] and not data.augment
    uneven = [(torch.rand(2, 5), torch.tensor([0, 1])), (torch.rand(1, 6), torch.tensor([2]))]
    whole = FixedBatches(uneven, "training")
    assert whole.steps(1) == 2 and sorted(len(labels) for _, labels in whole.shuffled(1, 0, 0)) == [1, 2]


def test_average_is_the_mean():
    assert average({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([3.0, 5.0])}).tolist() == [2.0, 4.0]
    with pytest.raises(EspalierError, match="needs at least one network"):
        average({})


def test_another_architecture_is_refused_by_names_and_shapes():
    space = Space(plain(), "a.pt")
    with pytest.raises(
        EspalierError, match=r"b\.pt is not of the architecture of a\.pt: 2 of another shape: 1\.weight"
    ):
        space.vector(
            {**plain().state_dict(), "1.weight": torch.zeros(4, 6), "1.bias": torch.zeros(5)}, "b.pt"
        )
    with pytest.raises(EspalierError, match=r"missing: 3\.weight, 3\.bias"):
        space.vector(nn.Sequential(nn.Flatten(), nn.Linear(5, 4)))
    with pytest.raises(EspalierError, match=r"unexpected: 2\.weight, 2\.bias"):
        space.vector(normed())
    with pytest.raises(EspalierError, match=r"not finite, in 1\.bias"):
        space.vector({**plain().state_dict(), "1.bias": torch.full((4,), torch.nan)})


def test_buffers_that_are_no_statistics_must_agree():
    class Shifted(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.net = plain()
            self.register_buffer("shift", torch.tensor(shift))

        def forward(self, x):
            return self.net(x) + self.shift

    with pytest.raises(EspalierError, match=r"buffers that are no batch-norm statistics \(shift\)"):
        Space(Shifted(0.0)).vector(Shifted(1.0))


def test_networks_that_are_no_points_are_refused_with_the_reason():
    with pytest.raises(EspalierError, match="lazily initialized: 'weight' has no shape yet"):
        Space(nn.LazyLinear(3))
    with pytest.raises(EspalierError, match="complex parameters"):
        Space(_Complex())
    with pytest.raises(EspalierError, match="is quantized"):
        Space(_Integers())
    with pytest.raises(EspalierError, match="has no parameters"):
        Space(nn.ReLU())


class _Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))


class _Integers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)


def test_data_that_move_are_caught():
    x, y = torch.rand(24, 5), torch.arange(24) % 3
    with pytest.raises(EspalierError, match=r"changed between two readings, at batch 0.*shuffle=False"):
        FixedBatches(DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True), "training")
    with pytest.raises(EspalierError, match="a generator can be read only once"):
        FixedBatches(iter([(x, y)]), "training")


def test_data_that_cannot_be_used_are_refused():
    with pytest.raises(EspalierError, match="training data are empty"):
        FixedBatches([], "training")
    with pytest.raises(EspalierError, match="without a label"):
        FixedBatches([(torch.rand(2, 5), torch.tensor([0, -1]))], "test")
    with pytest.raises(EspalierError, match="at least 2 training examples in every batch"):
        Surface(normed(), split(), batch_size=1)
    with pytest.raises(EspalierError, match="label 2 found, but the network has 2 classes"):
        Surface(plain(classes=2), split())
    with pytest.raises(EspalierError, match="batch size must be at least 1"):
        FixedBatches(split(), "training", batch_size=0)


def test_a_network_that_is_random_in_eval_mode_is_refused():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = plain()

        def forward(self, x):
            return F.dropout(self.net(x), 0.5)

    with pytest.raises(EspalierError, match="different answers to the same inputs in eval mode"):
        Surface(Noisy(), split())
