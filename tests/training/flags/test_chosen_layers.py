"""``open-clt train`` on some layers: by flag and file, on a model and on a dataset of all layers; its mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from open_clt.data.dataset.from_model import harvest_settings, store_of
from open_clt.data.dataset.manifest import HarvestedText
from open_clt.data.dataset.writer import write_dataset
from open_clt.errors import ConfigError
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.load import load_transcoder
from tests.refusals import refuses
from tests.tiny_models import TEXTS
from tests.training.flags.small_run import Settings, train


def with_layers(settings: Settings, **transcoder: Any) -> Settings:
    return {**settings, "transcoder": {**settings["transcoder"], **transcoder}}


@pytest.mark.slow
def test_a_flag_and_a_file_name_the_layers(settings: Settings) -> None:
    result = train(with_layers(settings, layers=[0, 2])).training
    assert result.transcoder.config.model_layers == (0, 2)
    assert result.transcoder.config.n_layers == 2
    again = train({**settings, "output": settings["output"] + "-flag"}, "--transcoder.layers", "[0, 2]").training
    assert again.curves == result.curves
    assert load_transcoder(settings["output"]).config == result.transcoder.config


def test_a_dataset_of_all_layers_is_trained_on_some(
    settings: Settings, tiny_gpt2: LanguageModel, tmp_path: Path
) -> None:
    text = HarvestedText(source="texts.txt", context_length=16)
    hooks = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}
    harvested = harvest_settings(tiny_gpt2, text, tokens=600, shard_tokens=100, dtype="float32", **hooks)
    write_dataset(store_of(tiny_gpt2, lambda: TEXTS * 30, harvested), harvested, tmp_path / "data")
    on_data = with_layers({**settings, "data": {"path": str(tmp_path / "data"), "batch_size": 32}}, layers=[1])
    assert train(on_data).training.transcoder.config.model_layers == (1,)
    with refuses(ConfigError, 5, "0 to 2"):
        train(with_layers({**on_data, "output": str(tmp_path / "other")}, layers=[1, 5]))


@pytest.mark.parametrize(
    ("transcoder", "named"),
    [
        ({"layers": [1, 7]}, [7, 3]),
        ({"layers": [2, 1]}, ["layers", "[2, 1]"]),
        ({"layers": [1, 1]}, ["layers", "[1, 1]"]),
        ({"layers": [-1, 1]}, ["layers", "[-1, 1]"]),
        ({"layers": []}, ["layers", "empty"]),
        ({"layers": "all"}, ["transcoder.layers", "'all'", "list"]),
        ({"layers": [0, 2], "n_layers": 3}, ["n_layers", 3, "[0, 2]", 2]),
    ],
    ids=str,
)
def test_a_mistake_in_the_layers_is_one_sentence(
    settings: Settings, transcoder: dict[str, Any], named: list[object]
) -> None:
    with refuses(ConfigError, *named) as raised:
        train(with_layers(settings, **transcoder))
    assert "\n" not in str(raised.value)
