"""Feature records of a whole transcoder: they equal what a slow computation finds, and do not depend on the order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from open_clt.config import CrossLayerConfig, FeatureRecordsConfig, FixedJumpReLUConfig, MoltConfig
from open_clt.config.json import from_dict
from open_clt.data.contexts import pack_contexts
from open_clt.errors import ConfigError, TextError
from open_clt.features.collecting.collect import FeatureCollection, collect_features
from open_clt.features.collecting.examples import random_keys
from open_clt.features.collecting.measured import feature_records
from open_clt.features.firing import encode_contexts, feature_activations
from open_clt.features.records import FeatureRecord
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.directions import decoder_directions
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.nonlinearities import FixedJumpReLU
from tests.refusals import refuses
from tests.tiny_models import TEXTS

LENGTH, WINDOW = 16, 6
CONFIG = FeatureRecordsConfig(
    context_length=LENGTH, max_tokens=None, top_examples=4, examples_per_group=2, window=WINDOW
)
LONG = TEXTS * 5


@pytest.fixture(scope="module")
def transcoder(tiny_gpt2: LanguageModel) -> CrossLayerTranscoder:
    """A transcoder of which every third feature may be active with a negative value, and one feature never is."""
    transcoder = CrossLayerTranscoder(
        CrossLayerConfig(
            n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, n_features=20, nonlinearity=FixedJumpReLUConfig()
        ),
        seed=3,
    )
    assert isinstance(transcoder.nonlinearity, FixedJumpReLU)
    transcoder.nonlinearity.thresholds.fill_(0.5)[:, ::3] = -1.0
    transcoder.nonlinearity.thresholds[1, 5] = 1e9
    return transcoder


@pytest.fixture(scope="module")
def collection(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder) -> FeatureCollection:
    return collect_features(tiny_gpt2, transcoder, iter(LONG), CONFIG)


@pytest.fixture(scope="module")
def records(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, collection: FeatureCollection
) -> dict[Feature, FeatureRecord]:
    return {record.feature: record for record in feature_records(tiny_gpt2, transcoder, collection, n_tokens=5)}


@pytest.fixture(scope="module")
def contexts(tiny_gpt2: LanguageModel) -> Tensor:
    return pack_contexts(LONG, tiny_gpt2, LENGTH)


@pytest.fixture(scope="module")
def activations(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, contexts: Tensor) -> Tensor:
    """All activations (context, position, layer, feature), one context at a time."""
    return torch.stack([feature_activations(tiny_gpt2, transcoder, context).dense() for context in contexts]).detach()


def test_numbers_of_records_are_those_of_all_activations(
    records: dict[Feature, FeatureRecord], activations: Tensor
) -> None:
    assert len(records) == activations.shape[2] * activations.shape[3]
    encoded = activations[:, 1:]
    assert (encoded < 0).sum() > 20
    for feature, record in records.items():
        values = encoded[:, :, *feature].flatten()
        active = values[values != 0].sort().values
        assert record.density == pytest.approx(len(active) / len(values))
        assert record.max_activation == pytest.approx(max(0.0, float(values.max())), rel=1e-4)
        assert record.min_activation == pytest.approx(min(0.0, float(values.min())), rel=1e-4)
        if not len(active):
            assert (record.histogram, record.quantile_values, record.examples) == ((), (), ())
            continue
        assert sum(record.histogram) == len(active)
        # A bin of the collection is at most a 128th of the largest size.
        size = max(record.max_activation, -record.min_activation) / 128
        bins = torch.linspace(record.min_activation, record.max_activation, 41)
        below = torch.tensor([0.0, *record.histogram]).cumsum(0)
        for limit, count in zip(bins.tolist(), below.tolist(), strict=True):
            assert int((active < limit - size).sum()) - 1 <= count <= int((active < limit + size).sum()) + 1
        assert len(record.quantile_values) == 100
        for percent in (1, 10, 50, 90, 100):
            rank = percent / 100 * len(active)
            low, high = active[max(0, int(rank) - 1)], active[min(len(active) - 1, int(rank))]
            assert float(low) - size - 1e-5 <= record.quantile_values[percent - 1] <= float(high) + size + 1e-5


def test_examples_are_the_contexts_with_the_largest_activations(
    tiny_gpt2: LanguageModel, records: dict[Feature, FeatureRecord], activations: Tensor, contexts: Tensor
) -> None:
    for feature, record in records.items():
        peaks = activations[:, :, *feature].abs().amax(1)
        largest = peaks[peaks > 0].sort(descending=True).values[:4]
        found = [float(example.activations[example.peak]) for example in record.examples]
        assert [abs(value) for value in found] == pytest.approx(largest.tolist(), rel=2e-3)
        if record.examples:
            example, context = record.examples[0], int(peaks.argmax())
            position = int(activations[context, :, *feature].abs().argmax())
            start = min(max(0, position - int(0.75 * WINDOW)), LENGTH - WINDOW)
            assert example.peak == position - start
            window = contexts[context, start : start + WINDOW]
            assert example.tokens == tuple(tiny_gpt2.token_strings(window))
            values = activations[context, start : start + WINDOW, *feature]
            torch.testing.assert_close(example.activations, values, rtol=5e-3, atol=5e-3 * float(values.abs().max()))


def test_groups_are_ranges_of_a_sample_of_the_contexts(
    records: dict[Feature, FeatureRecord], activations: Tensor
) -> None:
    whole = 0
    for feature, record in records.items():
        peaks = activations[:, :, *feature].abs().amax(1)
        peaks = peaks[peaks > 0].sort(descending=True).values
        sample = [abs(float(e.activations[e.peak])) for group in record.groups for e in group.examples]
        if len(peaks) < 10:
            assert record.groups == ()
            continue
        assert [group.name for group in record.groups][::9] == ["peaks 90–100 %", "peaks 0–10 %"]
        assert sample == sorted(sample, reverse=True)
        assert len(sample) == min(20, len(peaks))
        if len(peaks) <= 20:  # the sample holds every context
            whole += 1
            assert sample == pytest.approx(peaks.tolist(), rel=2e-3)
        else:
            assert all((peaks - value).abs().min() < 2e-3 * value + 1e-6 for value in sample)
    assert whole > 0


def test_a_sample_is_not_made_of_the_first_contexts() -> None:
    """The mean number of the sampled contexts, among all in which a feature is active, is in the middle."""
    numbers = torch.arange(1000)

    ranks = [
        random_keys(torch.full((1000,), feature), numbers).topk(20).indices.float().mean() for feature in range(50)
    ]
    assert 450 < torch.stack(ranks).mean() < 550
    assert len({int(random_keys(torch.tensor([row]), torch.tensor([7]))) for row in range(1000)}) == 1000


def test_tokens_and_coactive_features_agree_with_exact_counts(
    tiny_gpt2: LanguageModel, records: dict[Feature, FeatureRecord], activations: Tensor, contexts: Tensor
) -> None:
    tokens = contexts[:, 1:].flatten()
    active = (activations[:, 1:] != 0).flatten(0, 1).flatten(1).float()
    lengths = active.norm(dim=0).clamp(min=1)
    cosines = active.T @ active / lengths / lengths[:, None]
    errors: list[float] = []
    width = activations.shape[3]
    for feature, record in records.items():
        row = feature.layer * width + feature.index
        fires = tiny_gpt2.token_strings(tokens[active[:, row] > 0])
        counts = Counter(fires)
        shares = [share for _, share in record.fires_on]
        assert shares == sorted(shares, reverse=True)
        for token, share in record.fires_on:
            assert counts[token] / len(fires) <= share * (1 + 6e-4) <= counts[token] / len(fires) + 0.05
        assert all(0 < entry.similarity <= 1 and entry.feature != feature for entry in record.coactive)
        errors += [
            abs(entry.similarity - float(cosines[row, entry.feature.layer * width + entry.feature.index]))
            for entry in record.coactive
        ]
    assert max(errors) < 0.25
    assert sum(errors) / len(errors) < 0.08


def test_outputs_and_neighbours_come_from_the_decoders(
    tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder, records: dict[Feature, FeatureRecord]
) -> None:
    features = list(records)
    directions = decoder_directions(transcoder, features)
    unit = directions / directions.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).fill_diagonal_(0)
    effects = tiny_gpt2.unembedding.effects(directions)
    for row, feature in list(enumerate(features))[::7]:
        record = records[feature]
        assert [entry.effect for entry in record.top_tokens] == pytest.approx(
            effects[row].sort(descending=True).values[:5].tolist(), rel=6e-4, abs=1e-6
        )
        assert record.bottom_tokens[0].token == tiny_gpt2.token_strings([int(effects[row].argmin())])[0]
        assert record.nearest[0].similarity == pytest.approx(float(cosines[row].max()), rel=6e-4)
        assert features.index(record.nearest[0].feature) == int(cosines[row].argmax())
        assert [outputs.layer for outputs in record.outputs] == list(range(feature.layer, tiny_gpt2.n_layers))
        decoders = transcoder.decoders(feature.layer, torch.tensor([feature.index]))[0]
        for outputs, decoder in zip(record.outputs, decoders, strict=True):
            assert outputs.top_tokens[0].effect == pytest.approx(
                float(tiny_gpt2.unembedding.effects(decoder[None]).max()), rel=6e-4
            )


def test_merged_parts_give_the_same_records_in_any_order(
    tiny_gpt2: LanguageModel,
    transcoder: CrossLayerTranscoder,
    collection: FeatureCollection,
    contexts: Tensor,
) -> None:
    parts = [FeatureCollection(transcoder, LENGTH, CONFIG) for _ in range(3)]
    for number, batch in enumerate(contexts.split(4)):
        layers = encode_contexts(tiny_gpt2, transcoder, batch)
        parts[number % 3].add(batch, layers, 4 * number)
    whole = FeatureCollection(transcoder, LENGTH, CONFIG)
    for number, batch in reversed(list(enumerate(contexts.split(4)))):
        whole.add(batch, encode_contexts(tiny_gpt2, transcoder, batch), 4 * number)
    for other in parts[:2]:
        parts[2].merge(other.tensors())
    same = [list(feature_records(tiny_gpt2, transcoder, part)) for part in (parts[2], whole)]
    for left, right in zip(*same, strict=True):
        assert (left.density, left.histogram, left.quantile_values) == (
            right.density,
            right.histogram,
            right.quantile_values,
        )
        assert (left.fires_on, left.coactive, left.nearest) == (right.fires_on, right.coactive, right.nearest)
        for mine, theirs in zip(left.examples + right.examples, right.examples + left.examples, strict=True):
            assert (mine.tokens, mine.peak) == (theirs.tokens, theirs.peak)
            assert torch.equal(mine.activations, theirs.activations)
        assert [len(group.examples) for group in left.groups] == [len(group.examples) for group in right.groups]
    torch.testing.assert_close(parts[2].mean, whole.mean)
    assert whole.n_contexts == collection.n_contexts


def test_at_most_the_asked_number_of_tokens_is_read(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder) -> None:
    def texts() -> Iterator[str]:
        yield from LONG * 10
        raise AssertionError("the text is read further than needed")

    config = FeatureRecordsConfig(context_length=LENGTH, max_tokens=3 * LENGTH)
    assert collect_features(tiny_gpt2, transcoder, texts(), config).n_contexts == 3


def test_mistakes_are_refused(tiny_gpt2: LanguageModel, transcoder: CrossLayerTranscoder) -> None:
    with refuses(TextError):
        collect_features(tiny_gpt2, transcoder, [], CONFIG)
    collection = collect_features(tiny_gpt2, transcoder, TEXTS, CONFIG)
    with refuses(ConfigError, "L9/0"):
        list(feature_records(tiny_gpt2, transcoder, collection, [Feature(9, 0)]))
    for wrong in ("context_length", "window", "top_examples", "examples_per_group", "max_tokens"):
        with refuses(ConfigError, wrong):
            from_dict(FeatureRecordsConfig, {wrong: 0})


def test_features_without_fixed_decoders_have_no_outputs(tiny_gpt2: LanguageModel) -> None:
    molt = make_transcoder(
        MoltConfig(n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model, ranks=(2,), counts=(32,)), seed=0
    )
    collection = collect_features(tiny_gpt2, molt, TEXTS, CONFIG)
    for record in feature_records(tiny_gpt2, molt, collection):
        assert (record.top_tokens, record.outputs, record.nearest) == ((), (), ())
