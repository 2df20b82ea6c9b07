"""Prompts of the explainer and of the scorers, in the form that Delphi (EleutherAI) introduced, and their answers.

explainer    sees examples in which tokens above 0.3 x the maximum are marked as <<token>>, with the activations
             below each example, and ends its answer with one line "[EXPLANATION]: ..."
detection    asks of each of some examples whether the explanation fits it
fuzzing      asks of each of some examples whether the marked tokens are those that the explanation is about
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, TypeAlias

from open_clt.features.records import FeatureExample, FeatureRecord
from open_clt.short_repr import short_repr

Messages: TypeAlias = list[dict[str, str]]
"""A chat: messages with a role and a content."""

MARKED_ABOVE = 0.3
"""Share of the largest activation above which a token is marked."""
_SCALE = 10
"""Activations are written as integers up to this number."""
_LONGEST_EXPLANATION = 300
_EXPLANATION = re.compile(r"\[EXPLANATION\]\s*:?(.*)", re.IGNORECASE)
_ANSWERS = re.compile(r"\[([\s01,]*)\]")

_EXPLAINER = """\
You study one feature of a language model. A feature is active on some tokens of a text, to different degrees. You are \
given examples of text in which the feature is active. Tokens on which it is clearly active stand between << and >>. \
Below each example, its active tokens are listed with their activations, from 0 to {scale}.

{cut}

Describe in one short phrase what the marked tokens, or the words just before them, have in common. Say what the text \
is about only if that explains the marks. Do not mention the marks, and do not list the examples. If you see nothing \
in common, say so. The last line of your answer must be the phrase, in this form:
[EXPLANATION]: your phrase"""

_DETECTION = """\
You are given a description of a feature of a language model, and {count} examples of text. For each example, decide \
whether the feature is active on any of its tokens. {cut}

Answer with a list of {count} numbers and nothing else: 1 if the feature is active in the example, 0 if it is not. \
For three examples: [0, 1, 1]"""

_FUZZING = """\
You are given a description of a feature of a language model, and {count} examples of text, in which some tokens stand \
between << and >>. For each example, decide whether the marked tokens are those on which the feature is active. {cut}

Answer with a list of {count} numbers and nothing else: 1 if the right tokens are marked, 0 if they are not. \
For three examples: [0, 1, 1]"""


class Marked(NamedTuple):
    """An example as a scorer sees it."""

    text: str
    """The tokens, joined; in fuzzing with marks."""
    correct: bool
    """Whether the right answer is 1."""

    __repr__ = short_repr


def explainer_messages(record: FeatureRecord, examples: Sequence[FeatureExample]) -> Messages:
    """The chat that asks for an explanation of a feature."""
    shown = [f"Example {number}: {_explained(example, record)}" for number, example in enumerate(examples, 1)]
    if raised := [effect.token for effect in record.top_tokens if effect.effect > 0]:
        shown.append(f"Tokens that the feature makes more likely to come next: {raised}")
    return _chat(_EXPLAINER.format(scale=_SCALE, cut=how_cut(examples)), "\n\n".join(shown))


def explanation_in(answer: str) -> str | None:
    """The explanation in an answer, in one line of at most 300 characters; None if there is none."""
    found = _EXPLANATION.findall(answer)
    text = " ".join(found[-1].split()).strip("*\"'“” ") if found else ""
    return text[:_LONGEST_EXPLANATION] or None


def scorer_messages(explanation: str, examples: Sequence[Marked], cut: str, *, fuzzing: bool) -> Messages:
    """The chat that asks which of some examples fit an explanation; ``cut`` says how they were cut from texts."""
    prompt = (_FUZZING if fuzzing else _DETECTION).format(count=len(examples), cut=cut)
    shown = [f"Example {number}: {example.text}" for number, example in enumerate(examples, 1)]
    return _chat(prompt, "\n\n".join([f"Description: {explanation}", *shown]))


def decisions_in(answer: str, count: int) -> list[bool] | None:
    """The last list of ``count`` zeros and ones in an answer; None if there is none."""
    for inside in reversed(_ANSWERS.findall(answer)):
        numbers = [part.strip() for part in inside.split(",") if part.strip()]
        if len(numbers) == count and set(numbers) <= {"0", "1"}:
            return [number == "1" for number in numbers]
    return None


def how_cut(examples: Sequence[FeatureExample]) -> str:
    """How examples were cut from their texts, for a prompt."""
    longest = max((len(example.tokens) for example in examples), default=0)
    return (
        f"Each example is a piece of at most {longest} tokens of a longer text, cut around the token on which the "
        "feature is most active; it may begin and end in the middle of a sentence."
    )


def marked(tokens: Sequence[str], chosen: Sequence[bool]) -> str:
    """The text of tokens in which each run of chosen tokens stands between << and >>."""
    parts: list[str] = []
    for is_chosen, run in groupby(zip(chosen, tokens, strict=True), key=lambda pair: pair[0]):
        text = "".join(token for _, token in run)
        parts.append(f"<<{text}>>" if is_chosen else text)
    return "".join(parts)


def is_marked(example: FeatureExample, largest: float) -> list[bool]:
    """Whether each token's activation is above 0.3 x the largest activation of the feature; the peak always is."""
    least = MARKED_ABOVE * abs(largest)
    sizes = example.activations.abs().tolist()
    return [size > 0 and (size > least or row == example.peak) for row, size in enumerate(sizes)]


def _explained(example: FeatureExample, record: FeatureRecord) -> str:
    largest = abs(record.max_activation)
    if not math.isfinite(largest) or largest == 0:
        largest = float(example.activations.abs().max())
    listed = [
        f"({token!r}, {round(_SCALE * abs(value) / max(largest, 1e-30))})"
        for token, value in zip(example.tokens, example.activations.tolist(), strict=True)
        if value != 0
    ]
    return f"{marked(example.tokens, is_marked(example, largest))}\nActivations: {', '.join(listed)}"


def _chat(system: str, user: str) -> Messages:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]
