"""The networks of the examples and results, and ways to get any other."""

from espalier.models.digits_cnn import DigitsCNN
from espalier.models.hf import hf_model, load_hf
from espalier.models.lenet import LeNet5
from espalier.models.narrower import width_for
from espalier.models.resnet_cifar import CifarResNet
from espalier.models.sources import Filled, fill, imported, load_weights, round_to, torchvision_model
from espalier.models.vgg import VGG16
from espalier.models.wide_resnet import WideResNet

__all__ = [
    "VGG16",
    "CifarResNet",
    "DigitsCNN",
    "Filled",
    "LeNet5",
    "WideResNet",
    "fill",
    "hf_model",
    "imported",
    "load_hf",
    "load_weights",
    "round_to",
    "torchvision_model",
    "width_for",
]
