from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_clt.activations.language_model import LanguageModel, load_language_model
from open_clt.activations.text import pack_contexts
from open_clt.analysis.report import (
    DENSITY_EDGES,
    NORM_QUANTILES,
    Report,
    comparison_table,
    replaced_alone,
    report,
)
from open_clt.attribution.attribute import attribute
from open_clt.errors import ConfigError
from open_clt.replacement.model import ReplacementModel
from tests.architectures import architecture, random_architecture
from tests.tiny_models import TEXTS, exact_transcoder, random_transcoder, write_gpt2


@pytest.fixture(scope="module")
def contexts(tiny_gpt2: LanguageModel) -> Tensor:
    return pack_contexts(TEXTS, tiny_gpt2, 12, max_contexts=6)


@pytest.fixture(scope="module")
def measured(tiny_gpt2: LanguageModel, contexts: Tensor) -> Report:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    return report(replacement, contexts, name="random", prompts=["one two three", "four five"], batch_size=4)


def test_the_same_contexts_give_the_same_report_whatever_the_batch(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    again = report(replacement, contexts, name="random", prompts=["one two three", "four five"], batch_size=2)
    assert again.fvu == pytest.approx(measured.fvu, rel=1e-6)
    assert again.ce_replacement == pytest.approx(measured.ce_replacement, rel=1e-5)
    assert again.density_histogram == measured.density_histogram
    assert again.graphs == measured.graphs


def test_densities_dead_features_and_sparsity_agree(measured: Report) -> None:
    features = measured.settings["n_layers"] * measured.settings["n_features"]
    assert len(measured.density_histogram) == len(DENSITY_EDGES) - 1
    assert sum(measured.density_histogram) == features - round(measured.dead_share * features)
    assert measured.l0_total == pytest.approx(sum(layer.l0 for layer in measured.layers))
    assert measured.l0 == pytest.approx(measured.l0_total / len(measured.layers))
    assert measured.layers[measured.worst_layer].fvu == measured.worst_fvu


def densities(model: LanguageModel, contexts: Tensor) -> Tensor:
    """Share of the tokens on which each feature fires, (layer, feature), first positions left out: one by one."""
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
    assert list(measured.density_histogram) == bins
    assert sum(count > 0 for count in bins) > 3, "a feature in the wrong bin would be seen"


def test_dense_features_fire_on_more_than_a_tenth_of_the_tokens(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    found = densities(tiny_gpt2, contexts)
    assert [layer.dense_share for layer in measured.layers] == pytest.approx((found > 0.1).float().mean(1).tolist())
    assert [layer.dead_share for layer in measured.layers] == pytest.approx((found == 0).float().mean(1).tolist())
    assert measured.dense_share == pytest.approx(float((found > 0.1).float().mean()))
    assert 0.1 < measured.dense_share < 0.9


def test_predictions_are_compared_with_the_models_own(
    tiny_gpt2: LanguageModel, contexts: Tensor, measured: Report
) -> None:
    """KL(original || replacement) and agreement, token after token, where the first position predicts nothing."""
    replaced = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2)).logits(contexts).softmax(-1)[:, 1:-1]
    original = tiny_gpt2.logits(contexts).softmax(-1)[:, 1:-1]
    pairs = list(zip(original.flatten(0, 1), replaced.flatten(0, 1), strict=True))
    assert measured.kl == pytest.approx(sum(float((p * (p / q).log()).sum()) for p, q in pairs) / len(pairs), rel=1e-4)
    agreed = [int(p.argmax()) == int(q.argmax()) for p, q in pairs]
    assert measured.top1_agreement == pytest.approx(sum(agreed) / len(agreed))


def test_each_prompts_graph_is_scored(tiny_gpt2: LanguageModel, measured: Report) -> None:
    assert [graph.prompt for graph in measured.graphs] == ["one two three", "four five"]
    for graph in measured.graphs:
        scores = attribute(tiny_gpt2, random_transcoder(tiny_gpt2), graph.prompt, max_feature_nodes=1024).scores()
        assert graph.replacement == pytest.approx(scores.replacement, rel=1e-5)
        assert graph.completeness == pytest.approx(scores.completeness, rel=1e-5)
        assert abs(graph.replacement - graph.completeness) > 0.01, "mistaking one for the other would be seen"
    assert measured.graph_replacement == pytest.approx(sum(graph.replacement for graph in measured.graphs) / 2)
    assert measured.graph_completeness == pytest.approx(sum(graph.completeness for graph in measured.graphs) / 2)


def test_decoder_norms_are_quantiles_of_the_transcoder(tiny_gpt2: LanguageModel, measured: Report) -> None:
    norms = random_transcoder(tiny_gpt2).decoder_norms().detach()
    for layer, row in zip(measured.layers, norms, strict=True):
        assert len(layer.decoder_norms) == len(NORM_QUANTILES)
        assert layer.decoder_norms[0] == pytest.approx(float(row.min()))
        assert layer.decoder_norms[-1] == pytest.approx(float(row.max()))
        assert list(layer.decoder_norms) == sorted(layer.decoder_norms)


def test_a_layer_replaced_alone_is_that_replacement_model(tiny_gpt2: LanguageModel, contexts: Tensor) -> None:
    transcoder = random_transcoder(tiny_gpt2)
    alone = replaced_alone(ReplacementModel(tiny_gpt2, transcoder), contexts, batch_size=4)
    single = ReplacementModel(tiny_gpt2, transcoder, layers=[1]).logits(contexts)[:, 1:-1]
    loss = torch.nn.functional.cross_entropy(single.flatten(0, 1), contexts[:, 2:].flatten())
    assert alone[1].cross_entropy_replacement == pytest.approx(float(loss), rel=1e-5)


def test_an_exact_transcoder_loses_nothing(tmp_path: Path) -> None:
    folder = write_gpt2(tmp_path, activation_function="relu")
    model = load_language_model(folder)
    found = report(ReplacementModel(model, exact_transcoder(folder)), pack_contexts(TEXTS, model, 12), name="exact")
    assert found.worst_fvu < 1e-4
    assert found.ce_replacement == pytest.approx(found.ce_original, abs=1e-3)
    assert all(layer.ce_alone == pytest.approx(found.ce_original, abs=1e-3) for layer in found.layers)
    assert found.graphs == ()
    assert found.graph_replacement is None


@pytest.mark.parametrize("name", ["sae", "molt"])
def test_what_cannot_be_attributed_has_a_report_without_graphs_and_one_line_says_so(
    tiny_gpt2: LanguageModel, contexts: Tensor, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = architecture(name, n_layers=tiny_gpt2.n_layers, d_model=tiny_gpt2.d_model)
    replacement = ReplacementModel(tiny_gpt2, random_architecture(config))
    found = report(replacement, contexts, name=name, prompts=["one two three", "four five"])
    assert found.graphs == ()
    assert [record.message for record in caplog.records if "without graphs" in record.message] == caplog.messages
    assert len(caplog.messages) == 1
    caplog.clear()
    without = report(replacement, contexts, name=name)
    assert (without, caplog.messages) == (found, [])
    assert without.layers[0].ce_alone != without.layers[1].ce_alone != without.ce_original


def test_transcoders_of_one_model_make_a_table(measured: Report) -> None:
    table = comparison_table([measured, measured._replace(name="another")])
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["random", "another"]
    with pytest.raises(ConfigError, match="different models"):
        comparison_table([measured, measured._replace(model="gpt2")])
    with pytest.raises(ConfigError, match="no transcoder"):
        comparison_table([])
