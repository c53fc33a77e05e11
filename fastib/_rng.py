"""The random state of one call, and the noise that it stands for.

`rng` is an int64 tensor (seed, offset) on the device of the call. Noise is a pure function of it and of the logical
index of the element: element e is made of words 2 (e % 4 // 2) and the next of the Philox4x32-10 counter
(e // 4, offset) under the key seed (Salmon et al. 2011), by Box-Muller, cosine before sine.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastib._arguments import check_dense

_LOW = 0xFFFFFFFF
_END = 2**63 - 1


def draw(like: Tensor, noise: Any, generator: Any, rng: Any) -> Tensor | None:
    """The rng of one call: the one given, or one drawn from `generator` or torch's own; None where noise is given."""
    if noise is None and rng is None and generator is None:
        if torch.compiler.is_compiling():
            drawn: Tensor = _drawn(like, torch.empty(0, device=like.device))
            return drawn
        return torch.randint(_END, (2,), device=like.device)
    given = [name for name, value in (("noise", noise), ("rng", rng), ("generator", generator)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{given[1]} must be None where {given[0]} is given")
    if noise is not None:
        return None
    if rng is not None:
        return _check_rng(rng, like)
    if torch.compiler.is_compiling():
        raise ValueError("generator must be None under torch.compile: use torch.manual_seed, or rng")
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if generator.device.type != like.device.type:
        raise ValueError(f"generator must be on the device of the inputs, {like.device}, got {generator.device}")
    return torch.randint(_END, (2,), device=like.device, generator=generator)


# As torch.compile should see a draw: to save memory, it may run PyTorch's own random functions again, and the backward
# pass would have other noise. `new` is an empty tensor of this draw: two of the same would be taken for one.
_library = torch.library.Library("fastib", "FRAGMENT")
_library.define("draw_rng(Tensor like, Tensor new) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_library.impl("draw_rng", torch.library.fallthrough_kernel, "Autograd")
_drawn = torch.ops.fastib.draw_rng.default


def _draw_kernel(like: Tensor, new: Tensor) -> Tensor:
    return torch.randint(_END, (2,), device=like.device)


def _draw_fake(like: Tensor, new: Tensor) -> Tensor:
    return like.new_empty((2,), dtype=torch.int64)


def _draw_vmap(info: Any, in_dims: tuple[int | None, ...], like: Tensor, new: Tensor) -> tuple[Tensor, int | None]:
    if info.randomness == "error":
        raise RuntimeError("torch.vmap must be told its randomness, 'same' or 'different', where noise is drawn")
    if info.randomness == "same":
        return _drawn(like, new), None
    return torch.stack([_drawn(like, new) for _ in range(info.batch_size)]), 0


_library.impl("draw_rng", _draw_kernel, "CompositeExplicitAutograd")
torch.library.register_fake(_drawn, _draw_fake, lib=_library)
torch.library.register_vmap(_drawn, _draw_vmap, lib=_library)


def _check_rng(rng: Any, like: Tensor) -> Tensor:
    if not isinstance(rng, Tensor):
        raise TypeError(f"rng must be a torch.Tensor, got {type(rng).__name__}")
    if rng.dtype != torch.int64:
        raise TypeError(f"rng must be an int64 tensor of shape (2,), got {rng.dtype}")
    check_dense("rng", rng)
    if rng.shape != (2,):
        raise ValueError(f"rng must be an int64 tensor of shape (2,), got shape {tuple(rng.shape)}")
    if rng.device != like.device:
        raise ValueError(f"rng must be on the device of the inputs, {like.device}, got {rng.device}")
    return rng.contiguous()


def philox_words(rng: Tensor, start: int, count: int) -> Tensor:
    """The words of counters start, start + 1, ...: int64 [count, 4], each in [0, 2**32)."""
    group = torch.arange(count, device=rng.device) + start
    seed, offset = rng[0], rng[1]
    zero = torch.zeros_like(group)
    c = [group & _LOW, (group >> 32) & _LOW, zero + (offset & _LOW), zero + ((offset >> 32) & _LOW)]
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [((p1 >> 32) & _LOW) ^ c[1] ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c[3] ^ k1, p0 & _LOW]
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return torch.stack(c, dim=-1)


def normal(rng: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Standard normal noise: what the kernels draw, to the last few bits of `dtype`."""
    count = shape.numel()
    words = philox_words(rng, 0, -(-count // 4))
    radius = (-2 * torch.log((words[:, 0::2].double() + 0.5) / 2**32)).sqrt()
    cosine, sine = _turn(words[:, 1::2])
    pairs = torch.stack((radius * cosine, radius * sine), dim=-1)
    return pairs.flatten()[:count].view(shape).to(dtype)


def _turn(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2 pi word / 2**32, accurate near their zeros: the quadrant is taken off in integers."""
    quadrant = (word + 2**29) >> 30
    angle = (word - (quadrant << 30)).double() * (math.pi / 2 / 2**30)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    odd = quadrant % 2 == 1
    cosine, sine = torch.where(odd, -sine, cosine), torch.where(odd, cosine, sine)
    sign = torch.where(quadrant % 4 >= 2, -1.0, 1.0)
    return cosine * sign, sine * sign
