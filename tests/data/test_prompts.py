"""Prompts of a report come from a file, or from the contexts of the report."""

from __future__ import annotations

import os
from pathlib import Path

from open_clt.config import ReportConfig
from open_clt.data.contexts import pack_contexts
from open_clt.data.prompts import read_prompts, report_prompts
from open_clt.errors import TextError
from open_clt.language.language_model import LanguageModel
from tests.refusals import refuses
from tests.tiny_models import TEXTS


def test_prompts_are_the_beginnings_of_contexts_unless_a_file_names_others(
    tiny_gpt2: LanguageModel, tmp_path: Path
) -> None:
    contexts = pack_contexts(TEXTS * 3, tiny_gpt2, 20)
    prompts = report_prompts(ReportConfig(graphs=3), tiny_gpt2, contexts)
    for prompt, context in zip(prompts, contexts[:3], strict=True):
        assert tiny_gpt2.decode(context[1:]).startswith(prompt)
        assert prompt == tiny_gpt2.decode(context[1:13])
    assert report_prompts(ReportConfig(graphs=0), tiny_gpt2, contexts) == []
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffone two\n\nthree four\nfive\n", encoding="utf-8")  # a byte-order mark comes first
    assert read_prompts(file) == ["one two", "three four", "five"]
    assert report_prompts(ReportConfig(prompts=str(file), graphs=2), tiny_gpt2, contexts) == ["one two", "three four"]


def test_a_file_without_prompts_or_with_too_long_a_prompt_is_refused(tiny_gpt2: LanguageModel, tmp_path: Path) -> None:
    contexts = pack_contexts(TEXTS * 3, tiny_gpt2, 20)
    file = tmp_path / "prompts.txt"
    for content, named in ((" \n", file), ("one two " * 64, 64)):
        file.write_text(content)
        with refuses(TextError, named):
            report_prompts(ReportConfig(prompts=str(file)), tiny_gpt2, contexts)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("nowhere.txt", "fifo", "binary"):
        with refuses(TextError, tmp_path / name):
            read_prompts(tmp_path / name)
