"""Short representations: no object of the package prints the numbers of its tensors."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch

import open_clt
from open_clt.config import CrossLayerConfig, MoltConfig, ReLUConfig, TopKConfig
from open_clt.config.json import CheckedConfig
from open_clt.language.language_model import LanguageModel
from open_clt.open_cross_layer_transcoder import OpenCrossLayerTranscoder
from open_clt.replacement.model import ReplacementModel
from open_clt.short_repr import short_repr
from open_clt.transcoders.make import make_transcoder
from tests.graphs.hand_graph import hand_graph

SMALL = {"Country", "GraphCard", "Kind", "NodeQuery", "NotFinite", "OwnArchitecture", "Positioned", "Saved", "State"}
"""Records that hold functions or a few settings, which print as they are."""
LARGE = r"Tensor|NDArray|\.\.\.|dict\[|(Mapping|Sequence)\["
"""Annotations of fields whose values may be large."""


def records() -> dict[type[Any], str]:
    """All public classes of records with the annotations of their fields, except configs and small records."""
    found: dict[type[Any], str] = {}
    for module in pkgutil.walk_packages(open_clt.__path__, "open_clt."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(import_module(module.name)).items():
            is_record = isinstance(value, type) and (is_dataclass(value) or hasattr(value, "_fields"))
            is_public = getattr(value, "__module__", "").startswith("open_clt.") and not name.startswith("_")
            if is_record and is_public and name not in SMALL and not issubclass(value, CheckedConfig):
                found[value] = " ".join(map(str, vars(value).get("__annotations__", {}).values()))
    return found


def large_records() -> set[type[Any]]:
    """The records that have a large field, or a field that holds a large record."""
    annotations = records()
    large = {cls for cls, hints in annotations.items() if re.search(LARGE, hints)}
    size = 0
    while size < len(large):
        size, names = len(large), "|".join(cls.__name__ for cls in large)
        large |= {cls for cls, hints in annotations.items() if re.search(rf"\b({names})\b", hints)}
    return large


def test_every_record_that_may_be_large_prints_shapes_and_few_items_only() -> None:
    classes = large_records()
    assert len(classes) > 60
    assert [cls.__name__ for cls in classes if cls.__repr__ is not short_repr] == []


def test_graphs_transcoders_and_models_print_one_short_line(tiny_gpt2: LanguageModel) -> None:
    shape = {"n_layers": tiny_gpt2.n_layers, "d_model": tiny_gpt2.d_model}
    transcoder = make_transcoder(CrossLayerConfig(**shape, n_features=6, nonlinearity=TopKConfig(k=2)))
    facade = OpenCrossLayerTranscoder(tiny_gpt2, num_features=6)
    outputs = transcoder(torch.randn(3, tiny_gpt2.n_layers, tiny_gpt2.d_model))
    graph = hand_graph()
    molt = make_transcoder(MoltConfig(**shape, ranks=(1,), counts=(4,), nonlinearity=ReLUConfig()))
    objects = [
        tiny_gpt2,
        transcoder,
        molt,
        facade,
        ReplacementModel(tiny_gpt2, transcoder),
        outputs,
        graph,
        graph.nodes,
    ]
    for thing in (*objects, graph.edges, graph.influence_graph, graph.info):
        text = repr(thing)
        assert text.startswith(type(thing).__name__)
        assert "\n" not in text
        assert "tensor([" not in text
        assert len(text) <= 400, text


class Pair(NamedTuple):
    left: object
    right: object

    __repr__ = short_repr


def test_long_values_are_cut_and_nested_records_are_printed_in_the_same_way() -> None:
    assert repr(Pair(torch.zeros(2, 3), list(range(100)))) == (
        "Pair(left=<tensor (2, 3) float32>, right=[0, 1, 2, 3, 4, ... 100 in total])"
    )
    assert repr(Pair({"a": torch.zeros(1)}, Pair(1, ("x",)))) == (
        "Pair(left={'a': <tensor (1,) float32>}, right=Pair(left=1, right=('x',)))"
    )
    assert repr(Pair(np.zeros((2, 3)), 1)) == "Pair(left=<array (2, 3) float64>, right=1)"
    assert len(repr(Pair("x" * 1000, 1))) < 200


def test_a_record_of_many_long_values_cuts_the_longest_of_them() -> None:
    text = repr(Pair(Pair(["x" * 80] * 9, 1), Pair(2, 3)))
    assert 300 < len(text) <= 400
    assert text.endswith("..., right=Pair(left=2, right=3))")
