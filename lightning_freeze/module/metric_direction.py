"""Whether a larger value of a metric is better, by the name of the metric."""

from __future__ import annotations

# What a word of the name begins with. A name such as "val_f1_macro" has the words "val", "f1" and "macro".
_LARGER = (
    *("acc", "f1", "pearson", "spearman", "matthews", "auc", "auroc", "precision", "recall", "r2", "bleu", "rouge"),
    *("exact", "dice", "iou"),
)
_SMALLER = ("loss", "perplexity", "mse", "mae", "mape", "rmse", "error", "wer", "cer")
_WHOLE_WORDS = {"map": True, "em": True}


def larger_is_better(metric: str) -> bool | None:
    """Whether a larger value is better.

    Args:
        metric: The name, as it is logged.

    Returns:
        ``None`` if the name does not tell.
    """
    words = metric.lower().replace("-", "_").replace("/", "_").split("_")
    larger = any(_WHOLE_WORDS.get(word, False) or word.startswith(_LARGER) for word in words)
    smaller = any(word.startswith(_SMALLER) for word in words)
    return None if larger == smaller else larger
