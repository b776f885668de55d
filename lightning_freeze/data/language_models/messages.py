"""Chat messages: what one field of a row must hold."""

from __future__ import annotations

import json
from typing import Any

from lightning_freeze.data.reading.values import is_missing, shown, text_value

Message = dict[str, Any]
"""One message: ``role`` (``"system"``, ``"user"``, ``"assistant"``, ...), ``content`` and whatever a template reads."""

ASSISTANT = "assistant"
_EXPECTED = "expected a list of messages such as {'role': 'user', 'content': 'Hello'}"


def read_messages(value: Any) -> list[Message]:
    """Return the messages of a field.

    Args:
        value: A list of mappings with ``role`` and ``content``, or the same as JSON text, as CSV files hold it.

    Raises:
        ValueError: It is no such list, or a message has no role or no text.
    """
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"is {shown(value)}, {_EXPECTED}") from None
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"is {shown(value)}, {_EXPECTED}")
    return [_message(message, number) for number, message in enumerate(value, 1)]


def last_response(messages: list[Message]) -> int | None:
    """Return the position of the last message of the assistant; ``None`` if there is none.

    Args:
        messages: As :func:`read_messages` returns them.
    """
    return max((i for i, message in enumerate(messages) if message["role"] == ASSISTANT), default=None)


def has_empty_response(messages: list[Message]) -> bool:
    """Whether the assistant says nothing in its last message.

    Args:
        messages: As :func:`read_messages` returns them.
    """
    last = last_response(messages)
    return last is not None and is_missing(messages[last]["content"]) and not messages[last].get("tool_calls")


def _message(message: Any, number: int) -> Message:
    if not isinstance(message, dict) or is_missing(message.get("role")):
        raise ValueError(f"has as message {number} {shown(message)}, {_EXPECTED}")
    content = message.get("content")
    if content is not None and not isinstance(content, (str, bytes)):
        raise ValueError(f"has in message {number} the content {shown(content)}, expected text")
    # Parquet files hold every key in every row, and None where there is no value.
    rest = {key: value for key, value in message.items() if value is not None}
    return {**rest, "role": text_value(message["role"]), "content": "" if content is None else text_value(content)}
