"""The training benchmark at a tiny size: all sides train the same transcoder, and ratios are the right way round."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / "sides"))
from benchmarks.sides.training_case import Case
from benchmarks.sides.training_ours import Training
from benchmarks.training import Measured, summary


@pytest.mark.slow
@pytest.mark.parametrize("nonlinearity", ["topk", "jumprelu"])
def test_all_sides_of_ours_have_the_same_loss_after_a_step(nonlinearity: str) -> None:
    losses: dict[str, float] = {}
    for side in ("ours", "frugal", "dense"):
        case = Case(
            side=side, nonlinearity=nonlinearity, layers=2, d_model=32, features=128, tokens=64, active=8,
            precision="highest",
        )  # fmt: skip
        training = Training(case, "cpu")
        assert training.answer({"kind": "l0"})["l0"] == pytest.approx(8, rel=0.1)
        losses[side] = training.answer({"kind": "memory"})["loss"]  # the loss after one step
        for kind in ("backward", "step", "floor"):
            assert training.answer({"kind": kind})["seconds"] > 0
    assert losses["frugal"] == pytest.approx(losses["ours"], rel=1e-5)
    assert losses["dense"] == pytest.approx(losses["ours"], rel=1e-4)


def test_ratios_compare_the_other_side_with_ours() -> None:
    ours = Measured(backward=1.0, step=2.0, extra_memory_mb=10.0, floor=0.5)
    dense = Measured(backward=8.0, step=10.0, extra_memory_mb=40.0, floor=0.0)
    result = summary({"ours": ours, "frugal": ours, "dense": dense}, tokens=1024)
    assert result["speedup_dense"] == 8
    assert result["step_speedup_dense"] == 5
    assert result["memory_ratio_dense"] == 0.25
    assert result["floor_ratio"] == 2
    assert result["optimizer_share"] == 0.5
    assert result["tokens_per_second"] == 512
