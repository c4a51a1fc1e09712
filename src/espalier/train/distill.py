"""Losses: labels, a teacher, or both."""

import torch.nn.functional as F
from torch import Tensor

from espalier.train.training import Training


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    r"""Divergence from the teacher's softened answer, mean over the batch.

    .. math:: T^2 \, KL\big(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T)\big)

    The factor T² keeps the size of the gradient independent of the temperature.

    Args:
        logits: the student's z_s, (B, classes).
        teacher: z_t, (B, classes).
        temperature: T, positive.

    References:
        Hinton, Vinyals, Dean (2015), "Distilling the knowledge in a neural network".
    """
    return temperature**2 * F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def objective(training: Training, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
    """The loss of a batch: cross-entropy, distillation, or their weighted mean; mean over examples.

    Without `training.labels` the labels are not read.
    """
    if teacher is None:
        return F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
    towards = distillation(logits, teacher, training.temperature)
    if not training.labels:
        return towards
    known = F.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
    return (1 - training.teacher_weight) * known + training.teacher_weight * towards
