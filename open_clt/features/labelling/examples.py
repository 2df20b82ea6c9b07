"""Examples of a feature for labels: those that a label is made from, and those that it is scored on."""

from __future__ import annotations

from open_clt.features.records import FeatureExample, FeatureRecord


def split_examples(record: FeatureRecord) -> tuple[list[FeatureExample], list[FeatureExample]]:
    """The examples to find a rule with, and the held-out examples: every second one of each group.

    Without groups, every second one of the largest activations is held out. Equal examples stay on one side.
    """
    sides: tuple[list[FeatureExample], list[FeatureExample]] = ([], [])
    seen: set[tuple[tuple[str, ...], int]] = set()
    for examples in groups_of(record):
        new = {(example.tokens, example.peak): example for example in examples}
        for row, (key, example) in enumerate(new.items()):
            if key not in seen:
                sides[row % 2].append(example)
        seen |= set(new)
    return sides


def groups_of(record: FeatureRecord) -> list[tuple[FeatureExample, ...]]:
    """The examples of each range of quantiles, or else those with the largest activations."""
    return [group.examples for group in record.groups] or [record.examples]


def cut(example: FeatureExample, length: int) -> tuple[tuple[str, ...], int]:
    """At most ``length`` tokens around the peak of an example, and the position of the peak among them."""
    start = max(0, min(example.peak - length // 2, len(example.tokens) - length))
    return example.tokens[start : start + length], example.peak - start
