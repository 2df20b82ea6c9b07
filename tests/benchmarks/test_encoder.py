"""The encoder benchmark at a tiny size: the plain side finds the activations that the encoder keeps."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from benchmarks import encoder


def test_the_floor_does_the_work_of_an_encoder() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(7, 8, generator=generator), torch.randn(40, 8, generator=generator)
    found = torch.cat(encoder.plain(hidden, weight, torch.zeros(40), top_k=3, chunk_size=2))
    torch.testing.assert_close(found, functional.linear(hidden, weight).topk(3, dim=1).values)


def test_both_sides_are_measured() -> None:
    sizes = {"positions": 70, "d_model": 16, "features": 128, "active": 4, "top_k": 3, "chunk_size": 32, "repeats": 1}
    result = encoder.measure(argparse.Namespace(**sizes))
    assert result["ratio_to_floor"] > 0
    assert result["seconds"] > 0
    assert result["speedup_peer"] is None
