"""Everything that uses a transcoder uses it at the first position if, and only if, it was trained there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from open_clt.attribution.attribute import attribute
from open_clt.attribution.heads import head_contributions
from open_clt.config import CrossLayerConfig, MoltConfig, TopKConfig, TranscoderConfig
from open_clt.errors import ConfigError
from open_clt.evaluation.conversion import convert_transcoder
from open_clt.evaluation.evaluate import measure
from open_clt.evaluation.faithfulness import faithfulness
from open_clt.evaluation.report import report
from open_clt.features.firing import activation_statistics, activations_of, feature_activations
from open_clt.graphs.graph import AttributionGraph
from open_clt.graphs.nodes import NodeKind
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import intervene, observe
from open_clt.replacement.interventions.intervention import Intervention, Iterative
from open_clt.replacement.model import ReplacementModel
from open_clt.training.data.module import ActivationDataModule
from open_clt.training.run import train_transcoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from open_clt.transcoders.make import make_transcoder
from open_clt.transcoders.transcoder import Transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS
from tests.training.synthetic import quick_data, quick_training, relu_mlps

PROMPT = "The cat sat on the mat"
CONTEXT_LENGTH = 12


def settings_of(model: LanguageModel, *, use_first_position: bool) -> CrossLayerConfig:
    return CrossLayerConfig(
        n_layers=model.n_layers,
        n_features=24,
        d_model=model.d_model,
        nonlinearity=TopKConfig(k=4),
        use_first_position=use_first_position,
    )


def contexts_of(model: LanguageModel) -> Tensor:
    contexts = torch.randint(1, 300, (24, CONTEXT_LENGTH), generator=torch.Generator().manual_seed(0))
    contexts[:, 0] = model.bos_token_id
    return contexts


@pytest.fixture(scope="module", params=[True, False], ids=["used", "unused"])
def transcoder(request: pytest.FixtureRequest, tiny_gpt2: LanguageModel) -> Transcoder:
    """A transcoder after a few training steps, with or without the first position."""
    training = quick_training(batch_size=32, max_steps=8, max_norm_ratio=None, held_out_contexts=2)
    config = settings_of(tiny_gpt2, use_first_position=request.param)
    record = train_transcoder(tiny_gpt2, contexts_of(tiny_gpt2), config, training, progress=False)
    assert record.metrics is not None
    assert record.metrics.tokens == 2 * (CONTEXT_LENGTH - record.transcoder.first_position)
    return record.transcoder


@pytest.mark.parametrize("use_first_position", [True, False])
def test_training_uses_the_first_position_if_the_setting_says_so(use_first_position: bool) -> None:
    data = ActivationDataModule(
        relu_mlps(160), quick_data(batch_size=16), held_out=relu_mlps(32), use_first_position=use_first_position
    )
    assert data.prepared.kept is not None
    held_out = torch.cat([batch.positions for batch in data.held_out_batches()])
    for positions in (data.prepared.kept.positions, held_out):
        assert bool((positions == 0).any()) == use_first_position


def test_replacement_replaces_the_first_mlp_output_if_the_position_is_used(
    tiny_gpt2: LanguageModel, transcoder: Transcoder
) -> None:
    tokens = tiny_gpt2.tokenize(PROMPT)[None]
    original = tiny_gpt2.capture(tokens).targets[0, 0, 0]
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    with replacement.replacing():
        replaced = tiny_gpt2.capture(tokens, "hook_in").targets[0, 0, 0]
    with replacement.ablating(torch.full((3, 32), 7.0)):
        ablated = tiny_gpt2.capture(tokens, "hook_in").targets[0, 0, 0]
    used = transcoder.config.use_first_position
    assert torch.equal(replaced, original) != used
    assert torch.equal(ablated, torch.full((32,), 7.0)) == used


def test_a_graph_has_features_at_the_first_position_if_it_is_used(
    tiny_gpt2: LanguageModel, transcoder: Transcoder, tmp_path: Path
) -> None:
    used = transcoder.config.use_first_position
    graph = attribute(tiny_gpt2, transcoder, PROMPT)
    features = graph.of_kind(NodeKind.FEATURE)
    assert (int(graph.nodes.position[features].min()) == 0) == used
    assert bool(graph.of_kind(NodeKind.MLP_OUTPUT).any()) != used
    torch.testing.assert_close(graph.adjacency().sum(1)[features], graph.nodes.total[features], atol=1e-4, rtol=1e-4)
    loaded = AttributionGraph.load(graph.save(tmp_path / "graph"))
    parts = head_contributions(tiny_gpt2, transcoder, loaded, loaded.n_nodes - 1)
    torch.testing.assert_close(parts.heads.sum((0, 1)) + parts.direct, graph.adjacency()[-1], atol=1e-4, rtol=1e-4)
    measured = faithfulness(loaded, ReplacementModel(tiny_gpt2, transcoder), max_features=3)
    assert len(measured.features) == 3


def test_an_intervention_at_the_first_position_is_refused_unless_it_is_used(
    tiny_gpt2: LanguageModel, transcoder: Transcoder
) -> None:
    used = transcoder.config.use_first_position
    replacement = ReplacementModel(tiny_gpt2, transcoder, error_correction=True)
    before = observe(replacement, PROMPT)
    assert bool(before.features[0].dense()[0].any()) == used
    at_first = Intervention(0, 0, 3, value=5.0)
    if not used:
        with refuses(ConfigError, "position", 0):
            intervene(replacement, PROMPT, at_first)
        return
    for patching in (None, Iterative()):
        record = intervene(replacement, before, at_first, patching)
        assert not torch.equal(record.after.outputs[0, 0], before.outputs[0, 0])
        assert float(record.after.features[0].dense()[0, 3]) == 5.0


def test_an_evaluation_counts_the_first_position_if_it_is_used(
    tiny_gpt2: LanguageModel, transcoder: Transcoder
) -> None:
    contexts, first = contexts_of(tiny_gpt2), transcoder.first_position
    replacement = ReplacementModel(tiny_gpt2, transcoder)
    measured = measure(replacement, contexts)
    assert measured.reconstruction.tokens == 24 * (CONTEXT_LENGTH - first)
    logits = tiny_gpt2.logits(contexts)[:, first:-1]
    cross_entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), contexts[:, first + 1 :].flatten())
    assert measured.logits.cross_entropy_original == pytest.approx(float(cross_entropy), rel=1e-4)
    reported = report(replacement, contexts, name="transcoder").evaluation
    assert reported.reconstruction.tokens == measured.reconstruction.tokens
    record = convert_transcoder(tiny_gpt2, transcoder, contexts)
    assert record.transcoder.config.use_first_position == transcoder.config.use_first_position
    assert record.before.reconstruction.tokens == 6 * (CONTEXT_LENGTH - first)


def test_statistics_of_features_count_the_first_position_if_it_is_used(
    tiny_gpt2: LanguageModel, transcoder: Transcoder
) -> None:
    statistics = activation_statistics(tiny_gpt2, transcoder, TEXTS * 2, context_length=CONTEXT_LENGTH)
    contexts = statistics.contexts
    dense = torch.stack([feature_activations(tiny_gpt2, transcoder, context).dense() for context in contexts])
    assert bool(dense[:, 0].any()) == transcoder.config.use_first_position
    used = dense[:, transcoder.first_position :].flatten(0, 1)
    assert statistics.tokens == len(used)
    torch.testing.assert_close(statistics.mean, used.mean(0), atol=1e-5, rtol=1e-4)
    columns = activations_of(tiny_gpt2, transcoder, contexts, [Feature(1, 2)])
    torch.testing.assert_close(columns[:, 0], used[:, 1, 2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        CrossLayerConfig(n_layers=2, n_features=8, d_model=6, nonlinearity=TopKConfig(k=2)),
        MoltConfig(n_layers=2, d_model=6, ranks=(2,), counts=(8,), nonlinearity=TopKConfig(k=2)),
    ],
    ids=lambda config: config.kind,
)
def test_a_saved_transcoder_keeps_the_setting_and_an_older_file_means_false(
    config: TranscoderConfig, tmp_path: Path
) -> None:
    for used in (True, False):
        transcoder = make_transcoder(replace(config, use_first_position=used))
        folder = save_transcoder(transcoder, tmp_path / str(used))
        assert load_transcoder(folder).config.use_first_position == used
        assert transcoder.folded().first_position == int(not used)
    file = tmp_path / "False" / "config.json"
    content = json.loads(file.read_text())
    del content["transcoder"]["use_first_position"]
    file.write_text(json.dumps(content))
    assert not load_transcoder(file.parent).config.use_first_position
