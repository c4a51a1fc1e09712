"""scikit-learn's digits: 1,797 images of 8x8 pixels inside the dependency, nothing to download."""

import torch

from espalier._errors import EspalierError
from espalier.data._base import Augmentation, Dataset, Normalization, Options, in_memory, seeded, split_rows

TEST_IMAGES = 360


def digits(options: Options | None = None) -> Dataset:
    """Load the digits; 360 images (a fixed permutation) are the test split.

    Inputs are pixel / 16 in [0, 1], shape (1, 8, 8), not normalized further by default; augmentation moves by
    up to one pixel.

    Raises:
        EspalierError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EspalierError("the digits need scikit-learn: pip install 'espalier[train]'") from None
    options = options or Options()
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=seeded("digits"))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return in_memory(
        "digits",
        (images[train], labels[train]),
        (images[test], labels[test]),
        split_rows(len(train), len(test), options),
        classes=tuple(map(str, range(10))),
        source="scikit-learn digits (UCI optical recognition, 1,797 images)",
        options=options,
        normalization=Normalization(),
        augmentation=Augmentation(padding=1, flip=False),
        scale=16.0,
    )
