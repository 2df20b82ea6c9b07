"""The record of the features that are active on a text prints in one line."""

from __future__ import annotations

import torch

from open_clt.features.firing import FeatureActivations
from open_clt.transcoders.sparse.codes import SparseFeatures


def test_the_activations_of_a_text_print_their_shapes() -> None:
    layer = SparseFeatures.from_dense(torch.zeros(2, 5))
    text = repr(FeatureActivations(tokens=("a", "b"), layers=(layer,)))
    assert text == "FeatureActivations(tokens=('a', 'b'), layers=(<array (2, 5) of SparseFeatures>,))"
