"""The networks of the examples and results, and ways to get any other."""

from espalier.models.digits_cnn import DigitsCNN
from espalier.models.hf import hf_model, load_hf
from espalier.models.lenet import LeNet5
from espalier.models.resnet_cifar import CifarResNet
from espalier.models.sources import Filled, fill, imported, load_weights, round_to, torchvision_model

__all__ = [
    "CifarResNet",
    "DigitsCNN",
    "Filled",
    "LeNet5",
    "fill",
    "hf_model",
    "imported",
    "load_hf",
    "load_weights",
    "round_to",
    "torchvision_model",
]
