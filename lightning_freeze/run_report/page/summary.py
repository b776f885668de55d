"""What a run came to, in a few numbers and sentences."""

from __future__ import annotations

from lightning_freeze.cache.store.sizes import show_size
from lightning_freeze.layers.wording import count, percent
from lightning_freeze.run_report.page.view import View, number, seconds_text

_MOST_IN_A_SENTENCE = 6


def headline(view: View) -> list[tuple[str, str]]:
    """The most important numbers: value and label."""
    history = view.history
    total = sum(history.sizes)
    cards = []
    best = history.best.get(view.metric) if view.metric is not None else None
    if best is not None and view.metric is not None:
        cards.append((number(best.metrics[view.metric], 4), f"best {view.metric}, at step {best.step}"))
    if history.phases:
        most = max(sum(phase.trainable) for phase in history.phases)
        cards.append((percent(most / total) if total else "-", f"of {count(total)} parameters trained at most"))
    cards.append((str(len(history.phases) + history.later_phases), "phases" if len(history.phases) != 1 else "phase"))
    cards.append((f"{history.end - history.began:,}", "steps"))
    seconds = _training_seconds(view)
    if seconds is not None:
        cards.append((seconds_text(seconds), "in training batches"))
    if view.facts.hit_rate is not None:
        cards.append((f"{view.facts.hit_rate:.0%}", "of the samples read from the cache"))
    return cards


def sentences(view: View) -> list[str]:
    """What happened, and whether freezing paid off, as far as the run itself can tell."""
    return [*_progress(view), *_metric(view), *_time(view), *_planned_time(view), *_memory(view)]


def changes(view: View) -> list[str]:
    """One sentence for each phase: when it began, what trains, and why."""
    total = sum(view.history.sizes)
    lines = []
    for position, phase in enumerate(view.phases, start=1):
        share = f"{count(sum(phase.trainable))} of {count(total)} parameters"
        begun = f"Phase {position}, epoch {phase.epoch}, step {phase.step}"
        trains = view.trains(phase)
        plural = "train" if "," in trains or "..." in trains or trains == "embeddings" else "trains"
        if position == 1:
            lines.append(f"{begun} ({phase.cause}): {trains} {plural} ({share}).")
        else:
            lines.append(f"{begun}: {trains} {plural} ({share}), because {phase.cause}.")
    if view.history.later_phases:
        lines.append(
            f"What trains changed {view.history.later_phases} more times; all of that is shown as phase {len(lines)}."
        )
    return lines


def _progress(view: View) -> list[str]:
    facts, history = view.facts, view.history
    optimizers = " and ".join(facts.optimizers) or "no optimizer"
    processes = f" on {facts.processes} processes" if facts.processes > 1 else ""
    of = f" of {facts.epochs}" if facts.epochs else ""
    lines = [f"{facts.module} with {optimizers}{processes}; {facts.epoch}{of} epochs. Written {facts.written}."]
    if history.began:
        lines.append(f"The history begins at step {history.began}.")
    return lines


def _metric(view: View) -> list[str]:
    if view.metric is None:
        return ["No validation has logged a metric, so this page cannot say whether freezing helped."]
    curve = view.curve(view.metric)
    best = view.history.best.get(view.metric)
    if not curve or best is None:
        return []
    value = best.metrics[view.metric]
    phase = f", phase {best.phase}" if len(view.phases) > 1 else ""
    where = f"step {best.step}{phase}"
    last = curve[-1][1]
    if best.step == curve[0][0]:
        later = "" if len(curve) == 1 else f"; later validations were no better, the last one {number(last, 4)}"
        return [f"{view.metric} was {number(value, 4)} at the first validation ({where}){later}."]
    after = "" if best.step == curve[-1][0] else f", and ended at {number(last, 4)}"
    lines = [f"{view.metric} went from {number(curve[0][1], 4)} to {number(value, 4)} at best ({where}){after}."]
    by_phase = [view.best_in_phase(position) for position in range(1, len(view.phases) + 1)]
    if 1 < sum(best is not None for best in by_phase) <= _MOST_IN_A_SENTENCE:
        values = ", ".join(f"{number(v, 4)} in phase {i}" for i, v in enumerate(by_phase, start=1) if v is not None)
        lines.append(f"The best {view.metric} of each phase: {values}.")
    return lines


def _time(view: View) -> list[str]:
    known = [(i, p, p.batch_seconds) for i, p in enumerate(view.phases, start=1) if p.batch_seconds is not None]
    if len(known) < 2:
        return []
    least = min(known, key=lambda each: sum(each[1].trainable))
    most = max(known, key=lambda each: sum(each[1].trainable))
    if sum(least[1].trainable) == sum(most[1].trainable):
        return []
    return [
        f"A batch took {seconds_text(least[2])} with {count(sum(least[1].trainable))} trainable parameters (phase "
        f"{least[0]}) and {seconds_text(most[2])} with {count(sum(most[1].trainable))} (phase {most[0]})."
    ]


def _planned_time(view: View) -> list[str]:
    """The run cannot know how long full fine-tuning takes; the plan does."""
    found = [(p.batches, plan.time) for p, plan in zip(view.phases, view.planned, strict=True) if plan is not None]
    known = [(batches, time) for batches, time in found if time is not None]
    batches = sum(batches for batches, _ in known)
    if not batches or len(known) < len(view.phases):
        return []
    share = sum(batches * time for batches, time in known) / batches
    return [f"By the plan, training takes {share:.2f} of the time of full fine-tuning in these phases."]


def _memory(view: View) -> list[str]:
    known = [phase.memory for phase in view.phases if phase.memory is not None]
    if not known:
        return []
    most = max(memory.gradients + memory.optimizer for memory in known)
    full = max(memory.full_gradients + memory.full_optimizer for memory in known)
    if most >= full:
        return []
    return [
        f"Gradients and optimizer state took {show_size(most)} at most; full fine-tuning would take about "
        f"{show_size(full)}."
    ]


def _training_seconds(view: View) -> float | None:
    times = [(phase.batches, phase.batch_seconds) for phase in view.phases]
    known = [batches * seconds for batches, seconds in times if seconds is not None]
    return sum(known) if known else None
