"""The networks of the examples and results, and ways to get any other."""

from espalier.models.digits_cnn import DigitsCNN
from espalier.models.lenet import LeNet5
from espalier.models.resnet_cifar import CifarResNet
from espalier.models.sources import hf_model, imported, load_weights, torchvision_model

__all__ = ["CifarResNet", "DigitsCNN", "LeNet5", "hf_model", "imported", "load_weights", "torchvision_model"]
