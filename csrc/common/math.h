// Elementary functions of V, where V is float, double, or a vector of either.
//
// No include guard, on purpose: every instruction set compiles its own copy of this file inside its own namespace
// (cpu/each_isa.h). Whoever includes it has defined, for V: Scalar<V>, Int<V>, Uint<V>, splat, as_int, as_real,
// to_real, any_beyond, fma, round_to_integer, times_power_of_two and square_root. Comparisons give a mask that
// `mask ? a : b` accepts, for vectors and scalars alike.

// The coefficients of a polynomial, by functions: a static array would have no address in the code of a GPU.
template <class S, int N>
struct Coefficients {
  S values[N];
};

template <class S, class... C>
constexpr Coefficients<S, int(sizeof...(C))> coefficients(C... c) {
  return {{c...}};
}

template <class S>
struct Constants;

// Polynomials are minimax (Remez) on the reduced range; the relative error of each is below 2^-27 (2^-58);
// that of exp2 below 2^-23 (2^-57).
template <>
struct Constants<float> {
  static constexpr int mantissa_bits = 23, exponent_bias = 127;
  static constexpr float exp_easy = 87.0f;                    // up to here, either way, e^x is a normal number
  static constexpr float exp_min = -104.0f, exp_max = 89.0f;  // beyond these e^x is 0 or infinity
  static constexpr float round = 0x1.8p23f;                   // x + round leaves round(x) in the low bits
  static constexpr float log2e = 0x1.715476p0f, ln2 = 0x1.62e430p-1f;
  static constexpr float ln2_hi = 0x1.62ep-1f, ln2_lo = 0x1.0bfbe8p-15f;
  static constexpr float smallest_normal = 0x1p-126f, subnormal_scale = 0x1p24f;
  static constexpr int subnormal_shift = 24;
  static constexpr int32_t sqrt_half_bits = 0x3f3504f3;
  // (e^r - 1 - r) / r^2 for |r| <= ln(2)/2
  static constexpr auto exp() {
    return coefficients<float>(0x1.000000p-1f, 0x1.555556p-3f, 0x1.5554eap-5f, 0x1.11114cp-7f, 0x1.6d4316p-10f,
                               0x1.a072f8p-13f);
  }
  // 2^x for |x| <= 1/2
  static constexpr auto exp2() {
    return coefficients<float>(0x1.000000p0f, 0x1.62e42ap-1f, 0x1.ebf9bap-3f, 0x1.c6b754p-5f, 0x1.3ceadcp-7f,
                               0x1.5bb9e0p-10f);
  }
  // (log(1 + f) - f + f^2/2) / f^3 for sqrt(1/2) <= 1 + f <= sqrt(2)
  static constexpr auto log1p() {
    return coefficients<float>(0x1.555554p-2f, -0x1.000228p-2f, 0x1.99a010p-3f, -0x1.547200p-3f, 0x1.22d912p-3f,
                               -0x1.0d8706p-3f, 0x1.056446p-3f, -0x1.38c2a8p-4f);
  }
  // (sin x - x) / x^3 and (cos x - 1 + x^2/2) / x^4 in x^2, for |x| <= pi/4
  static constexpr auto sin() { return coefficients<float>(-0x1.555548p-3f, 0x1.1107d4p-7f, -0x1.996e0cp-13f); }
  static constexpr auto cos() { return coefficients<float>(0x1.555550p-5f, -0x1.6c0f5ap-10f, 0x1.9ab838p-16f); }
};

