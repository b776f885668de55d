"""The losses of a student beside a teacher, as pure functions of their outputs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_freeze.module.tasks import IGNORE_INDEX, Task


def soft_loss(task: Task, student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the distance of the student's predictions from the teacher's.

    For classes and tokens it is the Kullback-Leibler divergence from the student's distribution to the teacher's, both
    softened by the temperature T, and multiplied by T squared so that its gradients do not shrink with T (Hinton et
    al., 2015, "Distilling the Knowledge in a Neural Network", section 2). It is a mean over the examples, or the
    tokens that count, as the loss with labels is. Tasks with several labels have the divergence of each label, and
    regression has the squared error, which no temperature changes.

    Args:
        task: The task.
        student: Logits, as for :meth:`Task.loss`.
        teacher: Logits of the same shape.
        labels: As for :meth:`Task.loss`; only the positions to leave out are read.
        temperature: T, above 0.
    """
    student, teacher = _wide(student), _wide(teacher)
    if task.target == "value":
        return F.mse_loss(student, teacher)
    if task.target == "multilabel":
        student, teacher = student / temperature, teacher / temperature
        soft = teacher.sigmoid()
        entropy = F.binary_cross_entropy_with_logits(teacher, soft)
        return (F.binary_cross_entropy_with_logits(student, soft) - entropy) * temperature**2
    if not task.pooled:
        teacher, _ = task.aligned(teacher, labels)
        student, labels = task.aligned(student, labels)
        counted = labels != IGNORE_INDEX
        student, teacher = student[counted], teacher[counted]
    divergence = F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.log_softmax(teacher / temperature, -1),
        log_target=True,
        reduction="sum",
    )
    return divergence / len(student) * temperature**2


def hidden_loss(student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean cosine distance between hidden states (Sanh et al., 2019, "DistilBERT", section 2).

    Args:
        student: ``(batch, sequence, hidden)`` or ``(batch, hidden)``.
        teacher: Of the same shape.
        mask: ``(batch, sequence)``, 0 at padding, which is left out; None for no padding.
    """
    distance = 1 - F.cosine_similarity(_wide(student), _wide(teacher), dim=-1)
    if mask is None or mask.shape != distance.shape:
        return distance.mean()
    weights = mask.to(distance.dtype)
    return (distance * weights).sum() / weights.sum().clamp(min=1)


def _wide(tensor: Tensor) -> Tensor:
    """Return a tensor in 32 bits at least: in 16 bits a divergence loses most of its digits."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
