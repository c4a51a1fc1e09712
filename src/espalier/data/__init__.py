"""Data sets: frozen values with a training, validation and test split, and batches without hidden state."""

from espalier.data._base import (
    CIFAR10,
    CIFAR100,
    IMAGENET,
    VALIDATION_SEED,
    AbstractSplit,
    Augmentation,
    Batch,
    Dataset,
    Normalization,
    Options,
    TensorSplit,
    data_folder,
    seeded,
)
from espalier.data.digits import digits
from espalier.data.folder import FolderSplit, image_folder
from espalier.data.parquet import hub, parquet
from espalier.data.torchvision_data import torchvision_data

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "IMAGENET",
    "VALIDATION_SEED",
    "AbstractSplit",
    "Augmentation",
    "Batch",
    "Dataset",
    "FolderSplit",
    "Normalization",
    "Options",
    "TensorSplit",
    "data_folder",
    "digits",
    "hub",
    "image_folder",
    "parquet",
    "seeded",
    "torchvision_data",
]
