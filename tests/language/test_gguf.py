"""A .gguf file gives the same model as the directory that it was written from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from open_clt.language.gguf import complete_config
from open_clt.language.language_model import LanguageModel, load_language_model
from tests.gguf_files import write_gguf
from tests.model_families import own_logits
from tests.tiny_models import write_gemma3, write_llama

pytest.importorskip("gguf")


def test_a_gguf_file_gives_the_model_that_it_was_written_from(
    tiny_llama: LanguageModel, tiny_llama_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = load_language_model(write_gguf(tmp_path / "tiny.gguf", tiny_llama_folder))
    assert capfd.readouterr() == ("", "")
    tokens = tiny_llama.tokenize("The cat sat on the mat")
    assert model.tokenize("The cat sat on the mat").tolist() == tokens.tolist()
    assert (model.bos_token_id, model.eos_token_id, model.context_length) == (0, 0, 64)
    torch.testing.assert_close(model.logits(tokens[None]), tiny_llama.logits(tokens[None]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rotary", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 8.0}])
def test_a_gguf_file_of_gemma_3_gives_the_model_of_its_directory(rotary: dict[str, Any], tmp_path: Path) -> None:
    """The file names no architecture, and transformers does not read how it scales attention and positions."""
    positions = {"full_attention": rotary | {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    folder = write_gemma3(tmp_path / "model", rope_parameters=positions)
    model = load_language_model(write_gguf(tmp_path / "tiny.gguf", folder))
    tokens = model.tokenize("The cat sat on the mat, and the dog")[None]
    torch.testing.assert_close(model.logits(tokens), own_logits(folder, tokens), atol=1e-4, rtol=1e-5)


def test_attention_of_the_largest_gemma_3_is_scaled_by_its_width(tmp_path: Path) -> None:
    from transformers import Gemma3TextConfig

    sizes = {"num_hidden_layers": 1, "hidden_size": 32, "head_dim": 4}
    file = write_gguf(tmp_path / "tiny.gguf", write_gemma3(tmp_path / "model", **sizes))
    scales: list[int] = []
    for layers in (1, 62):
        config = Gemma3TextConfig(**{**sizes, "num_hidden_layers": layers, "num_attention_heads": 4})
        complete_config(config, file)
        scales.append(config.query_pre_attn_scalar)
    assert scales == [4, 8]


def test_a_gguf_file_whose_rotary_positions_transformers_does_not_read_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rotary = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}
    file = write_gguf(tmp_path / "tiny.gguf", write_llama(tmp_path / "model", rope_parameters=rotary))
    load_language_model(file)
    assert str(file) in caplog.text
