"""TransformerModule: a LightningModule around any transformer, with the head, loss and metrics of a task.

``transformer.py`` builds its model with ``build.py``: a pre-trained model with the head of a task (``pretrained/``), or
a small head on a bare encoder (``pooling.py``). Everything about a task is in ``tasks.py``; the default optimizer and
schedule are in ``optim.py``. ``metric_direction.py`` says whether a larger value of a metric is better.

``adapters.py`` puts adapters of peft into the model, ``distillation/`` lets it learn from a teacher.

May import ``arguments``, ``errors``, ``namespaces`` and ``run_warnings``; ``adapters.py`` asks ``diagnostics`` which
weights were loaded, and ``distillation/`` uses the store and the keys of ``cache``. Begin reading with
``transformer.py``.
"""

from lightning_freeze.module.distillation.options import DistillationOptions
from lightning_freeze.module.optim import DefaultAdamW, linear_warmup_decay, split_decay
from lightning_freeze.module.pooling import PooledModel
from lightning_freeze.module.pretrained.limits import InputLimits
from lightning_freeze.module.transformer import TransformerModule

__all__ = [
    "DefaultAdamW",
    "DistillationOptions",
    "InputLimits",
    "PooledModel",
    "TransformerModule",
    "linear_warmup_decay",
    "split_decay",
]
