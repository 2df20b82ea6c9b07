"""Keys give every token one place, in an order of the seed that a sort of all keys gives, too."""

from __future__ import annotations

import pytest
import torch

from open_clt.data.dataset.scrambling import keys as keys_module
from open_clt.data.dataset.scrambling.keys import KeyOrder, keys


def splitmix64(seed: int, number: int) -> int:
    """The key of a token as the paper writes it, with unsigned numbers of 64 bits."""
    mask = (1 << 64) - 1

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    step = 0x9E3779B97F4A7C15
    start = mixed((seed * step + step) & mask)
    return mixed((start + (number + 1) * step) & mask)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_keys_are_those_of_splitmix64(seed: int) -> None:
    expected = [splitmix64(seed, number) for number in range(40)]
    assert [key % (1 << 64) for key in keys(seed, 0, 40).tolist()] == expected
    assert torch.equal(keys(seed, 7, 40), keys(seed, 0, 40)[7:])
    assert keys(seed, 0, 50_000).unique().numel() == 50_000


def test_the_first_keys_of_splitmix64_are_the_published_ones() -> None:
    """The numbers of the reference implementation for the state 1234567."""
    assert keys_module._mixed(torch.arange(1, 4) * keys_module._signed(0x9E3779B97F4A7C15) + 1234567).tolist() == [  # pyright: ignore[reportPrivateUsage]
        6457827717110365317,
        3203168211198807973,
        9817491932198370423 - (1 << 64),
    ]


@pytest.mark.parametrize("tokens", [1, 2, 1000, 30_001])
@pytest.mark.parametrize("at_once", [1 << 20, 77])
def test_places_are_those_of_a_sort_of_all_keys(tokens: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "_AT_ONCE", max(at_once, tokens // 10))
    order = KeyOrder(5, tokens)
    expected = keys(5, 0, tokens).argsort()
    assert torch.equal(order.numbers(0, tokens), expected)
    for begin, end in ((0, 1), (tokens // 3, tokens), (tokens // 2, tokens // 2 + 1)):
        assert torch.equal(order.numbers(begin, end), expected[begin:end])
    run_tokens = max(1, tokens // 3)
    for place in (0, tokens // 2, tokens - 1):
        runs = (expected[:place] // run_tokens).bincount(minlength=-(-tokens // run_tokens))
        assert order.counts_before(place, run_tokens) == runs.tolist()


def test_a_token_may_stand_anywhere() -> None:
    """Places and numbers are not related: each tenth of the places has about a tenth of each tenth of the numbers."""
    order = KeyOrder(3, 10_000).numbers(0, 10_000)
    counts = torch.zeros(10, 10)
    counts.index_put_((torch.arange(10_000) // 1000, order // 1000), torch.ones(10_000), accumulate=True)
    assert float((counts - 100).square().sum() / 100) < 140  # chi-squared with 81 degrees of freedom, 5 deviations
    neighbours = (order[1:] - order[:-1]).abs()
    assert float((neighbours < 100).float().mean()) < 0.03
    assert not torch.equal(order, KeyOrder(4, 10_000).numbers(0, 10_000))