template <>
struct Constants<double> {
  static constexpr int mantissa_bits = 52, exponent_bias = 1023;
  static constexpr double exp_easy = 708.0;
  static constexpr double exp_min = -746.0, exp_max = 710.0;
  static constexpr double round = 0x1.8p52;
  static constexpr double log2e = 0x1.71547652b82fep0, ln2 = 0x1.62e42fefa39efp-1;
  static constexpr double ln2_hi = 0x1.62e42feep-1, ln2_lo = 0x1.a39ef35793c76p-33;
  static constexpr double smallest_normal = 0x1p-1022, subnormal_scale = 0x1p54;
  static constexpr int subnormal_shift = 54;
  static constexpr int64_t sqrt_half_bits = 0x3fe6a09e667f3bcd;
  static constexpr auto exp() {
    return coefficients<double>(0x1.0000000000000p-1, 0x1.5555555555555p-3, 0x1.5555555555557p-5, 0x1.111111111110dp-7,
                                0x1.6c16c16c15a69p-10, 0x1.a01a01a01cdffp-13, 0x1.a01a01a9ea0c5p-16,
                                0x1.71de3a4a38274p-19, 0x1.27e4d41675022p-22, 0x1.ae6470dd9a6ccp-26,
                                0x1.1f7f2f5fd728fp-29, 0x1.61584c4979286p-33);
  }
  static constexpr auto exp2() {
    return coefficients<double>(0x1.0000000000000p0, 0x1.62e42fefa39efp-1, 0x1.ebfbdff82c5a4p-3, 0x1.c6b08d7049fe7p-5,
                                0x1.3b2ab6fba00f4p-7, 0x1.5d87fe78cd849p-10, 0x1.4309130ee2dd3p-13,
                                0x1.ffcbfba91a86ep-17, 0x1.62bfc77ef8f6fp-20, 0x1.b5267d7ed9b01p-24,
                                0x1.e61b8b5e75be8p-28, 0x1.e79b30cb81823p-32);
  }
  static constexpr auto log1p() {
    return coefficients<double>(
        0x1.555555555556bp-2, -0x1.ffffffffffe7ap-3, 0x1.9999999994d5dp-3, -0x1.555555556b262p-3, 0x1.2492492760a98p-3,
        -0x1.fffffff3a7dedp-4, 0x1.c71c702c7be3fp-4, -0x1.99999a9e81da5p-4, 0x1.745d590880276p-4, -0x1.55557734757d7p-4,
        0x1.3b0d74b1453bdp-4, -0x1.24893f3cb8803p-4, 0x1.116a27c60751ap-4, -0x1.00d055ced96a5p-4, 0x1.dc96d8ee33fd8p-5,
        -0x1.b454fd5418595p-5, 0x1.bba5efa4b0648p-5, -0x1.011276cd6aa2cp-4, 0x1.d2dc0e6906683p-5,
        -0x1.8de82798cd563p-6);
  }
  static constexpr auto sin() {
    return coefficients<double>(-0x1.5555555555555p-3, 0x1.111111111110dp-7, -0x1.a01a01a018f8fp-13,
                                0x1.71de3a538c718p-19, -0x1.ae6452f74dabfp-26, 0x1.6120c8ef7f21ep-33,
                                -0x1.aabdb37b1198cp-41);
  }
  static constexpr auto cos() {
    return coefficients<double>(0x1.5555555555555p-5, -0x1.6c16c16c16c15p-10, 0x1.a01a01a019915p-16,
                                -0x1.27e4fb76b4a37p-22, 0x1.1eed8d6818c1bp-29, -0x1.93940c89a4877p-37,
                                0x1.ab20f95136526p-45);
  }
};

template <class V, class S, int N>
FASTIB_INLINE V polynomial(Coefficients<S, N> c, V x) {
  if constexpr (N <= 4) {
    V sum = splat<V>(c.values[N - 1]);
    for (int i = N - 2; i >= 0; --i) sum = fma<V>(sum, x, c.values[i]);
    return sum;
  } else {  // even and odd powers apart: half the chain of dependent multiply-adds
    const V square = x * x;
    V a = splat<V>(c.values[N - 1]), b = splat<V>(c.values[N - 2]);
    for (int i = N - 3; i >= 1; i -= 2) {
      a = fma<V>(a, square, c.values[i]);
      b = fma<V>(b, square, c.values[i - 1]);
    }
    if constexpr (N % 2 == 1) return fma<V>(a, square, fma<V>(b, x, c.values[0]));
    return fma<V>(a, x, b);
  }
}

// e^x, e^x - 1 and e^x - 1 - x, each to a few ulp of itself: the third is what a Gaussian KL is made of, and it loses
// every digit near 0 if formed from either of the others.
template <class V>
struct Exp {
  V value, minus_1, minus_1_minus_x;
};

