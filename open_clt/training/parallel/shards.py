"""A transcoder cut into slices of its features, and put together again.

Slice ``i`` of ``n`` holds features ``i, i + n, i + 2n, ...`` of every layer, and a copy of all that is no feature's:
decoder biases, skip paths, statistics. It is itself a transcoder of ``n_features / n`` features. Taking every n-th
feature, not a block of them, gives each slice its part of every Matryoshka prefix, and each process equal work.

    draw_shard          config, seed -> the slice of one process, before training
    shard_features      whole transcoder -> the slice of one process
    gather_features     the slices of all processes -> the whole, on the first of them
    merge_checkpoint    the checkpoint that several processes left -> the whole, in one
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from open_clt.config import CrossLayerConfig, TranscoderConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.make import OwnArchitecture, make_transcoder, own_architecture
from open_clt.transcoders.slices import Part, Peers
from open_clt.transcoders.transcoder import Transcoder, share_with

_PREFIX = "transcoder."


def shard_config(config: TranscoderConfig, shards: int) -> CrossLayerConfig:
    """The config of one of ``shards`` slices; raises ConfigError if the features cannot be cut that way."""
    if not isinstance(config, CrossLayerConfig):
        raise ConfigError(f"Features of a {config.kind!r} transcoder cannot be sharded; split the batch only.")
    for name, sizes in (("n_features", (config.n_features,)), ("prefixes", config.prefixes)):
        if any(size % shards for size in sizes):
            raise ConfigError(f"{name} is {getattr(config, name)}; sharded over {shards}, it must divide by {shards}.")
    width = config.n_features // shards
    for k in (getattr(config.nonlinearity, name, None) for name in ("k", "initial_k")):
        if k is not None and k > width:
            raise ConfigError(f"k is {k}, but each of {shards} shards has {width} features; use fewer shards.")
    return dataclasses.replace(config, n_features=width, prefixes=tuple(size // shards for size in config.prefixes))


def whole_config(config: CrossLayerConfig, shards: int) -> CrossLayerConfig:
    """The config of the transcoder that ``shards`` slices of this config make up."""
    prefixes = tuple(size * shards for size in config.prefixes)
    return dataclasses.replace(config, n_features=config.n_features * shards, prefixes=prefixes)


def is_copied(name: str) -> bool:
    """Whether a parameter or buffer of a transcoder is no feature's, so that every slice has a copy of it."""
    return name.startswith(("b_dec", "W_skip", "standardisation."))


def shard_features(transcoder: Transcoder, peers: Peers) -> Transcoder:
    """The slice of a transcoder's features that this process holds; its peers are known to it from then on.

    Every process calls it with the same transcoder, or with its slice of it (``draw_shard``). Raises ConfigError for
    classes of a user's own that hold tensors of which nobody knows whether they are features'.
    """
    part = Part(peers.shard, peers.shards)
    if transcoder.part != part:
        local = _empty(shard_config(transcoder.config, peers.shards), own_architecture(transcoder))
        local.part = part
        local = local.to(transcoder.device, transcoder.dtype).train(transcoder.training)
        whole, empty = transcoder.state_dict(), local.state_dict()
        local.load_state_dict({name: _slice(whole[name], empty[name].shape, peers) for name in empty})
        transcoder = local
    share_with(transcoder, peers)
    return transcoder


def _empty(config: CrossLayerConfig, own: OwnArchitecture | None) -> Transcoder:
    """A transcoder whose tensors are about to come."""
    if own is None:
        return CrossLayerTranscoder(config)
    made = make_transcoder(config, own=own)
    with torch.device("meta"):
        known = CrossLayerTranscoder(config).state_dict()
    if foreign := made.state_dict().keys() - known.keys():
        raise ConfigError(
            f"Features of a {own.class_path} cannot be sharded, since nobody knows how to cut its "
            f"{', '.join(sorted(foreign))}; split the batch only (trainer.strategy ddp)."
        )
    return made


def draw_shard(config: TranscoderConfig, part: Part, *, seed: int) -> CrossLayerTranscoder:
    """A slice of an untrained transcoder, as ``seed`` has it however many slices there are; never holds the whole."""
    return CrossLayerTranscoder(shard_config(config, part.shards), seed=seed, part=part)


def gather_features(transcoder: Transcoder) -> Transcoder | None:
    """The whole transcoder, on the CPU of the process with the first slice; None on the others. All must call it."""
    if transcoder.peers.shards == 1:
        return transcoder
    parts = {name: transcoder.peers.gather(tensor) for name, tensor in transcoder.state_dict().items()}
    complete = {name: tensors for name, tensors in parts.items() if tensors is not None}
    assert isinstance(transcoder.config, CrossLayerConfig)
    return _merged(transcoder.config, own_architecture(transcoder), complete) if complete else None


def shard_path(checkpoint: str | Path, shard: int, shards: int) -> Path:
    """Where in the directory of a checkpoint one of its slices is."""
    return Path(checkpoint) / f"shard_{shard}_of_{shards}"


def merge_checkpoint(checkpoint: str | Path) -> Transcoder:
    """The whole transcoder of a training's sharded checkpoint; ``folded()`` and ``save_transcoder`` do the rest.

    Raises CheckpointError if slices are missing, or of different steps.
    """
    first = sorted(Path(checkpoint).glob("shard_0_of_*"))
    if len(first) != 1:
        raise CheckpointError(f"{checkpoint} holds {len(first)} sharded checkpoints; give a directory with one.")
    shards = int(first[0].name.rpartition("_")[2])
    slices = [SafetensorsCheckpointIO().load_checkpoint(shard_path(checkpoint, i, shards)) for i in range(shards)]
    if len({part["global_step"] for part in slices}) > 1:
        raise CheckpointError(f"The slices in {checkpoint} are of different steps: saving them was interrupted.")
    config = from_dict(CrossLayerConfig, slices[0]["settings"]["transcoder"])
    names = [name for name in slices[0]["state_dict"] if name.startswith(_PREFIX)]
    parts = {name.removeprefix(_PREFIX): [s["state_dict"][name] for s in slices] for name in names}
    made_as = slices[0].get("architecture")
    return _merged(config, made_as and OwnArchitecture(**made_as), parts)


def _merged(config: CrossLayerConfig, own: OwnArchitecture | None, parts: Mapping[str, Sequence[Tensor]]) -> Transcoder:
    shards = len(next(iter(parts.values())))
    with torch.device("meta") if own is None else nullcontext():  # a class of one's own may compute as it is made
        whole = _empty(whole_config(config, shards), own)
    state = {name: _joined(parts[name], tensor.shape) for name, tensor in whole.state_dict().items()}
    whole.load_state_dict(state, assign=True)
    return whole.eval()


def _slice(whole: Tensor, shape: Sequence[int], peers: Peers) -> Tensor:
    """This process's slice of a tensor, along the axis where ``shape`` is shorter; all of it if none is."""
    for axis, (size, part) in enumerate(zip(whole.shape, shape, strict=True)):
        if size != part:
            return whole.unflatten(axis, (part, peers.shards)).select(axis + 1, peers.shard)
    return whole


def _joined(parts: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Slices put together along the axis where ``shape`` is longer; the first of equal copies if none is."""
    for axis, (size, part) in enumerate(zip(shape, parts[0].shape, strict=True)):
        if size != part:
            return torch.stack(list(parts), dim=axis + 1).flatten(axis, axis + 1)
    return parts[0]
