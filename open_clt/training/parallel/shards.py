"""Slices of a transcoder's features, one for each process that trains: how they are cut, gathered and merged.

Slice ``i`` of ``n`` holds features ``i, i + n, i + 2n, ...`` of every layer, and a copy of the tensors that do not
belong to features: decoder biases, skip paths, statistics. A slice is itself a transcoder with ``n_features / n``
features. It takes every n-th feature in place of a contiguous block, so that each slice has its part of every
Matryoshka prefix and all processes have equal work.

    draw_shard          config, seed -> the slice of one process, before training
    shard_features      whole transcoder -> the slice of one process
    gather_features     the slices of all processes -> the whole transcoder, on the first process
    merge_checkpoint    a checkpoint of several processes -> the whole transcoder
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from open_clt.config import CrossLayerConfig, TranscoderConfig
from open_clt.config.json import from_dict
from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.checkpoint_io import SafetensorsCheckpointIO
from open_clt.transcoders.cross_layer import CrossLayerTranscoder
from open_clt.transcoders.make import OwnArchitecture, OwnCode, make_transcoder, own_architecture
from open_clt.transcoders.slices import Part, Peers
from open_clt.transcoders.transcoder import Transcoder, share_with

_PREFIX = "transcoder."


def shard_config(config: TranscoderConfig, shards: int) -> CrossLayerConfig:
    """The config of one of ``shards`` slices; raises ConfigError if the features cannot be sharded over that many."""
    if not isinstance(config, CrossLayerConfig):
        raise ConfigError(
            f"The features of a transcoder of kind {config.kind!r} cannot be sharded; use trainer.strategy ddp, which "
            "splits batches."
        )
    for name, sizes in (("n_features", (config.n_features,)), ("prefixes", config.prefixes)):
        if any(size % shards for size in sizes):
            value = getattr(config, name)
            raise ConfigError(f"{name} is {value}; with {shards} shards, it must be divisible by {shards}.")
    n_features = config.n_features // shards
    for name in ("k", "initial_k"):
        k = getattr(config.nonlinearity, name, None)
        if k is not None and k > n_features:
            raise ConfigError(f"{name} is {k}, but each of {shards} shards has {n_features} features; lower {name}.")
    prefixes = tuple(size // shards for size in config.prefixes)
    return dataclasses.replace(config, n_features=n_features, prefixes=prefixes)


def whole_config(config: CrossLayerConfig, shards: int) -> CrossLayerConfig:
    """The config of the whole transcoder, given the config of each of its ``shards`` slices."""
    prefixes = tuple(size * shards for size in config.prefixes)
    return dataclasses.replace(config, n_features=config.n_features * shards, prefixes=prefixes)


def is_copied(name: str) -> bool:
    """Whether a parameter or buffer of a transcoder does not belong to features, so that every slice has a copy."""
    return name.startswith(("b_dec", "W_skip", "standardisation."))


def shard_features(transcoder: Transcoder, peers: Peers) -> Transcoder:
    """This process's slice of a transcoder's features, connected to the slices of its peers.

    Every process calls it with the same whole transcoder, or with its own slice (from ``draw_shard``). Raises
    ConfigError for a user's own class with additional tensors, which cannot be sharded.
    """
    part = Part(peers.shard, peers.shards)
    if transcoder.part != part:
        local = _empty(shard_config(transcoder.config, peers.shards), own_architecture(transcoder))
        local.part = part
        local = local.to(transcoder.device, transcoder.dtype).train(transcoder.training)
        tensors, local_tensors = transcoder.state_dict(), local.state_dict()
        local.load_state_dict({name: _slice(tensors[name], local_tensors[name].shape, peers) for name in local_tensors})
        transcoder = local
    share_with(transcoder, peers)
    return transcoder


def _empty(config: CrossLayerConfig, own: OwnArchitecture | None) -> Transcoder:
    """A transcoder whose tensors are loaded next; raises ConfigError if its class has additional tensors."""
    if own is None:
        return CrossLayerTranscoder(config)
    transcoder = make_transcoder(config, own=own)
    with torch.device("meta"):
        known = CrossLayerTranscoder(config).state_dict()
    if foreign := transcoder.state_dict().keys() - known.keys():
        raise ConfigError(
            f"The features of {own.class_path} cannot be sharded, because its tensors {', '.join(sorted(foreign))} are "
            "not those of a CrossLayerTranscoder; use trainer.strategy ddp, which splits batches."
        )
    return transcoder


def draw_shard(config: TranscoderConfig, part: Part, *, seed: int) -> CrossLayerTranscoder:
    """A slice of an untrained transcoder; its weights are those that ``seed`` gives in the whole transcoder.

    The whole transcoder is never in memory.
    """
    return CrossLayerTranscoder(shard_config(config, part.shards), seed=seed, part=part)


def gather_features(transcoder: Transcoder) -> Transcoder | None:
    """Gather the whole transcoder on the CPU of the process with the first slice; returns None on other processes.

    Every process must call it.
    """
    if transcoder.peers.shards == 1:
        return transcoder
    gathered = {name: transcoder.peers.gather(tensor) for name, tensor in transcoder.state_dict().items()}
    slices = {name: tensors for name, tensors in gathered.items() if tensors is not None}
    assert isinstance(transcoder.config, CrossLayerConfig)
    return _merged(transcoder.config, own_architecture(transcoder), slices) if slices else None


def shard_path(checkpoint: str | Path, shard: int, shards: int) -> Path:
    """The path of one slice in the directory of a sharded checkpoint."""
    return Path(checkpoint) / f"shard_{shard}_of_{shards}"


def merge_checkpoint(
    checkpoint: str | Path, *, own_class: type[Any] | None = None, trust_code: bool = False
) -> Transcoder:
    """Read a sharded checkpoint as one whole transcoder; ``save_transcoder(merge_checkpoint(path).folded(), ...)``.

    ``own_class`` and ``trust_code`` are those of ``load_transcoder``. Raises CheckpointError if slices are missing, or
    of different steps.
    """
    first_slices = [path for path in Path(checkpoint).glob("shard_0_of_*") if path.name.rpartition("_")[2].isdecimal()]
    if len(first_slices) != 1:
        raise CheckpointError(
            f"{checkpoint} holds {len(first_slices)} sharded checkpoints; give a directory that holds one."
        )
    shards = int(first_slices[0].name.rpartition("_")[2])
    states = [SafetensorsCheckpointIO().load_checkpoint(shard_path(checkpoint, i, shards)) for i in range(shards)]
    first_step = states[0].get("global_step")
    if steps := {str(state.get("global_step")) for state in states} - {str(first_step)}:
        raise CheckpointError(
            f"{checkpoint} holds slices of different steps, {first_step} and "
            f"{', '.join(sorted(steps))}, because saving was interrupted; give another checkpoint."
        )
    try:
        config = from_dict(CrossLayerConfig, states[0]["settings"]["transcoder"])
        names = [name for name in states[0]["state_dict"] if name.startswith(_PREFIX)]
        slices = {name.removeprefix(_PREFIX): [state["state_dict"][name] for state in states] for name in names}
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{checkpoint} does not hold the slices of a transcoder ({error!r}).") from error
    code = OwnCode(own_class=own_class, trust_code=trust_code)
    return _merged(config, code.architecture(states[0].get("architecture"), first_slices[0]), slices)


def _merged(
    config: CrossLayerConfig, own: OwnArchitecture | None, slices: Mapping[str, Sequence[Tensor]]
) -> Transcoder:
    """The whole transcoder, from the config of one slice and the slices of each tensor."""
    shards = len(next(iter(slices.values())))
    with torch.device("meta") if own is None else nullcontext():  # a user's own class may compute in its __init__
        whole = _empty(whole_config(config, shards), own)
    state = {name: _joined(slices[name], tensor.shape) for name, tensor in whole.state_dict().items()}
    whole.load_state_dict(state, assign=True)
    return whole.eval()


def _slice(whole: Tensor, shape: Sequence[int], peers: Peers) -> Tensor:
    """This process's slice of a tensor, cut along the axis where ``shape`` is shorter; uncut if no axis is shorter."""
    for axis, (size, slice_size) in enumerate(zip(whole.shape, shape, strict=True)):
        if size != slice_size:
            return whole.unflatten(axis, (slice_size, peers.shards)).select(axis + 1, peers.shard)
    return whole


def _joined(slices: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """Slices joined along the axis where ``shape`` is longer; the first of equal copies if no axis is longer."""
    for axis, (size, slice_size) in enumerate(zip(shape, slices[0].shape, strict=True)):
        if size != slice_size:
            return torch.stack(list(slices), dim=axis + 1).flatten(axis, axis + 1)
    return slices[0]
