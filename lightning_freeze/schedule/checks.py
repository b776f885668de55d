"""Checks of a schedule in a run; each gives one message that says what to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.layers import LayerStack
from lightning_freeze.layers.wording import spans
from lightning_freeze.run_warnings.record import warn_in_run
from lightning_freeze.schedule import phases as schedule
from lightning_freeze.schedule.phases import Phase, Progress
from lightning_freeze.schedule.triggers import Clock, Pace


def check_options(owner: str, monitor: object, mode: object, warmup_steps: object) -> None:
    """Refuse options of the wrong type or out of range."""
    if mode not in ("min", "max", None):
        raise ConfigurationError(f"{owner}(mode={mode!r}): expected 'min' or 'max'.")
    if monitor is not None and (not isinstance(monitor, str) or not monitor.strip()):
        raise ConfigurationError(f"{owner}(monitor={monitor!r}): expected the name of a logged metric.")
    if isinstance(warmup_steps, bool) or not isinstance(warmup_steps, int) or warmup_steps < 0:
        raise ConfigurationError(
            f"{owner}(warmup_steps={warmup_steps!r}): expected a whole number of optimizer steps, 0 or more."
        )


def only_metric(owner: str, watched: Mapping[str, object]) -> str:
    """The one metric that the triggers watch; refuse to guess if there are none or several."""
    if len(watched) != 1:
        raise ConfigurationError(
            f"{owner}(restore_best=True) needs to know which weights are best, and the triggers watch "
            f"{'no metric' if not watched else 'several metrics'}; name one, such as monitor='val_loss'."
        )
    return next(iter(watched))


def check_phases_differ(
    owner: str,
    phases: Sequence[Phase],
    trains: Sequence[Iterable[Parameter]],
    factors: Sequence[Mapping[Parameter, float]],
    stack: LayerStack,
) -> None:
    """Refuse a phase that trains the same parameters at the same rates as the phase before."""
    for number in range(1, len(phases)):
        before = number - 1
        if set(trains[number]) == set(trains[before]) and factors[number] == factors[before]:
            raise ConfigurationError(
                f"Phases {number} and {number + 1} of {owner} train the same layers ({phases[number].train}); merge "
                f"them.{_tied(stack, phases[number - 1], phases[number])}"
            )


def _tied(stack: LayerStack, before: Phase, after: Phase) -> str:
    """Explain why two phases that name different layers train the same parameters: shared weights."""
    layers = [{layer.name for layer in stack.select(phase.train).layers} for phase in (before, after)]
    tie = next((tie for tie in stack.ties if tie.used_by in layers[0] ^ layers[1]), None)
    if tie is None:
        return ""
    return f" Layer {tie.used_by} has no weights of its own here: {tie.alias} is tied to {tie.name} of {tie.layer}."


def warn_of_frozen_by_module(
    owner: str,
    stack: LayerStack,
    scheduled: Iterable[Parameter],
    given: Callable[[Parameter], bool],
    trainer: Trainer,
) -> None:
    """Warn of blocks that a schedule names and that the module itself had frozen before the fit.

    Models of PEFT freeze their base weights on purpose, so there is no warning for them.

    Args:
        owner: The name of the callback that has the phases.
        stack: The layers.
        scheduled: The parameters that train in any phase.
        given: Returns the ``requires_grad`` that the module itself has set for a parameter.
        trainer: The running trainer.
    """
    if any(hasattr(module, "peft_config") for module in stack.module.modules()):
        return
    names = {id(parameter) for parameter in scheduled}
    frozen = [
        block.name
        for block in stack.blocks
        if (own := block.parameters())
        and all(id(p) in names for p in own)
        and not any(given(p) or not p.is_floating_point() for p in own)
    ]
    if frozen:
        warn_in_run(
            trainer,
            f"{owner} leaves {spans(frozen, stack.names)} frozen in every phase: {type(stack.module).__name__} had set "
            f"requires_grad=False there before the fit. {owner}(unfreeze_all=True) unfreezes what the module froze; "
            f"otherwise leave these layers out of the schedule.",
        )


def check_phases_train(
    owner: object,
    phases: Sequence[Phase],
    trains: Sequence[Iterable[Parameter]],
    can_train: Callable[[Parameter, Any], bool],
    holders: Callable[[Parameter], Sequence[object]],
) -> None:
    """Refuse a phase if all of its layers are frozen by something else.

    Args:
        owner: The callback that has the phases.
        phases: The phases.
        trains: For each phase the parameters that it would train.
        can_train: Whether a parameter would train if only the callback unfroze it.
        holders: The callbacks that hold a parameter frozen.

    Raises:
        ConfigurationError: Naming the phase, and what freezes its layers.
    """
    for number, (phase, parameters) in enumerate(zip(phases, trains, strict=True), start=1):
        parameters = list(parameters)
        if any(can_train(parameter, owner) for parameter in parameters):
            continue
        if not parameters:
            raise ConfigurationError(
                f"Phase {number} of {type(owner).__name__} ({phase.train}) would train nothing: these layers own no "
                f"parameters, all of theirs are tied to other layers. Add a block, such as '-1,{phase.train}'."
            )
        others = {type(holder).__name__ for p in parameters for holder in holders(p) if holder is not owner}
        if not others:
            raise ConfigurationError(
                f"Phase {number} of {type(owner).__name__} ({phase.train}) would train nothing: its layers are frozen "
                f"by the module itself, at construction. Choose other layers, with start= or train=, or set "
                f"unfreeze_all=True."
            )
        raise ConfigurationError(
            f"Phase {number} of {type(owner).__name__} ({phase.train}) would train nothing: its layers are frozen by "
            f"{' and '.join(sorted(others))}. Choose other layers for one of them."
        )


def check_phases_are_optimized(
    owner: str,
    phases: Sequence[Phase],
    trains: Sequence[Mapping[Parameter, None]],
    trainer: Trainer,
    module: LightningModule,
    would_train: Callable[[Parameter], bool],
) -> None:
    """Refuse a phase if no optimizer holds any of the parameters that it unfreezes."""
    optimized = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    # Strategies that flatten or shard parameters later hold other objects than the module.
    if not optimized & set(module.parameters()):
        return
    known: set[Parameter] = set()
    for number, (phase, parameters) in enumerate(zip(phases, trains, strict=True), start=1):
        fresh = {parameter for parameter in parameters if parameter not in known and would_train(parameter)}
        known |= fresh
        if fresh and not optimized & fresh:
            raise ConfigurationError(
                f"Phase {number} of {owner} ({phase.train}) would train nothing new: no optimizer of "
                f"{type(module).__name__} holds the parameters that it unfreezes. Give configure_optimizers all of "
                f"self.parameters()."
            )


def warn_of_layers_left_out(
    owner: str,
    stack: LayerStack,
    trains: Sequence[Mapping[Parameter, None]],
    trainer: Trainer,
    module: LightningModule,
    would: Callable[..., bool],
) -> bool:
    """Warn of layers, or single parameters in them, that a phase unfreezes but no optimizer holds.

    Args:
        owner: The name of the callback that has the phases.
        stack: The layers.
        trains: For each phase the parameters that it trains.
        trainer: The running trainer, whose optimizers exist.
        module: The module that is being fitted.
        would: Returns whether a parameter would train if a phase unfroze it.

    Returns:
        Whether there was anything to warn of.
    """
    optimized = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
    if not optimized & {p for layer in stack for p in layer.parameters()}:
        return False
    unfrozen = {p for parameters in trains for p in parameters if would(p)}
    left_out = unfrozen - optimized
    if not left_out:
        return False
    whole = [x for x in stack if left_out & set(x.parameters()) and not optimized & set(x.parameters())]
    rest = left_out - {parameter for layer in whole for parameter in layer.parameters()}
    single = [name for name, parameter in module.named_parameters() if parameter in rest]
    found = []
    if whole:
        found.append(f"{', '.join(layer.name for layer in whole)}, of which no optimizer holds a parameter")
    if single:
        found.append(f"{', '.join(single[:8])}{' ...' if len(single) > 8 else ''}, which no optimizer holds")
    warn_in_run(
        trainer,
        f"{owner} unfreezes {' and '.join(found)}: they will not train. Give configure_optimizers all of "
        f"self.parameters(), or leave them out of the phases.",
    )
    return True


def check_metrics_are_validated(owner: str, watched: Sequence[str], trainer: Trainer) -> None:
    """Refuse a schedule that waits for validations in a run without any."""
    loaders = trainer.val_dataloaders  # None until the first epoch that validates
    is_empty = isinstance(loaders, (list, tuple, dict)) and not loaders
    if watched and (not trainer.enable_validation or is_empty):
        raise ConfigurationError(
            f"{owner} watches {watched[0]!r} at each validation, but this run has no validation; give it validation "
            f"data, or use EpochTrigger or StepTrigger."
        )


def warn_of_misspelt_metrics(owner: str, watched: Sequence[str], trainer: Trainer) -> None:
    """Warn, in the sanity check, of a metric that was not logged while one with a similar name was."""
    logged = trainer.callback_metrics
    for name in watched:
        matches = get_close_matches(name, list(logged), n=1, cutoff=0.85)
        if name not in logged and matches:
            warn_in_run(
                trainer,
                f"{owner} watches {name!r}, which the sanity check did not log. Did you mean {matches[0]!r}? If it is "
                f"not logged at the first validation either, the run ends there.",
            )


def warn_if_too_long(owner: str, phases: Sequence[Phase], progress: Progress, trainer: Trainer) -> None:
    """Warn, with the numbers, of a schedule that cannot reach its last phase before the run ends."""
    if trainer.fast_dev_run or progress.phase == len(phases) - 1:  # type: ignore[attr-defined]
        return
    if len(trainer.optimizers) != 1 or not trainer.lightning_module.automatic_optimization:
        return  # the module decides how many steps it makes in a batch
    total = trainer.estimated_stepping_batches
    if math.isinf(trainer.num_training_batches) or math.isinf(total) or total < 0:
        return
    pace = pace_of(trainer)
    steps_per_epoch = math.ceil(pace.batches_per_epoch / pace.batches_per_step)
    begun = progress.starts[-1] if progress.starts else Clock(trainer.current_epoch, trainer.global_step)
    batch = round(begun.step / steps_per_epoch * pace.batches_per_epoch)
    needed = schedule.earliest_start(phases, progress.phase, batch, pace) / pace.batches_per_epoch
    available = total / steps_per_epoch
    if needed >= available:
        warn_in_run(
            trainer,
            f"{owner} has {len(phases)} phases and reaches the last one after {needed:.4g} epochs "
            f"({math.ceil(needed * steps_per_epoch)} optimizer steps) at the earliest, but the run ends after "
            f"{available:.4g} epochs ({int(total)} steps): some layers will never train. Train for longer, shorten the "
            f"triggers, or unfreeze more layers in each phase.",
        )


def pace_of(trainer: Trainer, batches_per_epoch: int | None = None) -> Pace:
    """The pace of a run whose data loaders exist.

    Args:
        trainer: The trainer.
        batches_per_epoch: Training batches in an epoch, where the training data has no length.
    """
    per_epoch = int(trainer.num_training_batches) if batches_per_epoch is None else batches_per_epoch
    per_validation = (trainer.check_val_every_n_epoch or 1) * per_epoch
    batches = trainer.val_check_batch
    if batches is not None and (trainer.check_val_every_n_epoch is None or batches < per_epoch):
        per_validation = int(batches)
    return Pace(per_epoch, max(1, per_validation), trainer.accumulate_grad_batches)


def check_same_schedule(
    owner: str, state: Mapping[str, Any], phases: Sequence[Phase], layers: Sequence[Mapping[str, Any]]
) -> None:
    """Refuse to resume with other layers, or with a schedule that differs in phases that have begun."""
    phase = int(state["phase"])
    before, now = state["plan"][: phase + 1], [str(p) for p in phases[: phase + 1]]
    # The end of the running phase may differ: a schedule can be shortened or extended.
    if before[:-1] != now[:-1] or _trains(before[-1]) != _trains(now[-1] if len(now) == len(before) else ""):
        raise ConfigurationError(
            f"The checkpoint was made in phase {phase + 1} of another {owner} schedule, so it cannot be resumed with "
            f"this one. Its phases so far: {before}; now: {now}. Resume with the schedule that the run began with "
            f"(later phases may differ), or begin a new run from the weights alone."
        )
    if layers and state["layers"] != list(layers):
        old, new = ({entry["layer"]: entry["parameters"] for entry in stack} for stack in (state["layers"], layers))
        changed = [name for name in {**old, **new} if old.get(name) != new.get(name)] or ["their order"]
        raise ConfigurationError(
            f"The layers of the module have changed since the checkpoint was made, so {owner} cannot be resumed: "
            f"{', '.join(changed[:8])}{' ...' if len(changed) > 8 else ''}. Resume with the same module and groups."
        )


def _trains(phase: str) -> str:
    return phase.split(" until ")[0]
