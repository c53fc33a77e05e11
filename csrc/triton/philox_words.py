"""The random words themselves, so that backends can be compared bit for bit: word k of counter start + i at [i, k]."""

from __future__ import annotations

import triton.language as tl
from torch import Tensor

from ._elements import block_of, philox
from ._launch import compiled_once, launch_elements


@compiled_once
def forward(rng, start, words, count, BLOCK: tl.constexpr):
    i, inside = block_of(count, BLOCK)
    w0, w1, w2, w3 = philox(i + start, rng)
    tl.store(words + 4 * i, w0.to(tl.int64), mask=inside)
    tl.store(words + 4 * i + 1, w1.to(tl.int64), mask=inside)
    tl.store(words + 4 * i + 2, w2.to(tl.int64), mask=inside)
    tl.store(words + 4 * i + 3, w3.to(tl.int64), mask=inside)


def philox_words(rng: Tensor, start: int, count: int) -> Tensor:
    words = rng.new_empty((count, 4))
    launch_elements(forward, words[:, 0], rng.contiguous(), start, words)
    return words
