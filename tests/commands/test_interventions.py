"""``open-clt generate`` and ``open-clt intervene``: they print what the library computes with changed features."""

from __future__ import annotations

from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.language.language_model import LanguageModel
from open_clt.replacement.interventions.intervene import generate_patched
from open_clt.replacement.interventions.intervention import Intervention
from open_clt.replacement.model import ReplacementModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import random_transcoder

TEXT = "The cat sat on the mat"
FRANCE = "The capital of France is"


@pytest.fixture
def tiny(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path) -> list[str]:
    checkpoint = save_transcoder(random_transcoder(tiny_gpt2), tmp_path / "transcoder")
    return ["--model", str(tiny_gpt2_folder), "--transcoder", str(checkpoint), "--prompt", TEXT]


def test_generate_prints_both_continuations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", FRANCE, "--max-new-tokens", "3"]) == 0
    printed = capsys.readouterr().out
    assert f"original       '{FRANCE} Paris" in printed
    assert f"replacement    '{FRANCE} Paris" in printed
    assert "changed" not in printed


def test_generate_adds_a_line_for_the_model_with_changed_features(
    tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *tiny, "--max-new-tokens", "2", "--ablate", "0:*:5", "1:3:7"]) == 0
    assert f"changed        '{TEXT}" in capsys.readouterr().out


def test_generate_can_print_the_text_of_the_replacement_model_only(
    tiny: list[str], tiny_gpt2: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    replacement = ReplacementModel(tiny_gpt2, random_transcoder(tiny_gpt2))
    options = [*tiny, "--max-new-tokens", "4", "--replacement"]
    assert main(["generate", *options]) == 0
    plain = capsys.readouterr().out
    assert plain == replacement.generate(TEXT, max_new_tokens=4).text + "\n"
    assert main(["generate", *options, "--set", "1:*:7=60", "--ablate", "0:-1:5"]) == 0
    changed = capsys.readouterr().out
    interventions = [Intervention(0, -1, 5, value=0.0), Intervention(1, None, 7, value=60.0)]
    assert changed == generate_patched(replacement, TEXT, interventions, max_new_tokens=4).text + "\n"
    assert changed != plain


def test_intervene_lists_the_changes(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["intervene", *tiny, "--constrained", "--set", "1:3:7=9.5", "--scale", "2:-1:3=2", "--top", "2"]) == 0
    assert "L1/7 at 3: 0.000 -> 9.500" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["intervene"], ["--ablate", "--set", "--scale"]),
        (["intervene", "--ablate", "L1:7"], ["'L1:7'"]),
        (["intervene", "--ablate", "3:*:7"], ["layer", 3]),
        (["intervene", "--ablate", "0:*:40"], [40, 39]),
        (["intervene", "--ablate", "0:99:7"], ["position", 99]),
        (["intervene", "--set", "1:3:7"], ["'1:3:7'", "FEATURE=NUMBER"]),
        (["intervene", "--set", "1:3:7=nan"], ["'1:3:7=nan'"]),
        (["intervene", "--ablate", "1:3:7", "--top", "0"], ["top", 0]),
        (["generate", "--ablate", "0:*:40", "--replacement"], [40, 39]),
        (["generate", "--ablate", "0:*:40"], [40, 39]),
        (["generate", "--temperature", "1e-320"], ["temperature"]),
        (["generate", "--temperature", "nan"], ["temperature", "nan"]),
        (["generate", "--temperature", "-1"], ["temperature", -1]),
        (["generate", "--max-new-tokens", "0"], ["max_new_tokens", 0]),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    arguments: list[str], named: list[object], tiny: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = arguments
    assert_mistake(capsys, [command, *tiny, *options], *named)
