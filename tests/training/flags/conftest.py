"""Settings of a small training run, for the tests of ``open-clt train``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_clt.language.language_model import LanguageModel
from tests.tiny_models import TEXTS
from tests.training.flags.small_run import Settings, use_language_model


@pytest.fixture
def settings(tiny_gpt2: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A training run of eight small steps, which writes to ``tmp_path / "out"``; ``tiny_gpt2`` reads its texts."""
    use_language_model(tiny_gpt2, monkeypatch)
    rows = [{"text": text, "other": text.upper()} for text in TEXTS * 30]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return {
        "transcoder": {"n_features": 40, "nonlinearity": {"kind": "topk", "k": 4}},
        "training": {"learning_rate": 0.01},
        "data": {
            "language_model": "tiny",
            "context_length": 16,
            "batch_size": 32,
            "texts": {"source": str(tmp_path / "texts.jsonl"), "held_out_contexts": 4},
        },
        "trainer": {"max_steps": 8, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
        "output": str(tmp_path / "out"),
    }
