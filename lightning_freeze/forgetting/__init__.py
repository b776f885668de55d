"""How much of what a pre-trained model could do is lost in fine-tuning.

``texts.py`` reads general text, ``features.py`` runs a model over it, ``similarity.py`` compares two runs,
``result.py`` keeps the outcome, and ``callback.py`` does all this around a fit. ``tasks.py`` compares the scores of one
task after another.

May import any room below ``strategies``. Begin reading with ``callback.py``.
"""

from lightning_freeze.forgetting.callback import Forgetting
from lightning_freeze.forgetting.result import ForgettingResult, LayerDrift
from lightning_freeze.forgetting.similarity import l2_distance, linear_cka, neighbour_agreement, ranking_correlation
from lightning_freeze.forgetting.tasks import TaskForgetting, task_forgetting

__all__ = [
    "Forgetting",
    "ForgettingResult",
    "LayerDrift",
    "TaskForgetting",
    "l2_distance",
    "linear_cka",
    "neighbour_agreement",
    "ranking_correlation",
    "task_forgetting",
]
