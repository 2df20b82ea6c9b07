"""Training strategy for several processes: features sharded over some of them, batches split over others, or both.

The processes form a mesh, batch x features. The processes of one row see the same tokens, and each holds a slice of
every layer's features: encoder rows, thresholds, decoder rows, and their Adam moments. The processes of one column hold
the same slice, and each sees its part of the batch. A training step has these parts:

    encode      no communication: each process has all inputs of its tokens
    select      TopK gathers the values of the k largest candidates of each slice. BatchTopK finds its threshold by
                counting values, digit by digit, over all slices and all tokens
    decode      each slice writes its part, and ONE all-reduce sums the reconstructions (plus one for AuxK while
                features are dead, and one for each Matryoshka prefix)
    backward    no communication: every process of a row has the same reconstruction and the same loss, and computes the
                gradients of its own features. Tensors that do not belong to features (decoder biases, skip paths) are
                copied; all copies get equal gradients and stay equal
    update      gradient clipping needs the norm over all slices, which is one number. Columns average gradients (DDP)

Sharding therefore costs traffic of the size of activations, and splitting batches costs traffic of the size of
gradients; docs/scaling.md has the arithmetic. The losses equal those of one process up to rounding
(tests/training/parallel/test_strategy.py).

DeviceMesh makes the process groups. DTensor does the collectives within a row, since it knows that the gradient of a
sum over shards is the identity. The parameters are plain tensors and not DTensors: a slice of the features is a smaller
transcoder, so the code of the model and its custom gradients work on it unchanged, while DTensor has no rule for some
of its operations (such as ``embedding_bag`` with weights). For the same reason the strategy extends Lightning's
DDPStrategy with a mesh. Lightning's ModelParallelStrategy expects DTensor parameters, averages gradients only with
FSDP, and writes its checkpoints with pickle.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.nn import functional
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from open_clt.data.harvest import ActivationBatch
from open_clt.errors import CheckpointError, ConfigError
from open_clt.training.parallel.shards import is_copied, shard_path
from open_clt.transcoders.slices import ALONE, Part, Peers
from open_clt.transcoders.transcoder import Transcoder

BATCH, FEATURES = "batch", "features"
_DIGITS = (20, 9, 0)
"""Lowest bits of the three digits (11 bits each) of a positive float read as an integer; the last two overlap."""
_DIGIT_VALUES = 2048


@final
class MeshPeers(Peers):
    """The processes that train together, as a mesh of batch x features."""

    def __init__(self, mesh: DeviceMesh) -> None:
        self._batch, self._features = mesh[BATCH], mesh[FEATURES]
        self.shards = self._features.size()
        self.shard = self._features.get_local_rank()
        self.replicas = self._batch.size()

    def __deepcopy__(self, memo: dict[int, Any]) -> MeshPeers:
        return self  # a copy of a transcoder has the same peers

    def sum_features(self, partial: Tensor) -> Tensor:
        return _summed(partial, self._features)

    def sum_batch(self, partial: Tensor) -> Tensor:
        return _summed(partial.detach(), self._batch)

    def gather(self, part: Tensor) -> list[Tensor] | None:
        part = part.detach().contiguous()
        parts = [torch.empty_like(part) for _ in range(self.shards)] if self.shard == 0 else None
        dist.gather(part, parts, group=self._features.get_group(), group_dst=0)
        return parts and [gathered.cpu() for gathered in parts]

    @torch.no_grad()
    def winners(self, values: Float[Tensor, "batch candidate"], k: int) -> Bool[Tensor, "batch candidate"]:
        local_count = values.shape[1]
        padded = functional.pad(values.detach(), (0, k - local_count), value=-torch.inf)
        candidates = DTensor.from_local(padded, self._features, [Shard(1)], run_check=False).full_tensor()
        # A stable sort, not topk: every process must select the same candidates, also among equal values.
        selected = candidates.sort(dim=1, descending=True, stable=True).indices[:, :k]
        won = torch.zeros_like(candidates, dtype=torch.bool).scatter_(1, selected, True)
        return won[:, self.shard * k : self.shard * k + local_count]

    @torch.no_grad()
    def kth_largest(self, values: Float[Tensor, "some"], k: int) -> Float[Tensor, ""]:
        """Search digit by digit; the processes exchange three histograms, however many values there are."""
        bits = values.detach().float().clamp(min=0).view(torch.int32)  # as integers, positive floats keep their order
        result_bits = 0
        for shift in _DIGITS:
            digits = (bits >> shift) & (_DIGIT_VALUES - 1)
            counts = self.sum_features(self.sum_batch(torch.bincount(digits, minlength=_DIGIT_VALUES)))
            at_least = functional.pad(counts.flip(0).cumsum(0).flip(0), (0, 1))  # values whose digit is this or larger
            k = min(k, int(at_least[0]))
            if k == 0:
                return values.new_zeros(())
            digit = int((at_least >= k).nonzero().max())
            k -= int(at_least[digit + 1])
            bits = bits[digits == digit]
            result_bits |= digit << shift
        return torch.tensor(result_bits, dtype=torch.int32).view(torch.float32).to(values.device, values.dtype)


def _summed(partial: Tensor, mesh: DeviceMesh) -> Tensor:
    """The sum over the processes of a row or column; in the backward pass, each gets the gradient of the sum."""
    if mesh.size() == 1:
        return partial
    distributed = DTensor.from_local(partial, mesh, [Partial()], run_check=False)
    return distributed.redistribute(placements=[Replicate()]).to_local()


@torch.no_grad()
def clip_gradients(transcoder: Transcoder, limit: float | None) -> Float[Tensor, ""]:
    """Scale gradients so that their norm over the features of all processes is at most ``limit``, if there is one.

    Returns the norm that they had before.
    """
    sharded: list[Tensor] = []
    copied: list[Tensor] = []
    for name, parameter in transcoder.named_parameters():
        if parameter.grad is not None:
            (copied if is_copied(name) else sharded).append(parameter.grad)
    sharded_squares = transcoder.peers.sum_features(get_total_norm(sharded).square())
    norm = (sharded_squares + get_total_norm(copied).square()).sqrt()
    if limit:
        clip_grads_with_norm_(transcoder.parameters(), limit, norm)
    return norm


class BatchShare(NamedTuple):
    """A process's share of a batch: every ``parts``-th token, starting with token ``part``."""

    part: int
    parts: int

    def size_of(self, batch_size: int) -> int:
        """Number of the process's tokens of a batch; raises ConfigError if the batch cannot be split evenly."""
        if batch_size % self.parts:
            raise ConfigError(
                f"A batch has {batch_size} tokens, but it is split over {self.parts} processes; choose a batch_size "
                f"that is divisible by {self.parts}."
            )
        return batch_size // self.parts

    def of(self, batch: ActivationBatch) -> ActivationBatch:
        """The process's tokens of a batch; raises ConfigError if the batch cannot be split evenly."""
        self.size_of(batch.size)
        return batch if self.parts == 1 else batch.take(torch.arange(self.part, batch.size, self.parts))


