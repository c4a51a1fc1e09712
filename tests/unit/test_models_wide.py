"""VGG16 and wide ResNets: the counts of their papers, layer by layer, and what they compute."""

import pytest
import torch
from torch import nn

from espalier import EspalierError, open_checkpoint
from espalier.cli import names
from espalier.models import VGG16, WideResNet


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def wide_count(depth: int, k: int, classes: int, bias: bool) -> int:
    """From the paper's table 1, by hand."""
    n, total, inputs = (depth - 4) // 6, 3 * 16 * 9 + 16 * bias, 16
    for outputs in (16 * k, 32 * k, 64 * k):
        for block in range(n):
            entering = inputs if block == 0 else outputs
            total += 2 * entering + 9 * entering * outputs + 2 * outputs + 9 * outputs**2 + 2 * outputs * bias
        total += inputs * outputs + outputs * bias  # k > 1, or the first stage would have no shortcut
        inputs = outputs
    return total + 2 * inputs + inputs * classes + classes


@pytest.mark.parametrize(
    ("model", "count"),
    [
        # the totals that Chao et al. (2020) count zeros in
        (lambda: VGG16(10), 15_245_130),
        (lambda: WideResNet(28, 10, 10, bias=True), 36_489_290),
        (lambda: WideResNet(28, 10, 100, bias=True), 36_546_980),
        # Zagoruyko and Komodakis give 2.7M, 8.9M, 11.0M and 36.5M
        (lambda: WideResNet(16, 4), 2_748_890),
        (lambda: WideResNet(40, 4), 8_949_210),
        (lambda: WideResNet(16, 8), 10_961_370),
        (lambda: WideResNet(28, 10), 36_479_194),
    ],
)
def test_parameters_are_those_of_the_papers(model, count: int):
    with torch.device("meta"):
        assert parameters(model()) == count


@pytest.mark.parametrize(
    ("depth", "k", "classes", "bias"), [(10, 2, 3, False), (16, 3, 10, True), (28, 10, 100, False)]
)
def test_wide_count_layer_by_layer(depth: int, k: int, classes: int, bias: bool):
    with torch.device("meta"):
        assert parameters(WideResNet(depth, k, classes, bias=bias)) == wide_count(depth, k, classes, bias)


def test_vgg_computes_logits_and_drops_in_training_only():
    model = VGG16(classes=7)
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert model(x).shape == (2, 7) and torch.equal(model(x), model(x))
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13 and all(m.bias is not None and not m.bias.any() for m in convolutions)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_wide_resnet_computes_logits():
    model = WideResNet(10, 1, classes=5)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    # equal widths need no convolution in the shortcut of the first stage
    assert [bool(stage[0].shortcut) for stage in (model.layer1, model.layer2, model.layer3)] == [
        False,
        True,
        True,
    ]
    assert model.layer3(model.layer2(torch.rand(1, 16, 32, 32))).shape == (1, 64, 8, 8)


def test_dropout_of_wide_resnet_is_for_training():
    model = WideResNet(10, 1, dropout=0.3).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), model(x))
    model.layer1[0].train()
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"depth": 20}, r"depth 6n \+ 4 .*, got 20"),
        ({"depth": 4}, r"depth 6n \+ 4 .*, got 4"),
        ({"widening": 0}, "widening factor of at least 1, got 0"),
        ({"dropout": 1.0}, r"probability in \[0, 1\), got 1\.0"),
    ],
)
def test_wide_resnet_refusals(arguments, match: str):
    with pytest.raises(EspalierError, match=match):
        WideResNet(**arguments)


@pytest.mark.parametrize(("word", "bias"), [("wrn10x1", False), ("wrn10x1+bias", True)])
def test_a_word_names_any_depth_and_width(word: str, bias: bool):
    source = WideResNet(10, 1, classes=3, bias=bias)
    built = names.model(word, 3, open_checkpoint(source), "net").model
    assert isinstance(built, WideResNet) and (built.conv1.bias is not None) == bias
    assert torch.equal(built.linear.weight, source.linear.weight)


def test_words_of_the_wide_models():
    with pytest.raises(EspalierError, match=r"vgg16, wrn28x10\. Did you mean 'wrn28x10'"):
        names.model("wrn28-10", 10, open_checkpoint(nn.Linear(2, 2)), "net")
    with torch.device("meta"), pytest.raises(EspalierError, match=r"depth 6n \+ 4 .*, got 29"):
        names.model("wrn29x10", 10, open_checkpoint(nn.Linear(2, 2)), "net")


def test_the_variant_of_the_paper_has_its_last_norm_s_momentum():
    assert WideResNet(16, 1, bias=True).bn.momentum == 0.9 and WideResNet(16, 1).bn.momentum == 0.1
