"""``open-clt convert``: what it writes is the library's conversion, and the other tool's layout is read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from open_clt.cli import main
from open_clt.config import JumpReLUConfig, TopKConfig
from open_clt.evaluation.report_file import load_report
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.circuit_tracer import load_circuit_tracer
from open_clt.transcoders.formats.load import load_transcoder
from open_clt.transcoders.formats.native import save_transcoder
from tests.random_transcoders import random_transcoder
from tests.tiny_models import TEXTS


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
    assert all(name in printed for name in ("L0", "FVU", "CE", "->"))
    assert main([*options, "--output", str(tmp_path / "other"), "--format", "circuit-tracer"]) == 0
    native, other = load_transcoder(tmp_path / "native"), load_circuit_tracer(tmp_path / "other")
    assert isinstance(native.config.nonlinearity, JumpReLUConfig)
    inputs = torch.randn(16, native.config.n_layers, native.config.d_model, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(native.encode(inputs), other.encode(inputs), strict=True):
        torch.testing.assert_close(ours.dense(), theirs.dense(), atol=1e-5, rtol=1e-5)


def test_decoders_of_norm_one_change_no_output(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what has no thresholds yet after its conversion, of what has them alone, and in both layouts."""
    assert main([*options, "--output", str(tmp_path / "plain")]) == 0
    assert main([*options, "--unit-decoders", "--output", str(tmp_path / "at once")]) == 0
    capsys.readouterr()
    without_text = ["convert", *options[1:3], "--transcoder", str(tmp_path / "plain"), "--unit-decoders"]
    assert main([*without_text, "--output", str(tmp_path / "after")]) == 0
    assert main([*without_text, "--format", "circuit-tracer", "--output", str(tmp_path / "other")]) == 0
    said = capsys.readouterr().out
    plain = load_transcoder(tmp_path / "plain")
    norms = plain.folded().decoder_norms()
    assert f"decoder norms  {norms.min():.3g} to {norms.max():.3g} -> 1" in said
    assert "L0" not in said
    inputs = torch.randn(16, plain.config.n_layers, plain.config.d_model, generator=torch.Generator().manual_seed(0))
    for name in ("at once", "after", "other"):
        unit = load_transcoder(tmp_path / name)
        torch.testing.assert_close(unit.decoder_norms(), torch.ones_like(norms), atol=1e-5, rtol=0)
        torch.testing.assert_close(unit(inputs).reconstruction, plain(inputs).reconstruction, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(unit.encode(inputs)[0].dense(), plain.encode(inputs)[0].dense(), atol=1e-2)


def test_what_is_written_for_circuit_tracer_is_read_wherever_a_transcoder_is(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("native", "circuit-tracer"):
        assert main([*options, "--format", layout, "--output", str(tmp_path / layout)]) == 0
    text = [*options[1:3], *options[5:], "--graphs", "1", "--output", str(tmp_path / "compared")]
    assert main(["compare", str(tmp_path / "native"), str(tmp_path / "circuit-tracer"), *text]) == 0
    ours, theirs = (load_report(tmp_path / "compared" / layout) for layout in ("native", "circuit-tracer"))
    assert theirs.row()["fvu"] == pytest.approx(ours.row()["fvu"], rel=1e-3)
    # Folding rounds: a feature within rounding of its threshold may fall on its other side.
    assert theirs.row()["ce_replacement"] == pytest.approx(ours.row()["ce_replacement"], rel=1e-3)
    assert theirs.graph_completeness == pytest.approx(ours.graph_completeness, rel=1e-3)
    model = [*options[1:3], "--transcoder", str(tmp_path / "circuit-tracer"), "--prompt", "one two three"]
    for command in ("generate", "attribute"):
        assert main([command, *model]) == 0
    capsys.readouterr()
    (tmp_path / "circuit-tracer" / "config.yaml").unlink()
    assert main(["generate", *model]) == 2
    assert "config.yaml is missing" in capsys.readouterr().err


def test_what_has_thresholds_already_is_refused_in_one_line(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(tmp_path / "once")]) == 0
    capsys.readouterr()
    again = [*options[:4], str(tmp_path / "once"), *options[5:]]
    assert main([*again, "--output", str(tmp_path / "twice")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "twice").exists()
