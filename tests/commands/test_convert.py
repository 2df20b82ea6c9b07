"""``open-clt convert``: it writes the conversion of the library, in both file formats."""

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
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import random_transcoder
from tests.tiny_models import TEXTS


@pytest.fixture
def options(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> list[str]:
    save_transcoder(random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=4)), tmp_path / "topk")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 6))
    text = ["--text", str(tmp_path / "text.txt"), "--context-length", "12", "--max-tokens", "200"]
    return ["convert", "--model", str(tiny_gpt2_folder), "--transcoder", str(tmp_path / "topk"), *text]


def test_both_formats_contain_the_same_thresholds(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(tmp_path / "native")]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("L0", "FVU", "CE", "->"))
    assert main([*options, "--output", str(tmp_path / "exported"), "--format", "circuit-tracer"]) == 0
    native, exported = load_transcoder(tmp_path / "native"), load_circuit_tracer(tmp_path / "exported")
    assert isinstance(native.config.nonlinearity, JumpReLUConfig)
    inputs = torch.randn(16, native.config.n_layers, native.config.d_model, generator=torch.Generator().manual_seed(0))
    for layer, exported_layer in zip(native.encode(inputs), exported.encode(inputs), strict=True):
        torch.testing.assert_close(layer.dense(), exported_layer.dense(), atol=1e-5, rtol=1e-5)


def test_unit_decoders_do_not_change_the_reconstruction(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Decoders are scaled together with the conversion to JumpReLU, or after it, in both file formats."""
    assert main([*options, "--output", str(tmp_path / "plain")]) == 0
    assert main([*options, "--unit-decoders", "--output", str(tmp_path / "at once")]) == 0
    capsys.readouterr()
    without_text = ["convert", *options[1:3], "--transcoder", str(tmp_path / "plain"), "--unit-decoders"]
    assert main([*without_text, "--output", str(tmp_path / "after")]) == 0
    assert main([*without_text, "--format", "circuit-tracer", "--output", str(tmp_path / "exported")]) == 0
    printed = capsys.readouterr().out
    plain = load_transcoder(tmp_path / "plain")
    norms = plain.folded().decoder_norms()
    assert f"decoder norms  {norms.min():.3g} to {norms.max():.3g} -> 1" in printed
    assert "L0" not in printed
    inputs = torch.randn(16, plain.config.n_layers, plain.config.d_model, generator=torch.Generator().manual_seed(0))
    for name in ("at once", "after", "exported"):
        unit = load_transcoder(tmp_path / name)
        torch.testing.assert_close(unit.decoder_norms(), torch.ones_like(norms), atol=1e-5, rtol=0)
        torch.testing.assert_close(unit(inputs).reconstruction, plain(inputs).reconstruction, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(unit.encode(inputs)[0].dense(), plain.encode(inputs)[0].dense(), atol=1e-2)


@pytest.mark.slow
def test_every_command_reads_the_layout_of_circuit_tracer(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for layout in ("native", "circuit-tracer"):
        assert main([*options, "--format", layout, "--output", str(tmp_path / layout)]) == 0
    text = [*options[1:3], *options[5:], "--graphs", "1", "--output", str(tmp_path / "compared")]
    assert main(["compare", str(tmp_path / "native"), str(tmp_path / "circuit-tracer"), *text]) == 0
    native, exported = (load_report(tmp_path / "compared" / layout) for layout in ("native", "circuit-tracer"))
    assert exported.row()["fvu"] == pytest.approx(native.row()["fvu"], rel=1e-3)
    # Folding rounds weights, so a feature very close to its threshold may become active or inactive.
    assert exported.row()["ce_replacement"] == pytest.approx(native.row()["ce_replacement"], rel=1e-3)
    assert exported.graph_completeness == pytest.approx(native.graph_completeness, rel=1e-3)
    model = [*options[1:3], "--transcoder", str(tmp_path / "circuit-tracer"), "--prompt", "one two three"]
    for command in ("generate", "attribute"):
        assert main([command, *model]) == 0
    (tmp_path / "circuit-tracer" / "config.yaml").unlink()
    assert_mistake(capsys, ["generate", *model], "circuit-tracer", "layouts")


def test_a_transcoder_with_thresholds_cannot_be_converted_again(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*options, "--output", str(tmp_path / "once")]) == 0
    again = [*options[:4], str(tmp_path / "once")]
    assert_mistake(capsys, [*again, "--output", str(tmp_path / "twice")], "native", "--to")
    text = [*again, *options[5:], "--to", "circuit-tracer"]
    assert_mistake(capsys, [*text, "--output", str(tmp_path / "twice")], "--max-tokens")
    assert not (tmp_path / "twice").exists()


def test_a_layout_is_converted_to_another_without_a_model(
    tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transcoder = random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=4), reach=1)
    save_transcoder(transcoder, tmp_path / "native")

    def convert(source: str, target: str, *options: str) -> list[str]:
        places = ["--transcoder", str(tmp_path / source), "--output", str(tmp_path / target)]
        return ["convert", "--model", str(tmp_path / "absent"), *places, *options]

    assert main(convert("native", "layers", "--from", "native", "--to", "circuit-tracer-layers")) == 0
    assert main(convert("layers", "again", "--to", "native", "--keep-nonlinearity")) == 0
    inputs = torch.randn(9, transcoder.config.n_layers, transcoder.config.d_model)
    for name in ("layers", "again"):
        found = load_transcoder(tmp_path / name)
        assert isinstance(found.config.nonlinearity, TopKConfig)
        torch.testing.assert_close(
            found(inputs).reconstruction, transcoder(inputs).reconstruction, atol=1e-4, rtol=1e-4
        )
    assert_mistake(capsys, convert("layers", "new", "--from", "native"), "circuit-tracer-layers", "native")
    assert_mistake(capsys, convert("layers", "new", "--from", "nonsense"), "nonsense")
    assert_mistake(capsys, convert("layers", "new", "--to", "gemma-scope-2"), "gemma-scope-2")
    assert_mistake(capsys, convert("layers", "new", "--to", "circuit-tracer-layers"), "circuit-tracer-layers")
    assert not (tmp_path / "new").exists()


def test_what_a_layout_cannot_hold_is_refused_before_a_model_is_loaded(
    tiny_gpt2: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_transcoder(random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=4), skip=True), tmp_path / "skip")
    save_transcoder(random_transcoder(tiny_gpt2, nonlinearity=TopKConfig(k=4)), tmp_path / "topk")

    def convert(source: str, *options: str) -> list[str]:
        places = ["--transcoder", str(tmp_path / source), "--output", str(tmp_path / "new")]
        return ["convert", "--model", str(tmp_path / "absent"), *places, *options]

    assert_mistake(capsys, convert("skip", "--to", "circuit-tracer"), "skip path", "native")
    assert_mistake(capsys, convert("topk", "--to", "circuit-tracer-layers"), "3 layers", "circuit-tracer")
    assert_mistake(capsys, convert("topk", "--unit-decoders", "--keep-nonlinearity"), "TopK")
    assert not (tmp_path / "new").exists()
