"""Fixtures that the attribution tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from open_clt.language.language_model import LanguageModel


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Use one thread, which multiplies small matrices faster than several threads that wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def models(tiny_gpt2: LanguageModel, tiny_llama: LanguageModel) -> dict[str, LanguageModel]:
    return {"gpt2": tiny_gpt2, "llama": tiny_llama}
