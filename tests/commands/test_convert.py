"""``open-clt convert``: what it writes is the library's conversion, and the other tool's layout is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.activations.language_model import LanguageModel
from open_clt.cli import main
from open_clt.config import JumpReLUConfig, TopKConfig
from open_clt.models.checkpoint import load_transcoder, save_transcoder
from open_clt.models.circuit_tracer import load_circuit_tracer
from tests.tiny_models import TEXTS, random_transcoder


@pytest.fixture
def options(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> list[str]:
    save_transcoder(random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=4)), tmp_path / "topk")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 6))
    text = ["--text", str(tmp_path / "text.txt"), "--context-length", "12", "--max-tokens", "200"]
    return ["convert", "--model", str(tiny_gpt2_folder), "--transcoder", str(tmp_path / "topk"), *text]


def test_both_formats_hold_the_same_thresholds(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(tmp_path / "native")]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("L0 a layer", "FVU", "CE", "->"))
    assert main([*options, "--output", str(tmp_path / "other"), "--format", "circuit-tracer"]) == 0
    native, other = load_transcoder(tmp_path / "native"), load_circuit_tracer(tmp_path / "other")
    assert isinstance(native.config.nonlinearity, JumpReLUConfig)
    inputs = torch.randn(16, native.config.n_layers, native.config.d_model, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(native.encode(inputs), other.encode(inputs), strict=True):
        torch.testing.assert_close(ours.dense(), theirs.dense(), atol=1e-5, rtol=1e-5)


def test_what_has_thresholds_already_is_refused_in_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(tmp_path / "once")]) == 0
    capsys.readouterr()
    again = [*options[:4], str(tmp_path / "once"), *options[5:]]
    assert main([*again, "--output", str(tmp_path / "twice")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "twice").exists()
