"""The exponentials per second of a GPU: what exponentials.cpp is for a CPU. It needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_VALUES, _WARPS, _UNROLLED = 2048, 4, 16  # a thread holds 16 values: enough independent ones to hide their latency


@triton.jit
def _repeated(out, rounds, VALUES: tl.constexpr, UNROLLED: tl.constexpr):
    """x -> 2^-x, again and again: it converges, and its only instruction is the MUFU of the exponential, since the sign
    is a modifier of that and `ftz` spares the scaling of small results. So it runs at the rate of that unit."""
    index = tl.arange(0, VALUES)
    x = index.to(tl.float32) / VALUES
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):
            x = tl.inline_asm_elementwise(
                "{ .reg .f32 n; neg.f32 n, $1; ex2.approx.ftz.f32 $0, n; }",
                "=f,f",
                [x],
                dtype=tl.float32,
                is_pure=True,
                pack=1,
            )
    tl.store(out + tl.program_id(0) * VALUES + index, x)


def rate() -> float:
    """Exponentials per second, of the fastest repeat."""
    rounds = 400
    programs = 16 * torch.cuda.get_device_properties().multi_processor_count
    out = torch.empty(programs * _VALUES, device="cuda")
    seconds = []
    for _ in range(10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _repeated[(programs,)](out, rounds, VALUES=_VALUES, UNROLLED=_UNROLLED, num_warps=_WARPS)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1e3)
    assert torch.allclose(out, torch.full_like(out, 0.6411857))  # x = 2^-x
    return programs * _VALUES * _UNROLLED * rounds / min(seconds)
