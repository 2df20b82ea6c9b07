"""The report of a transcoder: its numbers equal those counted one by one, and tables show them."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.data.contexts import pack_contexts
from open_clt.errors import ConfigError
from open_clt.evaluation.report import (
    NORM_QUANTILES,
    Report,
    comparison_table,
    layer_table,
    report,
)
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.metrics import DENSITY_EDGES
from tests.random_transcoders import architecture, exact_transcoder, random_architecture, random_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS, write_gpt2


@pytest.fixture(scope="module")
def contexts(tiny_gpt2: LanguageModel) -> Tensor:
    return pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=6)


@pytest.fixture(scope="module")
def measured(tiny_gpt2: LanguageModel, contexts: Tensor) -> Report:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    return report(replacement, contexts, name="random", prompts=["one two three", "four five"], batch_size=4)


def test_the_same_contexts_give_the_same_report_for_any_batch_size(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    again = report(replacement, contexts, name="random", prompts=["one two three", "four five"], batch_size=2)
    for name, number in measured.row().items():
        assert again.row()[name] == (number if isinstance(number, str) else pytest.approx(number, rel=1e-5))
    assert again.evaluation.reconstruction.density_histogram == measured.evaluation.reconstruction.density_histogram
    assert again.graphs == measured.graphs


def test_densities_dead_features_and_sparsity_agree(measured: Report) -> None:
    features = measured.settings["n_layers"] * measured.settings["n_features"]
    row, layers, histogram = measured.row(), measured.layers(), measured.evaluation.reconstruction.density_histogram
    assert len(histogram) == len(DENSITY_EDGES) - 1
    assert sum(histogram) == features - round(row["dead_share"] * features)
    assert row["l0_total"] == pytest.approx(sum(layer["l0"] for layer in layers))
    assert row["l0"] == pytest.approx(row["l0_total"] / len(layers))
    assert layers[row["worst_layer"]]["fvu"] == row["worst_fvu"]


def densities(model: LanguageModel, contexts: Tensor) -> Tensor:
    """Share of the tokens on which each feature is active, as (layer, feature), without first positions."""
    transcoder = random_transcoder(model)
    inputs = model.capture(contexts, transcoder.config.input_hook, transcoder.config.target_hook).inputs
    active = [layer.dense() > 0 for layer in transcoder.encode(inputs[:, 1:].flatten(0, 1))]
    return torch.stack(active).float().mean(1)


def test_features_are_counted_in_the_bin_of_their_density(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    bins = [0] * (len(DENSITY_EDGES) - 1)
    for density in densities(tiny_gpt2, contexts).flatten().tolist():
        if density > 0:
            bins[min(bisect_right(DENSITY_EDGES, density), len(bins)) - 1] += 1
    assert list(measured.evaluation.reconstruction.density_histogram) == bins
    assert sum(count > 0 for count in bins) > 3, "a feature in the wrong bin would be noticed"


def test_dense_features_are_active_on_more_than_a_tenth_of_the_tokens(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    density = densities(tiny_gpt2, contexts)
    layers, dense_share = measured.layers(), measured.row()["dense_share"]
    assert [layer["dense_share"] for layer in layers] == pytest.approx((density > 0.1).float().mean(1).tolist())
    assert [layer["dead_share"] for layer in layers] == pytest.approx((density == 0).float().mean(1).tolist())
    assert dense_share == pytest.approx(float((density > 0.1).float().mean()))
    assert 0.1 < dense_share < 0.9


def test_predictions_are_compared_with_the_models_own(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    """KL(original || replacement) and agreement are means over tokens; the first position is left out."""
    replaced = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2)).logits(contexts).softmax(-1)[:, 1:-1]
    original = tiny_gpt2.logits(contexts).softmax(-1)[:, 1:-1]
    pairs = list(zip(original.flatten(0, 1), replaced.flatten(0, 1), strict=True))
    divergence = sum(float((p * (p / q).log()).sum()) for p, q in pairs) / len(pairs)
    assert measured.row()["kl"] == pytest.approx(divergence, rel=1e-4)
    agreed = [int(p.argmax()) == int(q.argmax()) for p, q in pairs]
    assert measured.row()["top1_agreement"] == pytest.approx(sum(agreed) / len(agreed))


def test_each_prompts_graph_is_scored(tiny_gpt2: LanguageModel, measured: Report) -> None:
    assert [graph.prompt for graph in measured.graphs] == ["one two three", "four five"]
    for graph in measured.graphs:
        scores = attribute(tiny_gpt2, random_transcoder(tiny_gpt2), graph.prompt, max_feature_nodes=1024).scores()
        assert graph.replacement == pytest.approx(scores.replacement, rel=1e-5)
        assert graph.completeness == pytest.approx(scores.completeness, rel=1e-5)
        assert abs(graph.replacement - graph.completeness) > 0.01, "an exchange of the two scores would be noticed"
    assert measured.graph_replacement == pytest.approx(sum(graph.replacement for graph in measured.graphs) / 2)
    assert measured.graph_completeness == pytest.approx(sum(graph.completeness for graph in measured.graphs) / 2)


def test_decoder_norms_are_quantiles_of_the_transcoder(tiny_gpt2: LanguageModel, measured: Report) -> None:
    norms = random_transcoder(tiny_gpt2).decoder_norms().detach()
    for quantiles, row in zip(measured.decoder_norms, norms, strict=True):
        assert len(quantiles) == len(NORM_QUANTILES)
        assert quantiles[0] == pytest.approx(float(row.min()))
        assert quantiles[-1] == pytest.approx(float(row.max()))
        assert list(quantiles) == sorted(quantiles)


def test_an_exact_transcoder_loses_nothing(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path, activation_function="relu")
    model = load_language_model(folder)
    exact = report(ReplacementModel(model, exact_transcoder(folder)), pack_contexts(TEXTS, model, 12), name="exact")
    row = exact.row()
    assert row["worst_fvu"] < 1e-4
    assert row["ce_replacement"] == pytest.approx(row["ce_original"], abs=1e-3)
    assert all(layer["ce_alone"] == pytest.approx(row["ce_original"], abs=1e-3) for layer in exact.layers())
    assert exact.graphs == ()
    assert exact.graph_replacement is None


@pytest.mark.parametrize("name", ["sae", "molt"])
def test_a_transcoder_that_cannot_be_attributed_has_a_report_without_graphs_and_one_warning(
    tiny_gpt2: LanguageModel, contexts: Tensor, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = architecture(name, n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model)
    replacement = ReplacementModel(tiny_gpt2, random_architecture(config))
    with_prompts = report(replacement, contexts, name=name, prompts=["one two three", "four five"])
    assert with_prompts.graphs == ()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    without_prompts = report(replacement, contexts, name=name)
    assert (without_prompts, caplog.messages) == (with_prompts, [])
    first, second, *_ = without_prompts.layers()
    assert first["ce_alone"] != second["ce_alone"] != without_prompts.row()["ce_original"]


def test_transcoders_of_one_model_make_a_table(measured: Report) -> None:
    table = comparison_table([measured, measured._replace(name="another")])
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["random", "another"]
    with refuses(ConfigError, "gpt2"):
        comparison_table([measured, measured._replace(model="gpt2")])
    with refuses(ConfigError):
        comparison_table([])


def test_a_table_shows_a_number_under_its_head(measured: Report) -> None:
    heads, *rows = (line.split("  ") for line in layer_table(measured).splitlines())
    column = [head.strip() for head in heads if head.strip()].index("KL alone")
    for row, layer in zip(rows, measured.layers(), strict=True):
        assert [cell for cell in row if cell.strip()][column].strip() == f"{layer['kl_alone']:.3f}"
    heads, row = comparison_table([measured]).splitlines()[:2]
    assert row.split()[heads.split().index("CE")] == f"{measured.row()['ce_replacement']:.3f}"
    assert row.split()[heads.split().index("complete")] == f"{measured.graph_completeness:.2f}"
    _, row = comparison_table([measured._replace(graphs=())]).splitlines()[:2]
    assert row.split()[heads.split().index("complete")] == "-"
