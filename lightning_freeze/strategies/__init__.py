"""Published fine-tuning strategies, each a small callback on the same phases, holds and rates.

``ChainThaw``, ``LinearProbeThenFineTune`` and ``ULMFiT`` are lists of phases.

May import every room but ``cli`` and ``plan``. Begin reading with ``linear_probe.py``, the smallest strategy.
"""

from lightning_freeze.strategies.chain_thaw import ChainThaw
from lightning_freeze.strategies.linear_probe import LinearProbeThenFineTune
from lightning_freeze.strategies.ulmfit import ULMFiT

__all__ = ["ChainThaw", "LinearProbeThenFineTune", "ULMFiT"]
