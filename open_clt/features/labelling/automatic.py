"""Automatic labels: descriptions of features that are made and scored without a language model or a service.

    fires on “ Texas”, “ Dallas”; promotes “ Austin”
    fires on the token after “ of”
    dog, cat → barks

A label that begins with "fires" is a rule (``rules.py``) that tells the contexts in which the feature is active from
others; "promotes" names tokens that follow the peaks and that the feature's decoders raise most. If no rule tells the
contexts apart, the label names the tokens of the peaks and, after an arrow, the tokens that the feature raises.

Half of the examples of every range of quantiles and half of the background are used to find the rule, and set the
label's ``confidence``: 0 for a rule that is right as often as chance, and 1 for a rule that is always right. The other
half gives the ``score``: the balanced accuracy of the rule, which Delphi calls detection. A window counts as found if
the rule holds anywhere in it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from open_clt.config.arguments import checked_arguments
from open_clt.features.labelling.background import Background
from open_clt.features.labelling.examples import cut, groups_of, split_examples
from open_clt.features.labelling.rules import LONGEST_WINDOW, Rule, Windows, any_of, is_readable
from open_clt.features.labelling.search import Sides, best_rule
from open_clt.features.labelling.single_tokens import SingleTokens
from open_clt.features.records import FeatureLabel, FeatureRecord

_FIRES = 0.3
"""Confidence from which on a label states its rule."""
_PROMOTED_SHARE = 0.1
"""Share of the peaks that must be followed by one of the tokens that the feature raises, for a label to name them."""
_MOST_PROMOTED = 3
_ALTERNATIVES = re.compile(r"“[^”]*”(?:, “[^”]*”)*(?: or (?:“[^”]*”|\d+ more))?")
_FEWEST_WINDOWS = 4
"""Number of held-out windows of each kind that a score needs at least."""


@checked_arguments
def label_records(
    records: Iterable[FeatureRecord], background: Background, inputs: SingleTokens | None = None
) -> Iterator[FeatureRecord]:
    """Yield each record with an automatic label, and records that a user has labelled as they are.

    ``inputs`` are the tokens that make each feature active alone. A rule may be about all of them, of which the few
    examples of a record show only some. A feature that is never active, or whose tokens cannot be read, has no label.
    """
    for record in records:
        if record.label is None or record.label.automatic:
            record = replace(record, label=label_record(record, background, inputs))
        yield record


@checked_arguments
def label_record(
    record: FeatureRecord, background: Background | None = None, inputs: SingleTokens | None = None
) -> FeatureLabel | None:
    """Describe a feature from its examples and the tokens that it raises; None if there is nothing to say.

    Without a background there is nothing to tell the examples from: confidence and score are NaN.
    """
    if background is None:
        return _label(arrow_text(record), math.nan, math.nan)
    train, held_out = (_sides(record, background, held_out=half) for half in (False, True))
    found = best_rule(train, () if inputs is None else inputs.of(record.feature))
    if found is None:
        return _label(arrow_text(record), 0.0, math.nan)
    confidence = _confidence(found.rule, train)
    text = f"fires {found.rule.text}{_promotes(record)}" if confidence >= _FIRES else arrow_text(record)
    return _label(text, confidence, _score(found.rule, held_out))


def arrow_text(record: FeatureRecord, count: int = 2) -> str:
    """A text such as ``the, a → cat``: the tokens on which a feature peaks most often, then those it raises most.

    Each side has at most ``count`` tokens. Tokens that cannot be read, such as a part of a character, are skipped.
    """
    peaks = Counter(example.tokens[example.peak] for example in record.examples)
    active_on = _readable((token for token, _ in peaks.most_common()), count)
    raises = _readable((effect.token for effect in record.top_tokens), count) if record.examples else ""
    return " → ".join(filter(None, (active_on, raises)))


def in_brief(text: str) -> str:
    """A label as graphs draw it, where there is little room: ``“is” after “capital” → “Boise”``.

    It leaves out the words that most automatic labels begin with, how far away the token before may be, the spaces that
    tokens begin with, and tokens that differ by such a space only; other labels stay as they are.
    """
    if not text.startswith("fires "):
        return text
    brief = text.removeprefix("fires ").removeprefix("on ").replace("; promotes ", " → ").replace("“ ", "“")
    brief = re.sub(r"\bwithin \d+ tokens after\b", "after", brief)
    return _ALTERNATIVES.sub(_each_once, brief)


def _each_once(alternatives: re.Match[str]) -> str:
    """Quoted tokens such as “a”, “b” or 5 more, each of them once."""
    *tokens, last = dict.fromkeys(re.split("(?<=”)(?:, | or )", alternatives[0]))
    return " or ".join(filter(None, [", ".join(tokens), last]))


def _label(text: str, confidence: float, score: float) -> FeatureLabel | None:
    return FeatureLabel(text, confidence, score, automatic=True) if text else None


def _promotes(record: FeatureRecord) -> str:
    """The tokens that the feature raises and that follow peaks of its examples.

    The weights alone do not show which of the tokens that they raise matter.
    """
    peaks = {(example.tokens, example.peak) for examples in groups_of(record) for example in examples}
    following = Counter(tokens[peak + 1] for tokens, peak in peaks if peak + 1 < len(tokens))
    raised = [effect.token for effect in record.top_tokens if effect.effect > 0 and is_readable(effect.token)]
    seen = [token for token in raised if following[token]]
    if sum(following[token] for token in seen) < max(2, _PROMOTED_SHARE * following.total()):
        return ""
    return f"; promotes {any_of(sorted(seen, key=lambda token: -following[token])[:_MOST_PROMOTED])}"


def _readable(tokens: Iterable[str], count: int) -> str:
    """The first ``count`` readable tokens, stripped of spaces; tokens without letters or digits are quoted."""
    stripped = (token.strip() for token in tokens)
    words = dict.fromkeys(token for token in stripped if token and token.isprintable() and "\ufffd" not in token)
    shown = [word if any(map(str.isalnum, word)) else f"“{word}”" for word in list(words)[:count]]
    return ", ".join(shown)


def _confidence(rule: Rule, train: Sides) -> float:
    """How much better than chance a rule is, from 0 to 1, on the windows that it was found on; few windows lower it."""
    hits = int(((train.active.matches(rule.conditions) & train.peaks) != 0).sum())
    right = int((~rule.holds(train.background) & train.inactive).sum())
    shares = ((hits + 1) / (len(train.active) + 2), (right + 1) / (int(train.inactive.sum()) + 2))
    return max(0.0, sum(shares) - 1)


def _score(rule: Rule, held_out: Sides) -> float:
    """The balanced accuracy of a rule on held-out windows; NaN if there are too few of a kind."""
    if min(len(held_out.active), int(held_out.inactive.sum())) < _FEWEST_WINDOWS:
        return math.nan
    found = float(rule.holds(held_out.active).mean())
    rejected = float((~rule.holds(held_out.background))[held_out.inactive].mean())
    return (found + rejected) / 2


def _sides(record: FeatureRecord, background: Background, *, held_out: bool) -> Sides:
    """The windows of one half: those of the feature's examples, and those of the background."""
    examples = split_examples(record)[held_out]
    length = min(background.length, LONGEST_WINDOW)
    windows = [cut(example, length) for example in examples]
    peaks = np.array([1 << peak for _, peak in windows], dtype=np.uint64)
    return Sides(
        Windows([tokens for tokens, _ in windows]),
        peaks,
        background.windows(held_out=held_out),
        background.inactive(record.feature, held_out=held_out),
    )