// x = n ln(2) + r with |r| <= ln(2)/2. The low bits of `shifted` hold n; r_minus_1 is e^r - 1, tail e^r - 1 - r.
template <class V>
struct ReducedExp {
  V shifted, n, r_minus_1, tail;
};

template <class V>
FASTIB_INLINE ReducedExp<V> reduced_exponential(V x) {
  using K = Constants<Scalar<V>>;
  ReducedExp<V> e;
  e.shifted = fma<V>(x, K::log2e, K::round);
  e.n = e.shifted - K::round;
  const V r = fma<V>(e.n, -K::ln2_lo, fma<V>(e.n, -K::ln2_hi, x));
  e.tail = r * r * polynomial(K::exp(), r);
  e.r_minus_1 = r + e.tail;
  return e;
}

template <class V>
FASTIB_INLINE V power_of_two(Int<V> n) {
  using K = Constants<Scalar<V>>;
  return as_real<V>((n << K::mantissa_bits) + as_int(splat<V>(1)));
}

// For x whose exponential is not a normal number, or not a number: 2^n in two factors, so that the largest finite and
// the subnormal results come out whole. Lanes that are neither get the bits that they would have got among their like.
template <class V>
FASTIB_OUT_OF_LINE Exp<V> exponential_of_extremes(V x) {
  using S = Scalar<V>;
  using K = Constants<S>;
  V clamped = x < K::exp_min ? splat<V>(K::exp_min) : x;  // a NaN compares false and passes through
  clamped = clamped > K::exp_max ? splat<V>(K::exp_max) : clamped;
  const ReducedExp<V> e = reduced_exponential(clamped);
  const Int<V> n = as_int(e.shifted) - as_int(splat<V>(K::round)), half = n >> 1;
  const V low = power_of_two<V>(half), high = power_of_two<V>(n - half), scale = low * high;
  const V value = fma<V>(low, e.r_minus_1, low) * high;
  const V minus_1 =
      ((x >= -K::exp_easy) & (x <= K::exp_easy)) ? fma<V>(scale, e.r_minus_1, scale - S(1)) : value - S(1);
  return {value, minus_1, e.n == S(0) ? e.tail : minus_1 - x};
}

template <class V>
FASTIB_INLINE Exp<V> exponential(V x) {
  using S = Scalar<V>;
  using K = Constants<S>;
  if (any_beyond<V>(x, K::exp_easy)) [[unlikely]] {
    const Exp<V> e = exponential_of_extremes(x);
    return {e.value, e.minus_1, e.minus_1_minus_x};  // one by one: else GCC keeps those below in memory too
  }
  const ReducedExp<V> e = reduced_exponential(x);
  const V scale = power_of_two<V>(as_int(e.shifted));  // the shift by the mantissa's width leaves n alone
  const V minus_1 = fma<V>(scale, e.r_minus_1, scale - S(1));
  return {fma<V>(scale, e.r_minus_1, scale), minus_1, e.n == S(0) ? e.tail : minus_1 - x};
}

// 2^x where that does not overflow, and 0 (or a subnormal number) where it underflows. For sums of many: it is good to
// an ulp and a half, and made of few instructions in short chains. A NaN must have its low bits 0.
template <class V>
FASTIB_INLINE V fast_exp2(V x) {
  using K = Constants<Scalar<V>>;
  constexpr auto c = K::exp2();
  constexpr int terms = int(sizeof(c.values) / sizeof(c.values[0]));
  static_assert(terms % 2 == 0);
  const Rounded<V> r = round_to_integer(x);
  const V square = r.rest * r.rest;
  const auto pair = [&](int i) { return fma<V>(r.rest, c.values[i + 1], c.values[i]); };
  V p = pair(terms - 2);
  for (int i = terms - 4; i >= 0; i -= 2) p = fma<V>(p, square, pair(i));
  return times_power_of_two<V>(p, r);
}

