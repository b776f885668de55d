"""A run equals a plain PyTorch loop bit for bit, whatever the schedule, the optimizer, accumulation and clipping."""

import random
from dataclasses import dataclass

import pytest
import torch
from toys import DEPTH, fit, layer_of, loader, make, weights

from lightning_freeze import EpochTrigger, Phase, PhasedFineTuning, PlateauTrigger, StepTrigger

LAYERS = ["embeddings", *map(str, range(DEPTH)), "head"]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
}
SCHEDULERS = {
    "none": lambda optimizer, steps: None,
    "cosine": lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=0.001),
    "lambda": lambda optimizer, steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
}


@dataclass(frozen=True)
class Plan:
    """One random run: each phase is a set of layers and ``(kind, count)``, what ends it."""

    phases: list
    optimizer: str
    scheduler: str
    batches: int
    epochs: int
    accumulate: int
    clip: tuple
    validate_every: int
    script: list


def draw(seed):
    rng = random.Random(seed)
    phases, last = [], None
    for _ in range(rng.randint(2, 5)):
        layers = last
        while layers == last:
            layers = [name for name in LAYERS if rng.random() < 0.5] or ["head"]
        last = layers
        phases.append((layers, (rng.choice(["epochs", "steps", "plateau"]), rng.randint(1, 3))))
    batches = rng.randint(3, 7)
    return Plan(
        phases=phases,
        optimizer=rng.choice(list(OPTIMIZERS)),
        scheduler=rng.choice(list(SCHEDULERS)),
        batches=batches,
        epochs=rng.randint(4, 6),
        accumulate=rng.choice([1, 1, 2, 3]),
        clip=rng.choice([(None, None), (0.1, "norm"), (0.05, "value")]),
        validate_every=rng.randint(1, batches),
        script=[rng.choice([1.0, 2.0, 3.0, 0.5]) for _ in range(60)],
    )


def by_hand(plan):
    """What the run should be, with nothing but PyTorch; also says at which batches the phase changed."""
    module = make()
    optimizer = OPTIMIZERS[plan.optimizer](module.parameters())
    scheduler = SCHEDULERS[plan.scheduler](optimizer, plan.epochs * plan.batches)
    data, script = list(loader(plan.batches)), iter(plan.script)
    clip, how = plan.clip
    phase, epochs_begun, steps_begun, step = -1, 0, 0, 0
    best, misses, changes = None, 0, []
    for epoch in range(plan.epochs):
        for number, (tokens, labels) in enumerate(data):
            kind, count = plan.phases[phase][1]
            passed = {"epochs": epoch - epochs_begun, "steps": step - steps_begun, "plateau": misses}[kind]
            # A plateau has failed to improve more often than its patience.
            if phase < 0 or (phase < len(plan.phases) - 1 and passed >= count):
                phase, epochs_begun, steps_begun, best, misses = phase + 1, epoch, step, None, 0
                changes.append((epoch, number))
                for name, parameter in module.named_parameters():
                    parameter.requires_grad_(layer_of(name) in plan.phases[phase][0])
                    parameter.grad = None
            (torch.nn.functional.cross_entropy(module(tokens), labels) / plan.accumulate).backward()
            if (number + 1) % plan.accumulate == 0 or number + 1 == len(data):
                if how == "norm":
                    torch.nn.utils.clip_grad_norm_(module.parameters(), clip)
                elif how == "value":
                    torch.nn.utils.clip_grad_value_(module.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                if scheduler is not None:
                    scheduler.step()
            if (number + 1) % plan.validate_every == 0:
                value = next(script)
                best, misses = (value, 0) if best is None or value < best else (best, misses + 1)
    return weights(module), changes


def with_the_callback(plan):
    def optimizers(module):
        optimizer = OPTIMIZERS[plan.optimizer](module.parameters())
        scheduler = SCHEDULERS[plan.scheduler](optimizer, plan.epochs * plan.batches)
        return optimizer if scheduler is None else ([optimizer], [{"scheduler": scheduler, "interval": "step"}])

    triggers = {
        "epochs": EpochTrigger,
        "steps": StepTrigger,
        "plateau": lambda count: PlateauTrigger("scripted", patience=count - 1),
    }
    phases = [Phase(",".join(layers), triggers[kind](count)) for layers, (kind, count) in plan.phases[:-1]]
    callback = PhasedFineTuning([*phases, Phase(",".join(plan.phases[-1][0]))], verbose=False)
    module = make(make_optimizers=optimizers, values=plan.script)
    fit(
        module,
        callback,
        batches=plan.batches,
        max_epochs=plan.epochs,
        val_check_interval=plan.validate_every,
        accumulate_grad_batches=plan.accumulate,
        gradient_clip_val=plan.clip[0],
        gradient_clip_algorithm=plan.clip[1],
    )
    return weights(module)


# A random schedule may be too long for its run, or train the embeddings below frozen blocks, which is warned of and
# does not matter here.
@pytest.mark.fast_cases(17)
@pytest.mark.filterwarnings("ignore:PhasedFineTuning has .* phases and reaches the last one after")
@pytest.mark.filterwarnings("ignore:Phase .* trains embeddings below")
@pytest.mark.parametrize("seed", range(60))
def test_a_run_equals_a_plain_loop_bit_for_bit(seed):
    plan = draw(seed)
    expected, _ = by_hand(plan)
    found = with_the_callback(plan)
    assert found.keys() == expected.keys()
    different = [name for name in found if not torch.equal(found[name], expected[name])]
    assert not different, plan


@pytest.mark.slow
def test_the_random_runs_cover_what_they_should():
    plans = [draw(seed) for seed in range(60)]
    changes = [(plan, change) for plan in plans for change in by_hand(plan)[1][1:]]
    assert len(changes) > 100
    assert any(number for _, (_, number) in changes)  # in mid-epoch
    in_mid_accumulation = [c for plan, c in changes if c[1] % plan.accumulate]
    assert len(in_mid_accumulation) >= 5
    refrozen = [p for p in plans if any(set(a[0]) - set(b[0]) for a, b in zip(p.phases, p.phases[1:], strict=False))]
    assert len(refrozen) > 30