WHOLE = BatchShare(0, 1)
"""The share of a process that has whole batches."""


def gathered(value: Any, share: BatchShare) -> list[Any]:
    """The values of all parts of a batch, in their order, from all processes; all of them must call this function."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, (share.part, value))
    by_part = dict(values)
    return [by_part[part] for part in range(share.parts)]


def batch_share(trainer: Trainer | None) -> BatchShare:
    """This process's share of every batch, according to the strategy of Lightning's Trainer."""
    sampler_settings = trainer and trainer.distributed_sampler_kwargs
    if not sampler_settings:
        return WHOLE
    return BatchShare(sampler_settings["rank"], sampler_settings["num_replicas"])


def peers_of(trainer: Trainer) -> Peers:
    """The processes that train together, once they have started; raises ConfigError for an unsupported strategy."""
    strategy = trainer.strategy
    if isinstance(strategy, FeatureParallelStrategy):
        return MeshPeers(strategy.mesh)
    if trainer.world_size == 1:
        return ALONE
    if not isinstance(strategy, DDPStrategy):
        raise ConfigError(
            f"trainer.strategy is {type(strategy).__name__}; use ddp, which splits batches, or "
            "open_clt.training.parallel.FeatureParallelStrategy, which shards features and can also split batches."
        )
    return MeshPeers(make_mesh(strategy.root_device, trainer.world_size, shards=1))


def make_mesh(device: torch.device, processes: int, *, shards: int) -> DeviceMesh:
    """All processes as a mesh of batch x features; the processes of one row have consecutive ranks."""
    if processes % shards:
        raise ConfigError(
            f"{processes} processes cannot be split into groups of {shards}; choose a number of devices that is "
            "divisible by tensor_parallel_size."
        )
    return init_device_mesh(device.type, (processes // shards, shards), mesh_dim_names=(BATCH, FEATURES))


@final
class FeatureParallelStrategy(DDPStrategy):
    """A Trainer strategy that shards features over ``tensor_parallel_size`` processes.

    If there are more processes, groups of ``tensor_parallel_size`` processes split each batch. With None, all processes
    form one group. A checkpoint is a directory with one part for each slice of the features; ``merge_checkpoint`` joins
    them into one transcoder.
    """

    def __init__(
        self,
        tensor_parallel_size: int | None = None,
        *,
        process_group_backend: str | None = None,
        timeout: float = 1800,
    ) -> None:
        """``timeout`` is the number of seconds that a process waits for the others.

        The default of ``process_group_backend`` is NCCL on GPUs and gloo on CPUs.
        """
        super().__init__(process_group_backend=process_group_backend, timeout=timedelta(seconds=timeout))
        self.tensor_parallel_size = tensor_parallel_size

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Always True: a checkpoint is loaded after the transcoder is cut into slices."""
        return True

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """The number of parts that a batch is split into, and the index of this process's part."""
        batch = self.mesh[BATCH]
        return {"num_replicas": batch.size(), "rank": batch.get_local_rank()}

    def setup_environment(self) -> None:
        """Start the process groups and make the mesh."""
        super().setup_environment()
        self.slice = self.part(self.global_rank, self.world_size)
        self.mesh = make_mesh(self.root_device, self.world_size, shards=self.slice.shards)

    def part(self, rank: int, processes: int) -> Part:
        """The slice of features that the process with this rank holds; known before the processes start."""
        shards = self.tensor_parallel_size or processes
        return Part(rank % shards, shards)

    def configure_ddp(self) -> None:
        """Average gradients within each column of the mesh; with a single row there is nothing to average."""
        if self.mesh[BATCH].size() > 1:
            # Buffers need no broadcast: their counts are summed over all processes already.
            self._ddp_kwargs |= {"process_group": self.mesh[BATCH].get_group(), "broadcast_buffers": False}
            super().configure_ddp()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save each slice once, from the first process that holds it."""
        if self.mesh[BATCH].get_local_rank() == 0:
            self.checkpoint_io.save_checkpoint(checkpoint, shard_path(filepath, *self.slice))

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load this process's slice; raises CheckpointError if it is missing, or not of the first slice's step."""
        checkpoint = self.checkpoint_io.load_checkpoint(shard_path(checkpoint_path, *self.slice))
        step = self.broadcast(checkpoint["global_step"])
        if checkpoint["global_step"] != step:
            raise CheckpointError(
                f"{checkpoint_path} holds slices of different steps, because saving was interrupted: slice "
                f"{self.slice.shard} is of step {checkpoint['global_step']}, and the first slice is of step {step}. "
                "Resume from another checkpoint."
            )
        return checkpoint
