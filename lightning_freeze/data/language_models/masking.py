"""Rendered texts into token ids and labels: the loss counts responses only.

The tokens of a prompt must be those that the model sees when it generates: those of the prompt alone. Where a tokenizer
would merge the end of a prompt with the beginning of its response, the parts are tokenised one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from lightning_freeze.data.language_models.rendering import RenderedText
from lightning_freeze.data.tokenizer import adds_end_token
from lightning_freeze.module.tasks import IGNORE_INDEX


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of a text.

    Args:
        ids: Token ids.
        trained: Whether each token is part of a response.
        lost_prompt: Whether the beginning was cut off.
        lost_response: Whether the end of the last response was cut off.
    """

    ids: list[int]
    trained: list[bool]
    lost_prompt: bool = False
    lost_response: bool = False

    @property
    def labels(self) -> list[int]:
        """The ids of the responses, and -100 elsewhere."""
        return [token if counts else IGNORE_INDEX for token, counts in zip(self.ids, self.trained, strict=True)]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[RenderedText]) -> list[TokenizedText]:
    """Tokenise texts with responses. The last response ends with the end token of its turn, else of the tokenizer.

    Args:
        tokenizer: Any tokenizer of transformers.
        texts: All with special tokens, or all without.
    """
    special = texts[0].special_tokens
    heads = [text.text[: text.responses[0][0]] for text in texts]
    head_ids = _prompt_ids(tokenizer, heads, special)
    whole = _ids_and_spans(tokenizer, [text.text for text in texts], special) if tokenizer.is_fast else None
    result = []
    for i, text in enumerate(texts):
        joined = None if whole is None else _trained_tokens(text, *whole[i])
        if joined is None or joined.ids[: len(head_ids[i])] != head_ids[i]:
            joined = _one_by_one(tokenizer, text, head_ids[i])
        result.append(_ended(tokenizer, joined, ends_itself=not special))
    return result


def tokenize_prompts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[RenderedText], limit: int) -> list[list[int]]:
    """Tokenise texts that a model continues: without an end token, and the end of texts that are too long.

    Args:
        tokenizer: Any tokenizer of transformers.
        texts: All with special tokens, or all without.
        limit: The most tokens of a text.
    """
    found = _prompt_ids(tokenizer, [text.text for text in texts], texts[0].special_tokens)
    return [_last(tokenizer, ids, limit) for ids in found]


def fit(tokenizer: PreTrainedTokenizerBase, text: TokenizedText, limit: int) -> TokenizedText:
    """Cut a text so that its last response is kept: first the beginning of the prompt, then the end of the response.

    A quarter of the limit is left for the end of the prompt, or what the prompt has. A first special token stays. A
    response that was cut has no end token, so that the model does not learn to stop there.

    Args:
        tokenizer: The tokenizer that made it.
        text: The tokens, the last of which belongs to the last response.
        limit: The most tokens of a text.
    """
    if len(text.ids) <= limit:
        return text
    prompt = max((i + 1 for i, counts in enumerate(text.trained) if not counts), default=0)
    kept = max(limit - (len(text.ids) - prompt), min(prompt, limit // 4))
    start = prompt - kept
    ids, trained = text.ids[start : start + limit], text.trained[start : start + limit]
    if start and text.ids[0] in tokenizer.all_special_ids and kept:
        ids[0], trained[0] = text.ids[0], text.trained[0]
    return replace(text, ids=ids, trained=trained, lost_prompt=start > 0, lost_response=start + limit < len(text.ids))


def _trained_tokens(
    text: RenderedText, ids: list[int], spans: Sequence[tuple[int, int]], added: Sequence[int]
) -> TokenizedText | None:
    """Find the tokens of the responses; ``None`` if a token lies across the beginning or end of one."""
    trained = []
    for (start, stop), is_added in zip(spans, added, strict=True):
        # Tokenizers that trim offsets (RoBERTa) give a token of spaces an empty span, at the end of the token.
        begin = start if start < stop else start - 1
        inside = [first <= begin and stop <= last for first, last in text.responses]
        apart = [stop <= first or last <= begin for first, last in text.responses]
        if not (is_added or all(a or b for a, b in zip(inside, apart, strict=True))):
            return None
        trained.append(not is_added and any(inside))
    # A special token that the tokenizer adds at the end ends the response.
    if any(trained):
        for i in range(len(trained) - 1, -1, -1):
            if trained[i]:
                break
            trained[i] = bool(added[i])
    return TokenizedText(ids, trained) if any(trained) else None


def _one_by_one(tokenizer: PreTrainedTokenizerBase, text: RenderedText, head: list[int]) -> TokenizedText:
    ids, trained = list(head), [False] * len(head)
    segments = text.segments if text.responses[0][0] == 0 else text.segments[1:]
    adds_space = _adds_space(tokenizer)
    for segment, is_response in segments:
        tokens = _ids(tokenizer, [segment[1:] if adds_space and segment[0] == " " else segment], False)[0]
        ids += tokens
        trained += [is_response] * len(tokens)
    return TokenizedText(ids, trained)


def _ended(tokenizer: PreTrainedTokenizerBase, text: TokenizedText, ends_itself: bool) -> TokenizedText:
    end = tokenizer.eos_token_id
    if end is None or not text.ids or text.ids[-1] == end:
        return text
    if ends_itself and text.ids[-1] in tokenizer.all_special_ids:
        return text  # the end of a turn, such as <|eot_id|>
    return replace(text, ids=[*text.ids, end], trained=[*text.trained, True])


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts a space before each text (SentencePiece); one that is there already would be doubled."""
    first = _ids(tokenizer, ["x"], False)[0][:1]
    return bool(first) and str(tokenizer.convert_ids_to_tokens(first[0])).startswith("▁")


def _ids(tokenizer: Any, texts: list[str], special: bool) -> list[list[int]]:
    found = tokenizer(texts, add_special_tokens=special, padding=False, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in found["input_ids"]]


def _ids_and_spans(
    tokenizer: Any, texts: list[str], special: bool
) -> list[tuple[list[int], list[tuple[int, int]], list[int]]]:
    """The tokens of each text, their characters, and whether the tokenizer has added them to the text."""
    options = {"return_offsets_mapping": True, "return_special_tokens_mask": True, "return_attention_mask": False}
    found = tokenizer(texts, add_special_tokens=special, padding=False, verbose=False, **options)
    return list(zip(found["input_ids"], found["offset_mapping"], found["special_tokens_mask"], strict=True))


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str], special: bool) -> list[list[int]]:
    """The tokens of prompts without an end token that the tokenizer adds; one that the user wrote is part of them."""
    found = _ids(tokenizer, prompts, special)
    if not (special and adds_end_token(tokenizer)):
        return found
    return [ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids for ids in found]


def _last(tokenizer: PreTrainedTokenizerBase, ids: list[int], limit: int) -> list[int]:
    if len(ids) <= limit:
        return ids
    first = ids[:1] if ids[0] in tokenizer.all_special_ids and limit > 1 else []
    return first + ids[len(ids) - limit + len(first) :]