template <class V>
FASTIB_INLINE V log_1_plus(V f) {  // sqrt(1/2) <= 1 + f <= sqrt(2)
  using S = Scalar<V>;
  const V square = f * f;
  return fma<V>(square, fma<V>(f, polynomial(Constants<S>::log1p(), f), S(-0.5)), f);
}

// x = 2^exponent (1 + f) for a positive normal x, with 1 + f in [sqrt(1/2), sqrt(2)). Of any other x something comes,
// too, so its bits are taken for integers that may wrap around.
template <class V>
FASTIB_INLINE void split(V x, V& exponent, V& f) {
  using K = Constants<Scalar<V>>;
  using U = Scalar<Uint<V>>;
  const Uint<V> bits = Uint<V>(as_int(x));
  const Int<V> e = Int<V>(bits - U(K::sqrt_half_bits)) >> K::mantissa_bits;
  f = as_real<V>(Int<V>(bits - (Uint<V>(e) << K::mantissa_bits))) - Scalar<V>(1);
  exponent = to_real<V>(e);
}

// Natural logarithm with the limits of std::log: -inf at 0, NaN below, subnormals included.
template <class V>
FASTIB_INLINE V logarithm(V x) {
  using S = Scalar<V>;
  using K = Constants<S>;
  const auto small = x < K::smallest_normal;
  V exponent, f;
  split<V>(small ? x * K::subnormal_scale : x, exponent, f);
  exponent = small ? exponent - S(K::subnormal_shift) : exponent;
  const V finite = fma<V>(exponent, K::ln2, log_1_plus(f));
  const V inf = splat<V>(S(INFINITY));
  const V edge = x == S(0) ? -inf : x > S(0) ? x : splat<V>(S(NAN));
  return ((x > S(0)) & (x < inf)) ? finite : edge;
}

// ln((w + 1/2) / 2^32) for a random 32-bit word w: finite for every word and accurate near both ends.
template <class V>
FASTIB_INLINE V log_uniform(Uint<V> word) {
  using S = Scalar<V>;
  using K = Constants<S>;
  const V x = to_real<V>(Int<V>(word)) + S(0.5);
  V exponent, f;
  split<V>(x, exponent, f);
  exponent -= S(32);
  if constexpr (sizeof(S) == 4) {
    // For w >= 2^31, x is w + 1/2 - 2^32, and keeps the digits that 1 - u would lose.
    const auto high = Int<V>(word) < 0;
    const V from_one = x * S(0x1p-32);
    const auto below = from_one < S(-0.29289322);  // u < sqrt(1/2): take 2 u instead
    f = high ? (below ? fma<V>(from_one, S(2), S(1)) : from_one) : f;
    exponent = high ? (below ? splat<V>(S(-1)) : splat<V>(S(0))) : exponent;
  }
  return fma<V>(exponent, K::ln2, log_1_plus(f));
}

// Sine and cosine of 2 pi w / 2^32 for a 32-bit word w; the reduction to an octant is exact, in integers.
template <class V>
FASTIB_INLINE void sine_cosine_turn(Uint<V> word, V& sine, V& cosine) {
  using S = Scalar<V>;
  using K = Constants<S>;
  using U = Scalar<Uint<V>>;
  constexpr int bits = 8 * sizeof(S);
  constexpr U eighth = U(1) << (bits - 3), quarter = eighth << 1, half = quarter << 1;
  const Uint<V> turn = (word << (bits - 32)) + eighth;  // the quadrant in the two highest bits
  const Int<V> in_quadrant = Int<V>((turn & (quarter - 1)) >> (bits - 32)) - (1 << 29);
  const V x = to_real<V>(in_quadrant) * S(0x1.921fb54442d18p0 * 0x1p-30);
  const V square = x * x;
  const V s = fma<V>(x * square, polynomial(K::sin(), square), x);
  const V c = fma<V>(square * square, polynomial(K::cos(), square), fma<V>(square, S(-0.5), S(1)));
  const auto odd = Int<V>(turn << 1) < 0;
  sine = as_real<V>(as_int(odd ? c : s) ^ Int<V>(turn & half));
  cosine = as_real<V>(as_int(odd ? s : c) ^ Int<V>((turn + quarter) & half));
}
