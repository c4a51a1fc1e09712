"""Training and fine-tuning: one loop, frozen specs, runs that resume."""

from espalier._errors import Failed
from espalier.train.distill import distillation
from espalier.train.history import Diverged, Epoch, History, Turnover
from espalier.train.loop import fit
from espalier.train.tensorboard import tensorboard_writer
from espalier.train.training import Training

__all__ = [
    "Diverged",
    "Epoch",
    "Failed",
    "History",
    "Training",
    "Turnover",
    "distillation",
    "fit",
    "tensorboard_writer",
]
