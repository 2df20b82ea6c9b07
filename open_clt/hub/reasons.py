"""Reasons: what huggingface_hub and its HTTP library report, in a few words."""

from __future__ import annotations

import json
import re

NOT_AN_ANSWER_OF_A_HUB = (AttributeError, IndexError, KeyError, TypeError, json.JSONDecodeError)
"""What huggingface_hub raises when it takes apart an answer of another form, such as the page of a proxy."""
_LONGEST = 150
_ADVICE = re.compile(r"For more information check:.*|Request ID:.*|\(Request ID.*?\)", re.DOTALL)
"""Parts of messages that help only the developers of servers."""


def reason(error: Exception) -> str:
    """What went wrong, in one line of at most 150 characters."""
    if isinstance(error, NOT_AN_ANSWER_OF_A_HUB):
        return "the server's answer is not that of a hub"
    words = _ADVICE.sub("", str(error)).split()
    return (" ".join(words) or type(error).__name__)[:_LONGEST]
