"""The types of a shard: float32 keeps every bit, the others stay within their error, too large numbers are refused."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from open_clt.data.dataset.encoding import (
    STORAGE_TYPES,
    StorageType,
    bytes_per_token,
    check_range,
    decode,
    encode,
    tensor_forms,
)
from open_clt.data.harvest import ActivationBatch
from open_clt.errors import NotFiniteError
from tests.refusals import refuses


def batch_of(inputs: torch.Tensor) -> ActivationBatch:
    ids = torch.arange(len(inputs))
    return ActivationBatch(inputs, -inputs, ids + 70_000, ids)


def random_inputs() -> torch.Tensor:
    """Activations of 200 tokens whose sizes differ by many orders of magnitude; some are zero."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 3, 16, generator=generator)
    inputs *= 10 ** torch.linspace(-4, 4, 200)[:, None, None]
    inputs[7], inputs[8, 1], inputs[9, 2, 3] = 0, 0, 65_000
    return inputs


@pytest.mark.parametrize("dtype", STORAGE_TYPES)
def test_tensors_have_the_forms_and_sizes_that_are_announced(dtype: StorageType) -> None:
    tensors = encode(batch_of(random_inputs()), dtype)
    forms = tensor_forms(dtype, 200, 3, 16)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == forms
    assert sum(tensor.nbytes for tensor in tensors.values()) == 200 * bytes_per_token(dtype, 3, 16)
    decoded = decode(tensors)
    expected = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    assert decoded.inputs.dtype == decoded.targets.dtype == expected
    assert torch.equal(decoded.tokens, torch.arange(200) + 70_000)
    assert torch.equal(decoded.positions, torch.arange(200))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_floating_point_types_round_to_the_nearest_number(dtype: str) -> None:
    inputs = random_inputs()
    decoded = decode(encode(batch_of(inputs), cast(StorageType, dtype)))
    assert torch.equal(decoded.inputs, inputs.to(getattr(torch, dtype)))
    assert torch.equal(decoded.targets, -decoded.inputs)


def test_the_error_of_int8_is_at_most_half_a_step() -> None:
    inputs = random_inputs()
    inputs[10] *= 1e-40  # numbers below the smallest normal one
    inputs[11] *= 1e33
    tensors = encode(batch_of(inputs), "int8")
    scale = tensors["inputs_scale"]
    largest = inputs.abs().amax(2)
    normal = largest > 1e-30
    torch.testing.assert_close(scale[normal], largest[normal] / 127, rtol=1e-6, atol=0)
    error = (decode(tensors).inputs.double() - inputs.double()).abs()
    assert bool((error <= 0.5001 * scale.double()[..., None]).all())
    assert bool((error <= 0.004 * largest.double()[..., None])[normal].all())
    assert float((error / scale[..., None]).max()) > 0.49  # the bound is tight
    assert bool((decode(tensors).inputs[7] == 0).all())


@pytest.mark.parametrize("kind", ["inputs", "targets"])
def test_a_number_that_is_too_large_for_the_type_is_named(kind: str) -> None:
    batch = batch_of(torch.zeros(5, 3, 16))
    getattr(batch, kind)[3, 2, 1] = -70_000
    with refuses(NotFiniteError, kind, "layer 2", "-70000.0", "position 3", "float16", 65504.0):
        check_range(batch, "float16")
    for dtype in ("float32", "bfloat16", "int8"):
        check_range(batch, cast(StorageType, dtype))
