"""The command ``open-clt harvest``: write the activations of a language model on a text to the disk.

The same command goes on with a dataset that was stopped, at any moment and for any reason. Several processes share the
work: ``torchrun --nproc-per-node 8 -m open_clt harvest ...`` writes the same files as one process.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from open_clt.commands.held_out import add_context_option, add_source_options
from open_clt.commands.options import DEVICE_HELP, MODEL_HELP, AddParser, add_command, integer, seed
from open_clt.commands.upload import add_token_option
from open_clt.config import CrossLayerConfig
from open_clt.errors import ConfigError

if TYPE_CHECKING:
    from open_clt.data.dataset.manifest import Harvested
    from open_clt.data.dataset.unfinished import UnfinishedDataset
    from open_clt.embedded.held_out import HeldOutText
    from open_clt.language.language_model import LanguageModel
    from open_clt.processes import Processes

_TOKENS, _SHARD_TOKENS = 1_000_000, 16_384
_TYPES = ("bfloat16", "float16", "float32", "int8")
_TEXT = (
    "Text: a text, .jsonl or .parquet file, or a data set on the Hugging Face hub (default: generated sentences, for "
    "the embedded model only)."
)


def add_to(add_parser: AddParser) -> None:
    """Add the command and its options."""
    parser = add_command(add_parser, "harvest", "Write activations of a language model to the disk, to train on them.")
    option = parser.add_argument
    option("--model", default="embedded", help=f"{MODEL_HELP} (default: embedded).")
    option("--device", default="cpu", help=f"{DEVICE_HELP} (default: cpu).")
    add_source_options(option, text=_TEXT)
    add_context_option(option)
    option(
        "--tokens",
        type=integer(least=1, most=2**48),
        default=_TOKENS,
        help=f"Number of tokens to harvest; there are fewer if the text ends before (default: {_TOKENS}).",
    )
    option(
        "--output",
        "-o",
        type=Path,
        required=True,
        metavar="DIR",
        help="Directory of the dataset; a dataset that was stopped there is finished.",
    )
    option(
        "--dtype",
        choices=_TYPES,
        default=_TYPES[0],
        help="Type of the stored activations; int8 has one scale for each token and layer (default: bfloat16).",
    )
    hooks = (CrossLayerConfig.input_hook, CrossLayerConfig.target_hook)
    option(
        "--hooks",
        nargs=2,
        default=hooks,
        metavar=("INPUT", "TARGET"),
        help=f"Hooks of inputs and targets in every layer (default: {' '.join(hooks)}).",
    )
    option(
        "--shard-tokens",
        type=integer(least=1),
        default=_SHARD_TOKENS,
        help="Number of tokens in a file; the tokens of four files are mixed with one another, and fit in memory "
        f"(default: {_SHARD_TOKENS}).",
    )
    option("--seed", type=seed, default=0, help="Seed of the order of the tokens, and of generated sentences.")
    option(
        "--upload",
        metavar="URL",
        help="Address of a server of datasets, such as http://lab:8042, to which the dataset is uploaded once it is "
        "complete, under the name of its directory, or under that of http://lab:8042/datasets/NAME.",
    )
    add_token_option(option)
    parser.set_defaults(command=run_and_upload)


def run_and_upload(arguments: argparse.Namespace) -> int:
    """Harvest and, if the options name a server, upload the dataset; the server is asked first whether it takes it."""
    if arguments.upload is None:
        if arguments.token_file is not None:
            raise ConfigError("--token-file is given, but it is used with --upload only; give both or neither.")
        return run(arguments)
    from open_clt.commands.upload import send
    from open_clt.data.server.access import own_token
    from open_clt.data.server.client import check_upload, target_of

    target, token = target_of(arguments.upload, arguments.output), own_token(arguments.token_file)
    is_first = os.environ.get("RANK", "0") == "0"  # of several processes, which torchrun has started
    if is_first:
        check_upload(target, token)
    status = run(arguments)
    if is_first:
        send(arguments.output, target, token)
    return status


def run(arguments: argparse.Namespace) -> int:
    """Check the output directory, say how large the dataset will be, and harvest."""
    from open_clt.data.dataset.manifest import DatasetManifest
    from open_clt.data.dataset.unfinished import begun_dataset, check_place
    from open_clt.language.language_model import load_language_model
    from open_clt.lean_imports import lean_imports
    from open_clt.processes import joined_processes

    check_place(arguments.output)
    with joined_processes() as processes:
        with lean_imports():
            model = load_language_model(arguments.model, device=_own_device(arguments.device, processes))
        harvested = _settings(arguments, model)
        begun = begun_dataset(arguments.output, harvested, processes)
        if isinstance(begun, DatasetManifest):
            if processes.is_first:
                print(f"{arguments.output} holds the whole dataset already: {begun.tokens:,} tokens")
            return 0
        next(iter(_text(arguments).texts(model, sentences=1)), None)  # a text that cannot be read is found first
        if processes.is_first:
            _say_size(begun, arguments.output)
        _harvest(arguments, model, begun)
    return 0


def _own_device(name: str, processes: Processes) -> str:
    """The device of this process: of several processes on a machine, each takes a GPU of its own."""
    from open_clt.device import check_device

    device = check_device(name)
    is_shared = processes.count > 1 and str(device) == "cuda"
    return f"cuda:{processes.local_rank}" if is_shared else str(device)


def _text(arguments: argparse.Namespace) -> HeldOutText:
    """The text that the options name; it is chosen as commands choose the text that they measure on."""
    from open_clt.embedded.held_out import HeldOutText

    names = ("column", "split", "context_length", "seed")
    return HeldOutText(source=arguments.text, **{name: getattr(arguments, name) for name in names})


def _settings(arguments: argparse.Namespace, model: LanguageModel) -> Harvested:
    from open_clt.data.dataset.from_model import harvest_settings
    from open_clt.data.dataset.manifest import HarvestedText

    text = HarvestedText(
        source=arguments.text or f"generated sentences, seed {arguments.seed}",
        column=arguments.column,
        split=arguments.split,
        context_length=min(_text(arguments).length, model.context_length),
        from_start=arguments.text is None,
    )
    input_hook, target_hook = arguments.hooks
    return harvest_settings(
        model,
        text,
        input_hook=input_hook,
        target_hook=target_hook,
        dtype=arguments.dtype,
        tokens=arguments.tokens,
        shard_tokens=arguments.shard_tokens,
        seed=arguments.seed,
    )


def _say_size(begun: UnfinishedDataset, output: Path) -> None:
    """Print how many bytes will be written, and refuse to fill the disk."""
    from open_clt.files import check_disk, free_bytes
    from open_clt.transcoders.formats.info import readable

    harvested = begun.harvested
    needed = begun.bytes_to_write
    check_disk(output, needed)
    if begun.tokens:
        print(f"{output} holds {begun.tokens:,} of {harvested.tokens:,} tokens; the harvest goes on")
    print(
        f"{readable(needed)} will be written: {needed // harvested.bytes_per_token:,} tokens of "
        f"{harvested.bytes_per_token:,} bytes; {readable(free_bytes(output))} are free",
        flush=True,
    )


def _harvest(arguments: argparse.Namespace, model: LanguageModel, begun: UnfinishedDataset) -> None:
    """Write the dataset with a progress bar, and print where it is; of several processes, the first one does both."""
    from open_clt.commands.token_progress import token_progress
    from open_clt.data.dataset.from_model import store_of
    from open_clt.data.dataset.writer import write_dataset
    from open_clt.program import Stopped

    harvested, processes = begun.harvested, begun.processes
    texts = partial(_text(arguments).texts, model, sentences=1000 + arguments.tokens // 10)
    store = store_of(model, texts, harvested)
    with token_progress("harvesting", harvested.bytes_per_token, shown=processes.is_first) as show:
        try:
            on_tokens = partial(show, total=harvested.tokens)
            manifest = write_dataset(store, harvested, arguments.output, processes=processes, on_tokens=on_tokens)
        except Stopped as stopped:
            raise Stopped(stopped.number, "The same command goes on with the harvest.") from None
    if processes.is_first:
        print(f"written: {arguments.output} ({manifest.tokens:,} tokens in {len(manifest.shards):,} files)")
