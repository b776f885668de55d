"""Why a prefix cannot be cached."""

from __future__ import annotations

import traceback

from lightning_freeze.errors import debugging

#: How a reason begins where another rank has it.
ELSEWHERE = "another rank"


class Unsupported(Exception):
    """The prefix cannot be cached; the message completes the sentence "switched off: ..."."""


def reason_of(error: Exception) -> str:
    """Return an error as the end of the sentence "switched off: ...".

    Args:
        error: The error. One that is not :class:`Unsupported` was not expected; its traceback follows if
            ``LIGHTNING_FREEZE_DEBUG=1``.
    """
    if isinstance(error, Unsupported):
        return str(error)
    what = ": ".join(filter(None, ("while its frozen layers were looked at", " ".join(str(error).split())[:300])))
    trace = ""
    if debugging():
        trace = "\n" + "".join(traceback.format_exception(error)).rstrip()
    return f"something in its code could not be followed ({type(error).__name__} {what}){trace}"
