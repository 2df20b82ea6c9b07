"""Labels by a language model: an explainer writes them, and a scorer tests them on held-out contexts.

The terms, the form of the prompts and the numbers of examples (40 to explain, 50 of each kind to score) are those of
Delphi. The model is asked through an ``Endpoint``.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from open_clt.config.arguments import Count, Seed, checked_arguments
from open_clt.errors import ServiceError
from open_clt.features.labelling.background import Background
from open_clt.features.labelling.examples import cut, split_examples
from open_clt.features.labelling.service.delphi import (
    Marked,
    decisions_in,
    explainer_messages,
    explanation_in,
    how_cut,
    is_marked,
    marked,
    scorer_messages,
)
from open_clt.features.labelling.service.endpoint import Endpoint
from open_clt.features.records import FeatureExample, FeatureLabel, FeatureRecord
from open_clt.transcoders.feature import Feature

logger = logging.getLogger(__name__)

Scorer: TypeAlias = Literal["detection", "fuzzing"]

_TRIES = 2
"""Number of times that a question is asked if the answer does not have the form that it must have."""
_MOST_FAILURES = 3
"""Number of features in a row without a label after which the endpoint is not asked any more."""


@checked_arguments
def explain_records(
    records: Iterable[FeatureRecord],
    endpoint: Endpoint,
    background: Background,
    *,
    scorer: Scorer | None = "detection",
    features: Collection[Feature] | None = None,
) -> Iterator[FeatureRecord]:
    """Yield each record with a label that a language model wrote; labels of users are kept.

    The model is asked about ``features``, or about all features. No record is lost: if the endpoint fails, a warning
    says why, and the record keeps the label that it has. After three features in a row without an answer, the endpoint
    is not asked any more.
    """
    failures = 0
    for record in records:
        wanted = (features is None or record.feature in features) and bool(record.examples)
        if failures < _MOST_FAILURES and wanted and (record.label is None or record.label.automatic):
            try:
                label = explain(record, endpoint, background, scorer=scorer)
                failures, record = 0, replace(record, label=label)
            except ServiceError as error:
                failures += 1
                ending = "; it is not asked any more" if failures == _MOST_FAILURES else ""
                logger.warning("Feature %s keeps its label: %s%s", record.feature, str(error).rstrip("."), ending)
        yield record


@checked_arguments
def explain(
    record: FeatureRecord,
    endpoint: Endpoint,
    background: Background,
    *,
    n_train: Count = 40,
    scorer: Scorer | None = "detection",
) -> FeatureLabel:
    """Let a language model describe a feature by at most ``n_train`` examples, and score the description.

    The label's score is that of the scorer, its confidence is not known. Raises ServiceError if the endpoint fails or
    its answers have no explanation.
    """
    train, _ = split_examples(record)
    messages = explainer_messages(record, train[:n_train])
    for _ in range(_TRIES):
        text = explanation_in(endpoint.answer(messages))
        if text is not None:
            return FeatureLabel(text, score=_score(text, record, endpoint, background, scorer), automatic=True)
    raise ServiceError(
        f"The answers of the model {endpoint.model!r} at {endpoint.url} have no line [EXPLANATION]: for feature "
        f"{record.feature}."
    )


@checked_arguments
def score_explanation(
    explanation: str,
    record: FeatureRecord,
    endpoint: Endpoint,
    background: Background,
    *,
    scorer: Scorer = "detection",
    n_test: Count = 50,
    at_once: Count = 5,
    seed: Seed = 0,
) -> float:
    """The balanced accuracy with which a language model that reads an explanation judges held-out examples.

    In detection, half of the examples are windows of the background in which the feature is not active. In fuzzing,
    half of them have marks on other tokens. There are at most ``n_test`` of each half, ``at_once`` in one question. NaN
    if the model does not answer for both halves. Raises ServiceError if the endpoint fails.
    """
    _, held_out = split_examples(record)
    rng = random.Random(seed)
    if scorer == "fuzzing":
        examples = _fuzzed(held_out[:n_test], record, rng)
    else:
        inactive = background.windows(held_out=True), background.inactive(record.feature, held_out=True)
        others = [tokens for tokens, unused in zip(inactive[0].tokens, inactive[1], strict=True) if unused]
        examples = [Marked("".join(cut(example, background.length)[0]), True) for example in held_out[:n_test]]
        examples += [Marked("".join(tokens), False) for tokens in rng.sample(others, min(n_test, len(others)))]
    rng.shuffle(examples)
    right: dict[bool, list[bool]] = {True: [], False: []}
    for start in range(0, len(examples), at_once):
        batch = examples[start : start + at_once]
        messages = scorer_messages(explanation, batch, how_cut(held_out), fuzzing=scorer == "fuzzing")
        for example, decision in zip(batch, _decisions(endpoint, messages, len(batch)), strict=False):
            right[example.correct].append(decision == example.correct)
    if not all(right.values()):
        return math.nan
    return sum(sum(answers) / len(answers) for answers in right.values()) / 2


def _score(
    text: str, record: FeatureRecord, endpoint: Endpoint, background: Background, scorer: Scorer | None
) -> float:
    """The score of an explanation; NaN without a scorer, or if the endpoint fails, which does not lose the label."""
    if scorer is None:
        return math.nan
    try:
        return score_explanation(text, record, endpoint, background, scorer=scorer)
    except ServiceError as error:
        logger.warning("The label of feature %s is not scored: %s", record.feature, error)
        return math.nan


def _decisions(endpoint: Endpoint, messages: Sequence[dict[str, str]], count: int) -> list[bool]:
    """The model's decisions about some examples; none if its answers do not have the form of a list."""
    for _ in range(_TRIES):
        decisions = decisions_in(endpoint.answer(messages), count)
        if decisions is not None:
            return decisions
    return []


def _fuzzed(held_out: Sequence[FeatureExample], record: FeatureRecord, rng: random.Random) -> list[Marked]:
    """Each example twice: with marks on the tokens of its activations, and with as many marks on tokens without one."""
    examples: list[Marked] = []
    for example in held_out:
        right = is_marked(example, record.max_activation)
        unused = [row for row, value in enumerate(example.activations.tolist()) if value == 0]
        if unused:
            wrong = set(rng.sample(unused, min(sum(right), len(unused))))
            examples.append(Marked(marked(example.tokens, right), True))
            examples.append(Marked(marked(example.tokens, [row in wrong for row in range(len(right))]), False))
    return examples
