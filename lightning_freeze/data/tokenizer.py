"""The tokenizer of a task: loaded, with a padding token, and able to do what the task needs."""

from __future__ import annotations

from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lightning_freeze.errors import ConfigurationError
from lightning_freeze.module.pretrained.hub import NO_REMOTE_CODE, advice, resolve
from lightning_freeze.module.tasks import Task

_FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "merges")


def load_tokenizer(name: str, task: Task) -> PreTrainedTokenizerBase:
    """Load a tokenizer, with a padding token if it lacks one.

    Args:
        name: A local folder, or a model's name on the Hugging Face hub.
        task: The task that it is for.

    Raises:
        ConfigurationError: There is no such tokenizer, or it cannot do what the task needs.
    """
    source, where = resolve(name, "tokenizer")
    folder = Path(source)
    if folder.is_dir() and not any(file.name.startswith(_FILES) or file.suffix == ".gguf" for file in folder.iterdir()):
        raise ConfigurationError(
            f"The folder {name!r} holds no tokenizer: expected tokenizer.json or a vocabulary, as "
            f"tokenizer.save_pretrained writes them. Name another folder with data.tokenizer."
        )
    # Byte-level tokenizers split lists of words correctly only with a space before each.
    settings = {"add_prefix_space": True} if task.target == "token" else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **where, **NO_REMOTE_CODE, **settings)
    except Exception as error:  # the Rust library raises plain exceptions, slow tokenizers whatever they run into
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"The tokenizer {name!r} could not be loaded: {first} {advice(name)}") from error
    return checked_tokenizer(tokenizer, task, name)


def checked_tokenizer(tokenizer: PreTrainedTokenizerBase, task: Task, name: str = "") -> PreTrainedTokenizerBase:
    """Return a tokenizer that can do what the task needs, padded with its end token if it has no padding token.

    Args:
        tokenizer: Any tokenizer of transformers.
        task: The task that it is for.
        name: Where it comes from, for messages.

    Raises:
        ConfigurationError: It cannot do what the task needs.
    """
    name = name or getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    if task.target == "token" and not tokenizer.is_fast:
        raise ConfigurationError(
            f"Task {task.name!r} needs a fast tokenizer, which tells what word a token belongs to, and the one of "
            f"{name!r} is slow: expected a folder with tokenizer.json."
        )
    if task.target == "token" and _joins_words(tokenizer):
        raise ConfigurationError(
            f"Task {task.name!r} needs a tokenizer that puts a space before each word, and the one of {name!r} does "
            "not: expected AutoTokenizer.from_pretrained(..., add_prefix_space=True)."
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ConfigurationError(
                f"The tokenizer {name!r} has neither a padding nor an end token: expected tokenizer.pad_token to be "
                "set and saved with tokenizer.save_pretrained."
            )
        # module/pretrained/special_tokens.py makes the same choice for the model.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def adds_end_token(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer adds its end token to each text.

    Args:
        tokenizer: Any tokenizer of transformers.
    """
    end = tokenizer.eos_token_id
    return end is not None and tokenizer("x")["input_ids"][-1:] == [end]


def check_length(tokenizer: PreTrainedTokenizerBase, length: int, pair: bool) -> None:
    """Check that a text fits between the special tokens that the tokenizer adds.

    Args:
        tokenizer: Any tokenizer of transformers.
        length: The most tokens of an example.
        pair: Whether an example has two texts.

    Raises:
        ConfigurationError: There is no room for one token of each text.
    """
    least = tokenizer.num_special_tokens_to_add(pair) + 1 + pair
    if length < least:
        raise ConfigurationError(
            f"data.max_length is {length}: expected at least {least}, for one token of each text and the "
            f"{least - 1 - pair} special tokens of the tokenizer."
        )


def _joins_words(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a byte-level tokenizer reads lists of words as if there were no space between them."""
    splitter = getattr(getattr(tokenizer, "backend_tokenizer", None), "pre_tokenizer", None)
    return isinstance(splitter, ByteLevel) and not splitter.add_prefix_space
