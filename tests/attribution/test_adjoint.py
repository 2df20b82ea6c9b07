"""The walk: its shortcut for targets that enter at one position gives the rows of the general walk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from open_clt.attribution.adjoint import Seeds, attribute_rows, before, feature_seeds, read_by, walk
from open_clt.attribution.sources import Sources, find_sources
from open_clt.attribution.targets import resolve_targets
from open_clt.graphs.targets import SalientLogits
from open_clt.language.language_model import LanguageModel
from open_clt.language.linear_path import read_linear_path
from tests.attribution.cases import KINDS, PROMPT
from tests.random_transcoders import random_architecture

pytestmark = pytest.mark.usefixtures("no_gradients")
MODELS_AND_KINDS = [(model, kind) for model in ("gpt2", "llama") for kind in KINDS]


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def sources_and_seeds(model: LanguageModel, kind: str) -> tuple[Sources, Seeds]:
    """Two outputs and every third active feature, highest level first."""
    transcoder = random_architecture(KINDS[kind])
    path = read_linear_path(model, model.tokenize(PROMPT), transcoder.config.input_hook)
    sources = find_sources(path, transcoder)
    features = sources.features
    chosen = torch.arange(0, len(features.layer), 3)
    chosen = chosen[torch.argsort(features.layer[chosen], descending=True, stable=True)]
    outputs = resolve_targets(model, sources, [SalientLogits(max_count=2)]).seeds
    inner = feature_seeds(sources, features.layer[chosen], features.position[chosen], features.index[chosen])
    return sources, Seeds(
        *(torch.cat([getattr(outputs, name), getattr(inner, name)]) for name in Seeds.__dataclass_fields__)
    )


@pytest.mark.parametrize(("name", "kind"), MODELS_AND_KINDS)
def test_the_shortcut_for_targets_that_enter_at_one_position_gives_the_same_rows(
    models: dict[str, LanguageModel], name: str, kind: str
) -> None:
    sources, seeds = sources_and_seeds(models[name], kind)
    entries = torch.where(seeds.level < sources.n_layers, read_by(seeds.level), before(seeds.level))
    cotangents = torch.zeros(len(seeds), sources.path.n_positions, sources.path.d_model)
    cotangents[torch.arange(len(seeds)), seeds.position] = seeds.cotangent
    general = walk(sources, cotangents.clone(), entries)
    shortcut = walk(sources, cotangents.clone(), entries, positions=seeds.position)
    torch.testing.assert_close(shortcut, general, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_every_target_has_one_row_for_any_batch_size(tiny_gpt2: LanguageModel, batch_size: int) -> None:
    sources, seeds = sources_and_seeds(tiny_gpt2, "clt")
    rows = torch.full((len(seeds), sources.n_columns), torch.nan)
    for batch in attribute_rows(sources, seeds, batch_size=batch_size):
        assert len(batch.targets) <= batch_size
        assert bool(rows[batch.targets].isnan().all())
        rows[batch.targets] = batch.rows
    torch.testing.assert_close(rows.sum(1), seeds.total, atol=1e-4, rtol=1e-4)


def test_a_target_has_no_edges_from_later_positions(tiny_gpt2: LanguageModel) -> None:
    sources, seeds = sources_and_seeds(tiny_gpt2, "clt")
    position = sources.nodes().position
    for batch in attribute_rows(sources, seeds, batch_size=8):
        later = position[None] > seeds.position[batch.targets][:, None]
        assert not batch.rows[later].any()
