"""The random words, and the normals made of them."""

from __future__ import annotations

import math

import pytest
import torch

import fastib
from fastib import _ops, _rng

# Known-answer vectors of Salmon et al. (Random123): counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _signed(low: str, high: str) -> int:
    value = int(high + low, 16)
    return value - 2**64 if value >= 2**63 else value


@pytest.mark.parametrize("counter, key, expected", KNOWN_ANSWERS)
def test_known_answers(kernels: str, counter: str, key: str, expected: str) -> None:
    c, k = counter.split(), key.split()
    rng = torch.tensor([_signed(*k), _signed(c[2], c[3])])
    words = _ops.philox_words(rng, _signed(c[0], c[1]), 1)
    assert [f"{word:08x}" for word in words[0].tolist()] == expected.split()


@pytest.mark.parametrize("start", [0, 1, 2**31 - 3, 2**32 - 3, 2**34 + 1, -5])
def test_words_equal_the_reference_bit_for_bit(kernels: str, start: int) -> None:
    rng = torch.tensor([-1234567890123456789, 987654321987654321])
    assert torch.equal(_ops.philox_words(rng, start, 1003), _rng.philox_words(rng, start, 1003))


def _draws(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    zero = torch.zeros(1, dtype=dtype).expand(n)
    return fastib.reparameterize(zero, zero, rng=torch.tensor([2024, 7]))


def test_normals_are_those_of_the_words(kernels: str) -> None:
    exact = _rng.normal(torch.tensor([2024, 7]), torch.Size([200_003]), torch.float64)
    single, double = _draws(200_003), _draws(200_003, torch.float64)
    assert ((single.double() - exact).abs() <= 2.0**-21 * exact.abs() + 1e-15).all()  # 4 ulp, near 0 too
    assert ((double - exact).abs() <= 2.0**-50 * exact.abs()).all()


def test_moments_and_kolmogorov_smirnov(kernels: str) -> None:
    n = 10_000_000 if kernels != "reference" else 1_000_000
    z = _draws(n).double()
    root = math.sqrt(n)
    assert abs(z.mean().item()) < 3 / root
    assert abs(z.var().item() - 1) < 3 * math.sqrt(2) / root
    assert abs((z**3).mean().item()) < 3 * math.sqrt(15) / root
    assert abs((z**4).mean().item() - 3) < 3 * math.sqrt(96) / root
    assert abs((z[1:] * z[:-1]).mean().item()) < 3 / root  # neighbours are uncorrelated
    rank = torch.arange(n, dtype=torch.float64) / n
    distance = (torch.special.ndtr(z.sort().values) - rank).abs().max().item()
    assert distance < 1.63 / root  # the 1 % point of the Kolmogorov distribution


def test_tail() -> None:
    """The largest of 2e7 normals lies between 5 and the radius of the smallest word, 6.66."""
    z = _draws(20_000_000)
    assert z.isfinite().all() and 5.0 < z.abs().max() < 6.7


def test_seed_and_offset_change_all(kernels: str) -> None:
    zero = torch.zeros(1000)
    base = fastib.reparameterize(zero, zero, rng=torch.tensor([1, 1]))
    for other in ([2, 1], [1, 2], [1 + 2**32, 1], [1, 1 + 2**32]):
        assert (base != fastib.reparameterize(zero, zero, rng=torch.tensor(other))).all()


def test_noise_depends_on_logical_index_only(kernels: str, threads: None) -> None:
    zero = torch.zeros(4, 6, 50, 70)
    rng = torch.tensor([3, 4])
    expected = fastib.reparameterize(zero, zero, rng=rng)
    for count in (1, 2):
        torch.set_num_threads(count)
        for layout in (
            zero.contiguous(memory_format=torch.channels_last),
            zero.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
            torch.zeros(1).expand(zero.shape),
        ):
            assert torch.equal(fastib.reparameterize(layout, layout, rng=rng), expected)
        # a prefix of the noise does not depend on what follows it
        assert torch.equal(fastib.reparameterize(zero[:1], zero[:1], rng=rng), expected[:1])
