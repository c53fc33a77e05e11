"""Elementary functions of blocks of float32 or float64: those of csrc/common/math.h, with the same polynomials.

Triton's own are approximate in float32 on a GPU. The range of each is whole: zeros, infinities, NaN and subnormal
numbers come out as in PyTorch.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


def _constants(*values: float) -> Any:
    """Coefficients for `_polynomial`: the interpreter cannot index a constexpr."""
    return values if INTERPRETED.value else tl.constexpr(values)


# (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2
_EXP_32 = _constants(0.5, 0.1666666716337204, 0.04166646674275398, 0.008333360776305199, 0.0013933641603216529,
                     0.00019857840379700065)  # fmt: skip
_EXP_64 = _constants(0.5, 0.16666666666666666, 0.04166666666666668, 0.008333333333333326, 0.0013888888888879075,
                     0.00019841269841301687, 2.4801587336448884e-05, 2.7557319174228873e-06, 2.7557263262740015e-07,
                     2.5052131805158937e-08, 2.091814651980698e-09, 1.606826636122228e-10)  # fmt: skip
# (log(1 + f) - f + f^2 / 2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG_32 = _constants(0.3333333134651184, -0.250008225440979, 0.20001232624053955, -0.16623306274414062,
                     0.14201559126377106, -0.13160519301891327, 0.12763266265392303, -0.07635751366615295)  # fmt: skip
_LOG_64 = _constants(0.33333333333333454, -0.24999999999998918, 0.1999999999994583, -0.1666666666691468,
                     0.1428571429388128, -0.12499999982036743, 0.11111110513569943, -0.1000000037967,
                     0.09090933588596237, -0.08333345951481817, 0.07691712935441238, -0.07141995145823903,
                     0.06675162827055595, -0.06269868391754103, 0.058177398388238266, -0.053263182432384294,
                     0.05415627293906461, -0.06276174933615469, 0.056989696640994424, -0.02428630701907276)  # fmt: skip
# (sin x - x) / x^3 and (cos x - 1 + x^2 / 2) / x^4 in x^2, for |x| <= pi / 4
_SIN_32 = _constants(-0.16666656732559204, 0.008332232013344765, -0.0001952313759829849)
_COS_32 = _constants(0.041666656732559204, -0.00138877856079489, 2.4480796128045768e-05)
_SIN_64 = _constants(-0.16666666666666666, 0.008333333333333326, -0.00019841269841258362, 2.75573192156591e-06,
                     -2.5052105248971768e-08, 1.6058405255213206e-10, -7.580443293674764e-13)  # fmt: skip
_COS_64 = _constants(0.041666666666666664, -0.0013888888888888885, 2.4801587301581213e-05, -2.7557319219360215e-07,
                     2.0876755220808624e-09, -1.1470385638563485e-11, 4.7420823299126953e-14)  # fmt: skip


@triton.jit
def _polynomial(x, coefficients: tl.constexpr):
    last: tl.constexpr = len(coefficients) - 1
    total = coefficients[last] * x + coefficients[last - 1]
    for i in tl.static_range(2, last + 1):
        total = total * x + coefficients[last - i]
    return total


@triton.jit
def _power_of_two(n, like):
    """2^n as a normal number of the dtype of `like`."""
    if like.dtype == tl.float64:
        return ((n + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def exponentials(x):
    """e^x, e^x - 1 and e^x - 1 - x, each to a few ulp of itself: neither of the others would give the third near 0.

    x is n ln(2) + r with |r| <= ln(2) / 2, and 2^n is made of two factors, so that the largest finite and the
    subnormal results come out whole.
    """
    if x.dtype == tl.float64:
        clamped = tl.where(x < -746.0, -746.0, x)  # a NaN compares false and passes through
        clamped = tl.where(clamped > 710.0, 710.0, clamped)
        shifted = clamped * 1.4426950408889634 + 6755399441055744.0  # 1.5 * 2^52 leaves the integer in the low bits
        n = shifted - 6755399441055744.0
        power = shifted.to(tl.int64, bitcast=True) - 0x4338000000000000
        r = (clamped - n * 0.6931471803691238) - n * 1.9082149292705877e-10
        tail = r * r * _polynomial(r, _EXP_64)
        easy = tl.abs(x) <= 708.0
    else:
        clamped = tl.where(x < -104.0, -104.0, x)
        clamped = tl.where(clamped > 89.0, 89.0, clamped)
        shifted = clamped * 1.4426950216293335 + 12582912.0  # 1.5 * 2^23
        n = shifted - 12582912.0
        power = shifted.to(tl.int32, bitcast=True) - 0x4B400000
        r = (clamped - n * 0.693115234375) - n * 3.194618329871446e-05
        tail = r * r * _polynomial(r, _EXP_32)
        easy = tl.abs(x) <= 87.0
    r_minus_1 = r + tail
    half = power >> 1
    low, high = _power_of_two(half, x), _power_of_two(power - half, x)
    scale = low * high
    value = (low * r_minus_1 + low) * high
    minus_1 = tl.where(easy, scale * r_minus_1 + (scale - 1.0), value - 1.0)
    return value, minus_1, tl.where(n == 0.0, tail, minus_1 - x)


@triton.jit
def exponential(x):
    value, _, _ = exponentials(x)
    return value


@triton.jit
def _log_1_plus(f):
    """For sqrt(1/2) <= 1 + f <= sqrt(2)."""
    tail = _polynomial(f, _LOG_64) if f.dtype == tl.float64 else _polynomial(f, _LOG_32)
    return f * f * (f * tail - 0.5) + f


@triton.jit
def _split(x):
    """(n, f) with x = 2^n (1 + f) for a positive normal x, and 1 + f in [sqrt(1/2), sqrt(2))."""
    if x.dtype == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        n = (bits - 0x3FE6A09E667F3BCD) >> 52
        f = (bits - (n << 52)).to(tl.float64, bitcast=True) - 1.0
    else:
        bits = x.to(tl.int32, bitcast=True)
        n = (bits - 0x3F3504F3) >> 23
        f = (bits - (n << 23)).to(tl.float32, bitcast=True) - 1.0
    return n.to(x.dtype), f


@triton.jit
def logarithm(x):
    """The natural logarithm: -inf at 0, NaN below."""
    if x.dtype == tl.float64:
        small = x < 2.2250738585072014e-308
        n, f = _split(tl.where(small, x * 18014398509481984.0, x))
        n = tl.where(small, n - 54.0, n)
    else:
        small = x < 1.1754943508222875e-38
        n, f = _split(tl.where(small, x * 16777216.0, x))
        n = tl.where(small, n - 24.0, n)
    finite = n * 0.6931471805599453 + _log_1_plus(f)
    edge = tl.where(x == 0.0, float("-inf"), tl.where(x > 0.0, x, float("nan")))
    return tl.where((x > 0.0) & (x < float("inf")), finite, edge)


@triton.jit
def square_root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def divide(a, b):
    """a / b rounded once: a share of all is exactly 1."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def log_uniform(word, dtype: tl.constexpr):
    """ln((word + 1/2) / 2^32) for a uint32: finite for every word, and accurate near both ends."""
    if dtype == tl.float64:
        n, f = _split(word.to(tl.int64).to(tl.float64) + 0.5)
        return (n - 32.0) * 0.6931471805599453 + _log_1_plus(f)
    else:
        signed = word.to(tl.int32, bitcast=True)
        x = signed.to(tl.float32) + 0.5
        n, f = _split(x)
        # For word >= 2^31, x is word + 1/2 - 2^32, and keeps the digits that 1 - u would lose.
        from_1 = x * 2.3283064365386963e-10
        below = from_1 < -0.29289322  # u < sqrt(1/2): take 2 u instead
        f = tl.where(signed < 0, tl.where(below, from_1 * 2.0 + 1.0, from_1), f)
        n = tl.where(signed < 0, tl.where(below, -1.0, 0.0), n - 32.0)
        return n * 0.6931471805599453 + _log_1_plus(f)


@triton.jit
def sine_cosine_turn(word, dtype: tl.constexpr):
    """Sine and cosine of 2 pi word / 2^32 for a uint32; the reduction to an octant is exact, in integers."""
    turn = word + 0x20000000  # the quadrant in the two highest bits
    x = ((turn & 0x3FFFFFFF).to(tl.int32, bitcast=True) - 0x20000000).to(dtype) * 1.4629180792671596e-09
    square = x * x
    if dtype == tl.float64:
        s = x * square * _polynomial(square, _SIN_64) + x
        c = square * square * _polynomial(square, _COS_64) + (square * -0.5 + 1.0)
    else:
        s = x * square * _polynomial(square, _SIN_32) + x
        c = square * square * _polynomial(square, _COS_32) + (square * -0.5 + 1.0)
    quadrant = turn >> 30
    odd = (quadrant & 1) == 1
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    sine = tl.where(quadrant >= 2, -sine, sine)
    return sine, tl.where((quadrant == 1) | (quadrant == 2), -cosine, cosine)
