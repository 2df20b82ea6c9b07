"""A language model loads by each kind of name, and a name without a model is one clear error within seconds."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled
from safetensors.torch import load_file, save_file

from open_clt import memory
from open_clt.errors import HubUnreachableError, LanguageModelError, ResourceError
from open_clt.hub import reachable
from open_clt.language import model_source
from open_clt.language.language_model import LanguageModel, load_language_model
from open_clt.language.loading import _no_loading_bar
from open_clt.language.model_source import find_model
from tests.refusals import refuses
from tests.tiny_models import write_tokenizer


@pytest.fixture
def copy(tiny_gpt2_folder: Path, tmp_path: Path) -> Path:
    """A copy of the directory of a model, which a test damages."""
    return shutil.copytree(tiny_gpt2_folder, tmp_path / "model")


def change_config(folder: Path, **settings: object) -> None:
    """Change settings in the ``config.json`` of a model."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def fails(name: str | Path, *named: object, kind: type[LanguageModelError] = LanguageModelError) -> None:
    """Check that loading raises an error of exactly this kind that names all these things."""
    with refuses(kind, *named) as error:
        load_language_model(name)
    assert error.type is kind


@pytest.mark.parametrize("name", ["no/such/name", "not a name", "-1", "a--b", ".", "/no/such/folder", "a\nb", "../x"])
def test_a_name_that_cannot_be_a_model_is_refused(name: str) -> None:
    fails(name)


@pytest.mark.parametrize("name", ["~nobody-has-this-name/gpt", "a" * 5000, "a" * 300 + ".gguf"])
def test_a_name_that_no_path_can_have_is_refused(name: str) -> None:
    with refuses(LanguageModelError):
        load_language_model(name)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    fails(tmp_path, tmp_path, "config.json")
    (tmp_path / "some.gguf").touch()
    fails(tmp_path, "some.gguf")


def test_a_directory_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    fails(copy, copy)


def test_a_directory_with_an_adapter_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere/else", "peft_type": "LORA"}')
    fails(copy, copy, "adapter")


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq", "fp8"])
def test_a_model_with_quantised_weights_is_refused_before_they_are_read(method: str, copy: Path) -> None:
    change_config(copy, quantization_config={"quant_method": method, "load_in_4bit": True})
    (copy / "model.safetensors").write_bytes(b"not weights")
    fails(copy, copy, method)


def test_weights_of_other_shapes_than_the_config_states_are_named(copy: Path) -> None:
    change_config(copy, n_inner=7)
    fails(copy, "transformer.h.0.mlp.c_fc.bias", 7)


@pytest.mark.timeout(20)  # building so many layers would not end
def test_a_config_that_states_too_many_layers_is_refused(copy: Path) -> None:
    change_config(copy, n_layer=10**9)
    fails(copy, copy, 10**9)


@pytest.mark.parametrize(
    ("settings", "kind"), [({"auto_map": 3}, "TypeError"), ({"activation_function": "x"}, "KeyError")]
)
def test_an_error_that_is_not_meant_for_users_is_named_with_its_library(
    settings: dict[str, object], kind: str, copy: Path
) -> None:
    change_config(copy, **settings)
    fails(copy, "transformers", kind)


