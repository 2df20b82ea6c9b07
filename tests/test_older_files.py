"""Files of earlier versions of OpenCLT are read: ``tests/older_files/`` has one of each version of each format.

Each was written by the code of its time, ``expected.json`` with it: what transcoders compute, and the sizes of graphs.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from open_clt import AttributionGraph, load_session, load_transcoder
from open_clt.data.dataset import read
from open_clt.data.dataset.manifest import MANIFEST_FORMAT
from open_clt.explorer.session.session_file import FORMAT as SESSION_FORMAT
from open_clt.features.feature_files import FeatureFiles
from open_clt.graphs.graph import FORMAT as GRAPH_FORMAT
from open_clt.training.checkpoint_io import FORMAT as CHECKPOINT_FORMAT
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.feature import Feature
from open_clt.transcoders.formats.native import FORMAT as TRANSCODER_FORMAT

FOLDER = Path(__file__).parent / "older_files"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
VERSIONS = {
    "transcoder": TRANSCODER_FORMAT,
    "graph": GRAPH_FORMAT,
    "checkpoint": CHECKPOINT_FORMAT,
    "session": SESSION_FORMAT,
    "dataset": MANIFEST_FORMAT,
}


class Doubled(CrossLayerTranscoder):
    """A user's own class, which version 3 of a transcoder may have."""


def test_every_version_of_every_format_has_a_file_that_states_it() -> None:
    for name, file_format in VERSIONS.items():
        for version in range(file_format.oldest, file_format.newest + 1):
            place = FOLDER / f"{name}-{version}"
            files = [place.with_name(f"{place.name}.json")] if not place.is_dir() else [*place.glob("*.json")]
            stated = [json.loads(file.read_text()) for file in files]
            assert file_format.header(version) in [
                {key: content.get(key) for key in ("format", "format_version")} for content in stated
            ], place


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_a_transcoder_computes_what_it_computed(version: int) -> None:
    own_class = Doubled if version == 3 else None
    transcoder = load_transcoder(FOLDER / f"transcoder-{version}", own_class=own_class)
    with torch.no_grad():
        outputs = transcoder(torch.linspace(-1, 1, 5 * 2 * 8).reshape(5, 2, 8)).reconstruction
    torch.testing.assert_close(outputs.flatten(), torch.tensor(EXPECTED[f"transcoder-{version}"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_a_graph_has_its_nodes_and_edges_and_can_be_pruned(version: int) -> None:
    graph = AttributionGraph.load(FOLDER / f"graph-{version}")
    assert [len(graph.nodes), graph.edges.weight.numel()] == EXPECTED[f"graph-{version}"]
    assert 0 < len(graph.prune(0.5, 0.5).nodes) < len(graph.nodes)


def test_a_session_has_its_graph() -> None:
    assert len(load_session(FOLDER / "session-1.json").trace.graph.nodes) == EXPECTED["session-1"]


def test_a_dataset_yields_all_its_tokens() -> None:
    tokens = torch.cat([batch.tokens for batch in read(FOLDER / "dataset-1", 8)])
    assert sorted(tokens.tolist()) == [*range(70)]


@pytest.mark.parametrize("name", ["features-before-1", "features-1"])
def test_feature_records_have_their_numbers(name: str) -> None:
    record = FeatureFiles(FOLDER / name).record(Feature(1, 4))
    assert record is not None
    assert (record.density, record.max_activation) == (0.25, 2.0)


def test_a_checkpoint_of_training_has_its_values() -> None:
    state = SafetensorsCheckpointIO().load_checkpoint(FOLDER / "checkpoint-1")
    assert (state["epoch"], state["global_step"], state["hyper"]) == (1, 4, (1, "a", None, True, 0.5))
    assert torch.equal(state["state_dict"]["W"], torch.arange(6.0).reshape(2, 3))
    assert state["optimizer_states"][0]["state"][0]["step"] == 4
