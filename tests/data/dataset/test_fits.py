"""A dataset that does not fit a transcoder is refused in a sentence that names the dataset and the difference."""

from __future__ import annotations

from typing import Any

import pytest

from open_clt.config import CrossLayerConfig, MoltConfig, TopKConfig
from open_clt.data.dataset.fits import check_dataset_fits
from open_clt.errors import ConfigError
from tests.data.dataset.small_dataset import D_MODEL, N_LAYERS, harvested
from tests.refusals import refuses

SHAPE: dict[str, Any] = {"n_layers": N_LAYERS, "d_model": D_MODEL}
HOOKS: dict[str, Any] = {"input_hook": "hook_resid_mid", "target_hook": "hook_mlp_out"}


def config(**settings: Any) -> CrossLayerConfig:
    given: dict[str, Any] = {**SHAPE, **HOOKS, "n_features": 4, **settings}
    return CrossLayerConfig(nonlinearity=TopKConfig(k=2), **given)


@pytest.mark.parametrize("made_for", [None, "tiny", "somebody/tiny", "/models/Tiny"])
def test_a_dataset_of_the_same_model_hooks_and_shape_fits(made_for: str | None) -> None:
    check_dataset_fits(harvested(), config(language_model=made_for), "dataset")
    check_dataset_fits(
        harvested(), MoltConfig(**SHAPE, **HOOKS, ranks=(1,), counts=(3,), nonlinearity=TopKConfig(k=2)), "dataset"
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"language_model": "gpt2"}, ["gpt2", "tiny", "model"]),
        ({"input_hook": "mlp.hook_in"}, ["input_hook", "mlp.hook_in", "hook_resid_mid"]),
        ({"target_hook": "hook_resid_post"}, ["target_hook", "hook_resid_post", "hook_mlp_out"]),
        ({"n_layers": 3}, ["n_layers", 3, N_LAYERS]),
        ({"d_model": 4}, ["d_model", 4, D_MODEL]),
    ],
)
def test_a_difference_is_named(settings: dict[str, Any], named: list[object]) -> None:
    with refuses(ConfigError, "folder/dataset", *named):
        check_dataset_fits(harvested(), config(**settings), "folder/dataset")
