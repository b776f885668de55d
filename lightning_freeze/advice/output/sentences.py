"""What advice says in sentences: the recommendation, what to expect of it, and how sure it is."""

from __future__ import annotations

from lightning_freeze.advice.candidates import FULL
from lightning_freeze.advice.records import AdviceRecord, CandidateResult
from lightning_freeze.cache.store.sizes import show_size


def sentences(advice: AdviceRecord) -> list[str]:
    """The advice as sentences, the recommendation first.

    Args:
        advice: The advice.
    """
    lines = [_recommendation(advice), _sureness(advice), *_costs(advice), *_depths(advice), _price(advice)]
    return [line for line in lines if line]


def quality(result: CandidateResult, digits: int = 3) -> str:
    """The metric of a plan at full length, with its standard deviation over the seeds.

    Args:
        result: The plan.
        digits: Decimals.
    """
    if result.mean is None:
        return "-"
    spread = "" if result.spread is None else f" ± {result.spread:.{digits}f}"
    return f"{result.mean:.{digits}f}{spread}"


def _recommendation(advice: AdviceRecord) -> str:
    best, full = advice.best, advice.full
    reached = f"{advice.monitor} {quality(best)} over {len(best.scores)} seed{'s' * (len(best.scores) != 1)}"
    if best.name == FULL:
        return f"Train everything: {reached}, and no plan that freezes did better in the race."
    beside = f", full fine-tuning {quality(full)}" if full.scores else ""
    return f"Use {best.name}: {reached}{beside}."


def _sureness(advice: AdviceRecord) -> str:
    if advice.recommended == FULL:
        others = [result for result in advice.results if result.scores and result.name != FULL]
        return f"The next best plan is {others[0].name}, {quality(others[0])}." if others else ""
    found = advice.difference
    if found is None:
        return "How sure this is cannot be said: one seed, and no score for single examples."
    if found.low == found.high == 0:
        return "The two cannot be told apart: they score the same in every draw of the bootstrap."
    share = f"{found.level:.0%} interval {found.low:+.3f} to {found.high:+.3f}"
    verdict = f"it is at least as good in {found.positive:.0%} of the bootstrap draws"
    close = " The interval includes 0: the two cannot be told apart." if found.low <= 0 <= found.high else ""
    return f"The difference is {found.mean:+.3f} ({share}); {verdict}.{close}"


def _costs(advice: AdviceRecord) -> list[str]:
    best, full, lines = advice.best, advice.full, []
    if best.relative_time is not None and best.name != FULL:
        cache = any(entry["class_path"] == "FrozenPrefixCache" for entry in best.entries)
        with_cache = " with FrozenPrefixCache" if cache else ""
        lines.append(f"It takes about {best.relative_time:.2f} of the time of full fine-tuning{with_cache}.")
    if best.peak_bytes is not None and full.peak_bytes is not None and best.name != FULL:
        beside = show_size(full.peak_bytes)
        lines.append(f"A training step keeps at most {show_size(best.peak_bytes)}; full fine-tuning {beside}.")
    return lines


def _depths(advice: AdviceRecord) -> list[str]:
    found = advice.measurements
    best = found.best_depth()
    if best is None:
        return []
    top = found.depths[-1]
    where = "the embeddings know" if best.name == "embeddings" else f"the features after block {best.name} know"
    more = "" if best is top else f", after the last block {top.probe.mean:.3f}"
    return [
        f"Before training, {where} the most of the task: a linear probe scores {best.probe.mean:.3f}{more}; "
        f"a constant guess {found.baseline:.3f}."
    ]


def _price(advice: AdviceRecord) -> str:
    return (
        f"The race has cost as much as {advice.cost:.1f} runs of full fine-tuning ({advice.seconds:.0f} s of training)."
    )
