"""TensorBoard beside the JSON-lines log."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from torch import nn

from espalier._errors import EspalierError
from espalier.train.history import Epoch

_SCALARS = (
    "train_loss",
    "accuracy",
    "loss",
    "sparsity",
    "cosine",
    "agreement",
    "divergence",
    "logit_cosine",
    "lr",
)


def tensorboard_writer(folder: Path) -> Callable[[Epoch, nn.Module], None]:
    """A function for `on_epoch` of `fit` that writes each epoch's numbers as scalars.

    After a resume it goes on in the same folder.

    Raises:
        EspalierError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise EspalierError("logging to TensorBoard needs it: pip install 'espalier[tensorboard]'") from None

    writer = SummaryWriter(str(folder))

    def write(epoch: Epoch, model: nn.Module) -> None:
        values = {name: getattr(epoch, name) for name in _SCALARS}
        if epoch.turnover is not None:
            values |= dataclasses.asdict(epoch.turnover)
        for name, value in values.items():
            if value is not None:
                writer.add_scalar(name, value, epoch.epoch)
        writer.flush()

    return write
