"""TransformerModule: a LightningModule around any transformer, with the head, loss and metrics of a task.

Begin with ``transformer.py``. It builds its model with ``loading.py`` (a pretrained model with the head of a task) or
``pooling.py`` (a small head on a bare encoder), looks everything about its task up in ``tasks.py``, and takes the
default optimizer and schedule from ``optim.py``. ``structure.py`` builds a model without weights, for tables of layers.

The room imports ``errors`` and nothing else of the package. ``data`` may import it, for the tasks (``tasks.py``), for
finding models (``hub.py``), for the padding token (``special_tokens.py``) and for what a model can take as input
(``limits.py``).
"""

from lightning_freeze.module.limits import InputLimits
from lightning_freeze.module.optim import DefaultAdamW, linear_warmup_decay, split_decay
from lightning_freeze.module.pooling import PooledModel
from lightning_freeze.module.transformer import TransformerModule

__all__ = ["DefaultAdamW", "InputLimits", "PooledModel", "TransformerModule", "linear_warmup_decay", "split_decay"]
