"""What changes when a strategy replicates or shards the model.

DDP wraps the model again when other parameters train. FSDP2 modules are resharded before a change and refreshed after
it. Strategies that do not support a schedule are refused. The ranks of a sharded run exchange decisions (``ranks.py``).

May import ``layers`` and ``errors``. Begin reading with ``support.py`` (what is refused) and ``changes.py``.
"""

from lightning_freeze.distributed.agreement import mean_of_each, mean_over_ranks
from lightning_freeze.distributed.changes import before_change, call_before_change, resynchronise
from lightning_freeze.distributed.optimizer_state import restore_where_saved
from lightning_freeze.distributed.ranks import Ranks, ranks_of
from lightning_freeze.distributed.replaced import Snapshot
from lightning_freeze.distributed.sharding import gathered, reshard, whole, write
from lightning_freeze.distributed.support import check_strategy, check_wrapped, foreign_wrapper

__all__ = [
    "Ranks",
    "Snapshot",
    "before_change",
    "call_before_change",
    "check_strategy",
    "check_wrapped",
    "foreign_wrapper",
    "gathered",
    "mean_of_each",
    "mean_over_ranks",
    "ranks_of",
    "reshard",
    "restore_where_saved",
    "resynchronise",
    "whole",
    "write",
]
