from __future__ import annotations

import json
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
    load_report,
    replaced_alone,
    report,
    save_report,
)
from open_clt.errors import CheckpointError, ConfigError
from open_clt.replacement.model import ReplacementModel
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


def test_a_saved_report_is_read_back_equal(measured: Report, tmp_path: Path) -> None:
    json_path, csv_path = save_report(measured, tmp_path)
    assert load_report(tmp_path) == load_report(json_path) == measured
    assert len(csv_path.read_text().splitlines()) == 1 + len(measured.layers)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format": "other"}', '{"format": "open-clt-evaluation"}'])
def test_a_foreign_report_is_one_clear_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(CheckpointError, match="holds no evaluation report"):
        load_report(tmp_path)


def test_a_report_of_a_later_version_is_refused(measured: Report, tmp_path: Path) -> None:
    path, _ = save_report(measured, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))
    with pytest.raises(CheckpointError):
        load_report(path)


def test_transcoders_of_one_model_make_a_table(measured: Report) -> None:
    table = comparison_table([measured, measured._replace(name="another")])
    assert [line.split()[0] for line in table.splitlines()[1:3]] == ["random", "another"]
    with pytest.raises(ConfigError, match="different models"):
        comparison_table([measured, measured._replace(model="gpt2")])
    with pytest.raises(ConfigError, match="no transcoder"):
        comparison_table([])