def test_a_directory_with_truncated_weights_is_refused(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    fails(copy, copy)


def test_a_directory_that_lacks_some_weights_is_refused(copy: Path) -> None:
    """transformers would give random values to the missing weights."""
    tensors = load_file(copy / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    fails(copy, "transformer.h.1.mlp.c_fc.weight")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/dev/zero", "fifo", "zero", 3, ["x"]])
def test_an_index_of_weights_that_names_other_files_is_refused(name: object, copy: Path) -> None:
    (copy / "model.safetensors").rename(copy.parent / "secret.safetensors")
    (copy / "part.safetensors").touch()
    os.mkfifo(copy / "fifo")
    (copy / "zero").symlink_to("/dev/zero")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    fails(copy, copy)


@pytest.mark.parametrize("content", ["[]", '{"weight_map": 3}', "{", "[" * 100_000])
def test_a_damaged_index_of_weights_is_refused(content: str, copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(content)
    fails(copy, copy / "model.safetensors.index.json")


@pytest.mark.slow
def test_a_model_whose_weights_are_divided_into_linked_files_is_loaded(copy: Path, tiny_gpt2: LanguageModel) -> None:
    """In the cache of the Hugging Face hub, a model's files are links to files outside its directory."""
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    names = sorted(weights)
    weight_map = {name: f"model-{1 + (i % 2)}.safetensors" for i, name in enumerate(names)}
    for part in set(weight_map.values()):
        blob = copy.parent / f"blob-{part}"
        save_file({name: weights[name] for name in names if weight_map[name] == part}, blob, {"format": "pt"})
        (copy / part).symlink_to(blob)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    tokens = tiny_gpt2.tokenize("The cat")[None]
    assert torch.equal(load_language_model(copy).logits(tokens), tiny_gpt2.logits(tokens))


@pytest.mark.parametrize("part", ["model", "tokenizer"])
def test_a_model_that_brings_code_is_refused_and_its_code_does_not_run(part: str, copy: Path) -> None:
    (copy / "stranger.py").write_text(f"open({str(copy.parent / 'ran')!r}, 'w').close()\n")
    path = copy / ("config.json" if part == "model" else "tokenizer_config.json")
    settings = json.loads(path.read_text())
    if part == "model":
        settings |= {
            "model_type": "stranger",
            "auto_map": {"AutoConfig": "stranger.C", "AutoModelForCausalLM": "stranger.M"},
        }
    else:
        settings |= {"tokenizer_class": "Stranger", "auto_map": {"AutoTokenizer": ["stranger.T", "stranger.T"]}}
        (copy / "tokenizer.json").unlink()
    path.write_text(json.dumps(settings))
    fails(copy, copy, *(["code"] if part == "model" else []))  # transformers tries another tokenizer first
    assert not (copy.parent / "ran").exists()


def test_a_directory_without_a_tokenizer_is_refused(copy: Path) -> None:
    """transformers would make a tokenizer without a vocabulary."""
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    fails(copy, copy)


def test_a_damaged_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").write_text("{")
    fails(copy, copy)


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    fails(tmp_path / "absent.gguf", "absent.gguf")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF and no more")
    (tmp_path / "other.gguf").write_bytes(b"something else")
    (tmp_path / "notes.txt").touch()
    fails(tmp_path / "damaged.gguf", "damaged.gguf")
    fails(tmp_path / "other.gguf", "other.gguf")
    fails(tmp_path / "notes.txt", "notes.txt", ".gguf")


def test_loading_hides_the_bars_of_weights_and_shows_those_of_downloads() -> None:
    from transformers.utils.logging import is_progress_bar_enabled

    states = is_progress_bar_enabled(), are_progress_bars_disabled()
    with _no_loading_bar():
        assert (is_progress_bar_enabled(), are_progress_bars_disabled()) == (False, states[1])
    assert (is_progress_bar_enabled(), are_progress_bars_disabled()) == states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_does_not_fit_into_memory_is_refused_before_its_weights_are_read(
    dtype: torch.dtype, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").write_bytes(b"not weights")
    needed = sum(weight.numel() for weight in weights.values()) * dtype.itemsize
    monkeypatch.setattr(memory, "available_memory", lambda: needed - 1)
    with refuses(ResourceError, copy, f"{needed:,}", "bfloat16"):
        load_language_model(copy, dtype=dtype)
    monkeypatch.setattr(memory, "available_memory", lambda: needed)
    with refuses(LanguageModelError, copy):
        load_language_model(copy, dtype=dtype)


@pytest.mark.parametrize("kind", ["Mamba", "Bert"])
def test_a_model_that_cannot_have_a_transcoder_is_refused(kind: str, tmp_path: Path) -> None:
    """Mamba has no MLP blocks, and the tokens of Bert attend to later tokens."""
    import transformers

    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    head = {"Mamba": "MambaForCausalLM", "Bert": "BertLMHeadModel"}[kind]
    getattr(transformers, head)(config).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with refuses(LanguageModelError, tmp_path):
        load_language_model(tmp_path)


def test_a_part_that_transformer_lens_does_not_expect_is_named(tmp_path: Path) -> None:
    """TransformerLens divides the biases of GPT-NeoX's attention by an assertion without a message."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = GPTNeoXConfig(vocab_size=300, attention_bias=False, **sizes)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    fails(write_tokenizer(tmp_path), tmp_path, "transformer_lens", "split_qkv_matrix", "AssertionError")


def test_parallel_blocks_have_no_stream_between_attention_and_mlp(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, **sizes)).save_pretrained(tmp_path)
    model = load_language_model(write_tokenizer(tmp_path))
    tokens = model.tokenize("The cat")[None]
    with refuses(LanguageModelError, "blocks.0.hook_resid_mid"):
        model.capture(tokens, "hook_resid_mid")
    assert model.capture(tokens, "ln2.hook_normalized").inputs.shape == (1, tokens.shape[1], 1, 32)


def test_the_embedded_model_loads() -> None:
    model = load_language_model("embedded")
    assert model.name == "embedded"
    assert torch.isfinite(model.logits(model.tokenize("The capital of France is")[None])).all()


def test_a_missing_embedded_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_source.resources, "files", lambda _: tmp_path)
    fails("embedded", tmp_path / "embedded" / "model")


def test_a_name_on_the_hub_is_refused_offline() -> None:
    fails("gpt2", "gpt2", "HF_HUB_OFFLINE", kind=HubUnreachableError)


def test_a_model_in_the_cache_needs_no_hub(
    tiny_gpt2: LanguageModel, tiny_gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--somebody--tiny"
    shutil.copytree(tiny_gpt2_folder, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = load_language_model("somebody/tiny")
    assert model.name == "somebody/tiny"
    tokens = model.tokenize("The cat")[None]
    assert torch.equal(model.logits(tokens), tiny_gpt2.logits(tokens))
    (repository / "snapshots" / "abc" / "model.safetensors").unlink()
    fails("somebody/tiny", "somebody/tiny", kind=HubUnreachableError)


class _Hub(http.server.BaseHTTPRequestHandler):
    """A hub that has the model ``known`` and an adapter, which are their config alone, and fails for another name."""

    def do_HEAD(self) -> None:
        name, file = self.path.split("/")[1], self.path.split("/")[-1]
        has_file = file == "config.json" or (name, file) == ("adapted", "adapter_config.json")
        status = {"known": 200, "adapted": 200 if has_file else 404, "broken": 503}.get(name, 404)
        self.send_response(status)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", "2" if self.command == "GET" and status == 200 else "0")
        self.end_headers()
        if self.command == "GET" and status == 200:
            self.wfile.write(b"{}")

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield
        server.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_a_name_on_a_hub_that_answers_is_left_to_the_hub() -> None:
    for name in ("known", "unknown"):
        source = find_model(name)
        assert (source.location, source.local) == (name, False)
    with refuses(HubUnreachableError, "broken"):
        find_model("broken")


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_an_adapter_on_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace("https://huggingface.co", constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    fails("adapted", "adapted", "adapter")


@pytest.mark.timeout(20)  # a library that waited for the hub would take longer
@pytest.mark.parametrize("listening", [False, True], ids=["refuses connections", "never answers"])
def test_a_hub_that_does_not_answer_is_not_waited_for(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reachable, "HUB_TIMEOUT", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if listening:
            server.listen()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with refuses(HubUnreachableError, "embedded"):
            load_language_model("gpt2")
