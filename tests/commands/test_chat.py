"""``--chat``: the commands read the tokens of the chat template, and name what is not a chat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from open_clt.cli import main
from open_clt.graphs.graph import AttributionGraph
from open_clt.language.language_model import LanguageModel
from open_clt.transcoders.formats.native import save_transcoder
from tests.commands.mistakes import assert_mistake
from tests.random_transcoders import random_transcoder
from tests.tiny_models import CHAT_TEMPLATE, END_OF_TEXT

MESSAGES = json.dumps([{"role": "system", "content": "Sit"}, {"role": "user", "content": "The cat"}])
WRITTEN = "<system> Sit\n<user> The cat\n<assistant>"
COMMANDS = {
    "attribute": ["--max-feature-nodes", "2"],
    "generate": ["--max-new-tokens", "1"],
    "intervene": ["--ablate", "1:-1:2"],
}


@pytest.fixture(scope="module")
def chatting(tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name a language model with a chat template, and its transcoder."""
    folder = tmp_path_factory.mktemp("chatting")
    shutil.copytree(tiny_gpt2_folder, folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    checkpoint = save_transcoder(random_transcoder(tiny_gpt2), folder / "transcoder")
    return ["--model", str(folder / "model"), "--transcoder", str(checkpoint)]


def test_a_graph_has_the_tokens_of_the_template(chatting: list[str], tmp_path: Path) -> None:
    options = [*chatting, *COMMANDS["attribute"], "--no-faithfulness", "--output", str(tmp_path)]
    assert main(["attribute", *options, "--prompt", MESSAGES, "--chat"]) == 0
    info = AttributionGraph.load(tmp_path).info
    assert "".join(info.token_strings) == info.prompt == END_OF_TEXT + WRITTEN


def test_generate_continues_the_text_of_the_template(chatting: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    options = [*chatting, *COMMANDS["generate"], "--prompt", MESSAGES, "--chat"]
    assert main(["generate", *options, "--ablate", "1:-1:2"]) == 0
    printed = capsys.readouterr().out
    for line in ("original      ", "replacement   ", "changed       "):
        assert f"{line} {WRITTEN!r}"[:-1] in printed
    assert main(["generate", *options, "--replacement"]) == 0
    assert capsys.readouterr().out.startswith(WRITTEN)


def test_intervene_counts_positions_in_the_text_of_the_template(
    chatting: list[str], tiny_gpt2: LanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    last = len(tiny_gpt2.tokenize(WRITTEN)) - 1
    assert main(["intervene", *chatting, "--prompt", MESSAGES, "--chat", "--set", "1:-1:2=9.5"]) == 0
    assert f"L1/2 at {last}: " in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ('[{"role": "user", "content": "Hi"', ["JSON"]),
        ('[{"role": "human", "content": "Hi"}]', ["human", "user", "assistant"]),
        ('[{"role": "tool", "content": "Hi"}]', ["no tools"]),
        ('[{"role": "user", "text": "Hi"}]', ["content"]),
    ],
)
def test_what_is_not_a_chat_is_one_line(
    command: str, prompt: str, named: list[str], chatting: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mistake(capsys, [command, *chatting, *COMMANDS[command], "--chat", "--prompt", prompt], *named)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_model_without_a_chat_template_is_one_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert_mistake(capsys, [command, *COMMANDS[command], "--chat", "--prompt", "Hi"], "embedded", "chat template")
