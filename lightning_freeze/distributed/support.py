"""Which strategies support a schedule; others are refused with an alternative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.nn.parallel import DistributedDataParallel

from lightning_freeze.distributed.sharding import is_sharded
from lightning_freeze.errors import ConfigurationError
from lightning_freeze.namespaces import either

_WAY_OUT = (
    "Use ModelParallelStrategy(data_parallel_size=..., tensor_parallel_size=1) with fully_shard() on each block in "
    "configure_model, which shards parameter by parameter (FSDP2) and goes with all callbacks, or strategy='ddp'."
)


def check_strategy(owners: Sequence[str], trainer: Trainer) -> None:
    """Refuse strategies that flatten the parameters when they wrap the model, before they do so.

    Args:
        owners: The names of the callbacks that change what trains, or at which rate, during the run.
        trainer: The running trainer.

    Raises:
        ConfigurationError: If the strategy is known not to support it.
    """
    if not owners:
        return
    strategy = trainer.strategy
    if isinstance(strategy, either(FSDPStrategy)):
        cause = "FSDP of the first generation joins the parameters of several layers into flat ones"
        way_out = f"{_WAY_OUT} LayerFreezing alone works here."
    elif isinstance(strategy, either(DeepSpeedStrategy)):
        cause = "DeepSpeed copies the parameters that train, and their groups, when it wraps the model"
        way_out = _WAY_OUT
    else:
        _check_communication(owners, strategy)
        return
    raise ConfigurationError(f"{_and(owners)} cannot run under {type(strategy).__name__}: {cause}. {way_out}")


def check_wrapped(owners: Sequence[str], trainer: Trainer, module: LightningModule) -> None:
    """Refuse wrappers that cannot follow a change of the trainable parameters, after the model was wrapped.

    Call it while all parameters have their original ``requires_grad``.

    Args:
        owners: The names of the callbacks that change what trains, or at which rate, during the run.
        trainer: The running trainer.
        module: The module that is being fitted.

    Raises:
        ConfigurationError: If the model is wrapped in something unknown, or some parameters are not synchronised.
    """
    if not owners:
        return
    strategy = trainer.strategy
    foreign = foreign_wrapper(trainer, module)
    if foreign is not None:
        raise ConfigurationError(
            f"{_and(owners)} cannot run under {type(strategy).__name__}: it wraps the model in "
            f"{type(foreign).__name__}, which cannot be told that other parameters train. {_WAY_OUT}"
        )
    if isinstance(strategy, either(ModelParallelStrategy)) and strategy.distributed_sampler_kwargs["num_replicas"] > 1:
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and not is_sharded(parameter):
                raise ConfigurationError(
                    f"{name} is not sharded, so nothing keeps it the same on all ranks once it trains: configure_model "
                    f"of {type(module).__name__} calls fully_shard() on parts of the module only. Call "
                    f"fully_shard(self) last."
                )


def foreign_wrapper(trainer: Trainer, module: LightningModule) -> object | None:
    """The wrapper of the model, if it moves parameters or gradients out of the module.

    Args:
        trainer: The running trainer, once the strategy has wrapped the model.
        module: The module that is being fitted.
    """
    wrapper = trainer.strategy.model
    replicated = isinstance(trainer.strategy, either(DDPStrategy)) and isinstance(wrapper, DistributedDataParallel)
    return wrapper if wrapper is not module and not replicated else _flattened(module)


def _check_communication(owners: Sequence[str], strategy: object) -> None:
    # PowerSGD keeps the error of each gradient bucket for the next step; new buckets would get the errors of others.
    if hasattr(getattr(strategy, "_ddp_comm_state", None), "error_dict"):  # no public name for the hook's state
        raise ConfigurationError(
            f"{_and(owners)} cannot run with the PowerSGD communication hook, which remembers an error for each bucket "
            f"of gradients: the buckets are others when other layers train. Use fp16_compress_hook or none."
        )


def _flattened(module: LightningModule) -> object | None:
    if not torch.distributed.is_available():
        return None
    from torch.distributed.fsdp import FullyShardedDataParallel

    return next((part for part in module.modules() if isinstance(part, FullyShardedDataParallel)), None)


def _and(names: Sequence[str]) -> str:
    return " and ".join(dict.fromkeys(names))
