// The vector types of one instruction set, and the handful of operations that GCC's vector extensions lack.
// Arithmetic, comparison, selection, shifts and casts are the compiler's own: `a * b + c`, `mask ? a : b`.

constexpr int kVectorBytes = FASTIB_VECTOR_BYTES;

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class S>
constexpr int kLanes = kVectorBytes / int(sizeof(S));

template <class V>
using Scalar = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V>()[0])>>;
template <class V>
using Int = Vec<std::conditional_t<sizeof(Scalar<V>) == 4, int32_t, int64_t>>;
template <class V>
using Uint = Vec<std::conditional_t<sizeof(Scalar<V>) == 4, uint32_t, uint64_t>>;

template <class V>
FASTIB_INLINE V splat(Scalar<V> x) {
  return x - V{};  // x + 0 would be an instruction more, since it is not x where that is -0
}

template <class V>
FASTIB_INLINE Int<V> as_int(V x) {
  return (Int<V>)x;
}

template <class V>
FASTIB_INLINE V as_real(Int<V> x) {
  return (V)x;
}

// Tensors hold T; kernels compute in Compute<T>.
using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;
template <class T>
using Compute = std::conditional_t<sizeof(T) == 2, float, T>;

template <class V, class T>
FASTIB_INLINE V load(const T* p) {
  V v;
  if constexpr (std::is_same_v<T, Scalar<V>>) {
    std::memcpy(&v, p, sizeof(V));
  } else {  // intrinsics: GCC splits the vector conversion from 16 bits into five instructions
#if FASTIB_VECTOR_BYTES == 32
    const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if constexpr (std::is_same_v<T, BFloat16>) v = (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16);
    else v = (V)_mm256_cvtph_ps(h);
#elif FASTIB_VECTOR_BYTES == 64
    const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    if constexpr (std::is_same_v<T, BFloat16>) {
      const auto spread = (__m512i)(Vec<int32_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} << 16);
      v = (V)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, spread, _mm512_castsi256_si512(h));
    } else v = (V)_mm512_cvtph_ps(h);
#else
    for (int i = 0; i < kLanes<float>; ++i) v[i] = float(p[i]);
#endif
  }
  return v;
}

// To the nearest bfloat16, ties to even, in the high halves: the low ones are to be dropped. A NaN stays one whose low
// half is 0, as in all that come from 16 bits or from an operation on numbers. What is subtracted is -0x7fff, or
// -0x8000 where the high half is odd: so written, AVX-512 has one instruction for all but the shift and the difference.
FASTIB_INLINE Vec<uint32_t> round_to_bfloat16(Vec<float> v) {
  const auto bits = (Vec<uint32_t>)v;
  return bits - ((~(bits >> 16) & 1u) | 0xffff8000u);
}

template <class V, class T>
FASTIB_INLINE void store(T* p, V v) {
  if constexpr (std::is_same_v<T, Scalar<V>>) {
    std::memcpy(p, &v, sizeof(V));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    const Vec<uint32_t> r = round_to_bfloat16(v);
#if FASTIB_VECTOR_BYTES == 32
    const auto narrow = (__m256i)(r >> 16);
    const __m128i low = _mm256_castsi256_si128(narrow), high = _mm256_extracti128_si256(narrow, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
#elif FASTIB_VECTOR_BYTES == 64
    typedef int16_t Words __attribute__((vector_size(64)));
    const auto high = (__m512i)(Words{1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31});
    const __m512i halves = _mm512_maskz_permutexvar_epi16(~__mmask32(0), high, (__m512i)r);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(halves));
#else
    for (int i = 0; i < kLanes<float>; ++i) p[i].x = uint16_t(r[i] >> 16);
#endif
  } else {
#if FASTIB_VECTOR_BYTES == 32
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#elif FASTIB_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes<float>; ++i) p[i] = Half(v[i]);
#endif
  }
}

// Exact for the integers that occur: any int32 rounds once, an int64 stays below 2^51.
template <class V>
FASTIB_INLINE V to_real(Int<V> x) {
  if constexpr (sizeof(Scalar<V>) == 4) {
    return __builtin_convertvector(x, V);
  } else {
    const V magic = splat<V>(0x1.8p52);
    return as_real<V>(x + as_int(magic)) - magic;
  }
}

template <class V>
FASTIB_INLINE V square_root(V x) {
  constexpr bool is_float = sizeof(Scalar<V>) == 4;
#ifdef __x86_64__
#if FASTIB_VECTOR_BYTES == 16
  if constexpr (is_float) return (V)_mm_sqrt_ps((__m128)x);
  else return (V)_mm_sqrt_pd((__m128d)x);
#elif FASTIB_VECTOR_BYTES == 32
  if constexpr (is_float) return (V)_mm256_sqrt_ps((__m256)x);
  else return (V)_mm256_sqrt_pd((__m256d)x);
#else
  if constexpr (is_float) return (V)_mm512_sqrt_ps((__m512)x);
  else return (V)_mm512_sqrt_pd((__m512d)x);
#endif
#else
  for (int i = 0; i < kLanes<Scalar<V>>; ++i) x[i] = is_float ? __builtin_sqrtf(x[i]) : __builtin_sqrt(x[i]);
  return x;
#endif
}

// a * b + c, rounded once where the instruction set can. Contraction by the compiler is off: which products it fuses
// may differ from one use of a formula to the next, and the same formula must give the same bits everywhere.
template <class V>
FASTIB_INLINE V fma(V a, V b, V c) {
#if defined(__x86_64__) && FASTIB_VECTOR_BYTES == 32
  if constexpr (sizeof(Scalar<V>) == 4) return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  else return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__x86_64__) && FASTIB_VECTOR_BYTES == 64
  if constexpr (sizeof(Scalar<V>) == 4) return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  else return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#else
  return a * b + c;
#endif
}

template <class V>
FASTIB_INLINE V fma(V a, Scalar<V> b, V c) {
  return fma<V>(a, splat<V>(b), c);
}

template <class V>
FASTIB_INLINE V fma(V a, V b, Scalar<V> c) {
  return fma<V>(a, b, splat<V>(c));
}

template <class V>
FASTIB_INLINE V fma(V a, Scalar<V> b, Scalar<V> c) {
  return fma<V>(a, splat<V>(b), splat<V>(c));
}

// x as the nearest integer and a rest in [-1/2, 1/2], to make 2^x of.
template <class V>
struct Rounded {
  V whole, rest;
};

// AVX-512 has instructions for it, and for the factor 2^whole, underflow and NaN included. Their forms with a full mask
// are the plain ones without GCC's warning of an uninitialised value in its own header.
#if FASTIB_VECTOR_BYTES == 64

template <class V>
FASTIB_INLINE Rounded<V> round_to_integer(V x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  V whole;
  if constexpr (sizeof(Scalar<V>) == 4) whole = (V)_mm512_maskz_roundscale_ps(__mmask16(~0), (__m512)x, nearest);
  else whole = (V)_mm512_maskz_roundscale_pd(__mmask8(~0), (__m512d)x, nearest);
  return {whole, x - whole};
}

template <class V>
FASTIB_INLINE V times_power_of_two(V p, const Rounded<V>& r) {
  if constexpr (sizeof(Scalar<V>) == 4) return (V)_mm512_maskz_scalef_ps(__mmask16(~0), (__m512)p, (__m512)r.whole);
  else return (V)_mm512_maskz_scalef_pd(__mmask8(~0), (__m512d)p, (__m512d)r.whole);
}

#else

// The larger of x and a bound, and NaN where x is: an instruction for which GCC takes two.
template <class V>
FASTIB_INLINE V at_least(V x, Scalar<V> bound) {
  const V b = splat<V>(bound);
#ifdef __x86_64__
  constexpr bool is_float = sizeof(Scalar<V>) == 4;
#if FASTIB_VECTOR_BYTES == 16
  if constexpr (is_float) return (V)_mm_max_ps((__m128)b, (__m128)x);
  else return (V)_mm_max_pd((__m128d)b, (__m128d)x);
#else
  if constexpr (is_float) return (V)_mm256_max_ps((__m256)b, (__m256)x);
  else return (V)_mm256_max_pd((__m256d)b, (__m256d)x);
#endif
#else
  return x < b ? b : x;
#endif
}

// Here `whole` is the integer plus 1.5 times 2^mantissa, in whose low bits the integer can be read.
template <class V>
FASTIB_INLINE Rounded<V> round_to_integer(V x) {
  constexpr bool is_float = sizeof(Scalar<V>) == 4;
  constexpr Scalar<V> shift = is_float ? 0x1.8p23 : 0x1.8p52, least = is_float ? -127 : -1023;
  x = at_least<V>(x, least);  // 2^least comes out as 0
  const V shifted = x + shift;
  return {shifted, x - (shifted - shift)};
}

template <class V>
FASTIB_INLINE V times_power_of_two(V p, const Rounded<V>& r) {
  constexpr int mantissa_bits = sizeof(Scalar<V>) == 4 ? 23 : 52;
  return (V)(((Uint<V>)r.whole << mantissa_bits) + (Uint<V>)p);
}

#endif

#if !defined(__x86_64__) || FASTIB_VECTOR_BYTES < 64
template <class V>
FASTIB_INLINE bool any(Int<V> mask) {
#if defined(__x86_64__) && FASTIB_VECTOR_BYTES == 16
  return _mm_movemask_epi8((__m128i)mask) != 0;
#elif defined(__x86_64__)
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
  Scalar<Int<V>> seen = 0;
  for (int i = 0; i < kLanes<Scalar<V>>; ++i) seen |= mask[i];
  return seen != 0;
#endif
}
#endif

// Whether any lane is beyond -bound or bound, or is NaN.
template <class V>
FASTIB_INLINE bool any_beyond(V x, Scalar<V> bound) {
  const V size = as_real<V>(as_int(x) & ~as_int(splat<V>(Scalar<V>(-0.0)))), limit = splat<V>(bound);
#if defined(__x86_64__) && FASTIB_VECTOR_BYTES == 64
  if constexpr (sizeof(Scalar<V>) == 4) return _mm512_cmp_ps_mask((__m512)size, (__m512)limit, _CMP_NLE_UQ) != 0;
  else return _mm512_cmp_pd_mask((__m512d)size, (__m512d)limit, _CMP_NLE_UQ) != 0;
#else
  return any<V>(!(size <= limit));
#endif
}

// Whether any lane of a is less than that of b.
template <class V>
FASTIB_INLINE bool any_less(V a, V b) {
#if defined(__x86_64__) && FASTIB_VECTOR_BYTES == 64
  if constexpr (sizeof(Scalar<V>) == 4) return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ) != 0;
  else return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ) != 0;
#else
  return any<V>(a < b);
#endif
}

// The full product of each lane's low 32 bits with m.
FASTIB_INLINE Vec<uint64_t> multiply_low(Vec<uint64_t> x, uint32_t m) {
#if defined(__x86_64__) && FASTIB_VECTOR_BYTES == 16
  return (Vec<uint64_t>)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(m));
#elif defined(__x86_64__) && FASTIB_VECTOR_BYTES == 32
  return (Vec<uint64_t>)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(m));
#elif defined(__x86_64__)
  return (Vec<uint64_t>)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(m));
#else
  return (x & 0xffffffffu) * uint64_t(m);
#endif
}

// {a0, b0, a1, b1, ...}, over two vectors.
template <class V, size_t... I>
FASTIB_INLINE void interleave(V a, V b, V& low, V& high, std::index_sequence<I...>) {
  constexpr int n = int(sizeof...(I));
  low = __builtin_shufflevector(a, b, (int(I) / 2 + (int(I) % 2) * n)...);
  high = __builtin_shufflevector(a, b, (int(I) / 2 + n / 2 + (int(I) % 2) * n)...);
}

template <class S>
FASTIB_INLINE S sum_lanes(Vec<S> v) {
  S sum = 0;
  for (int i = 0; i < kLanes<S>; ++i) sum += v[i];
  return sum;
}

// The same sum in another order: quarters are added while they are vectors. (By way of
// memory it would keep the sums of a loop there.)
template <class S>
FASTIB_INLINE S fold_lanes(Vec<S> v) {
  if constexpr (kLanes<S> < 4) {
    return sum_lanes<S>(v);
  } else {
    auto sum = __builtin_shufflevector(v, v, 0, 1, 2, 3);
    if constexpr (kLanes<S> >= 8) sum += __builtin_shufflevector(v, v, 4, 5, 6, 7);
    if constexpr (kLanes<S> >= 16) {
      sum += __builtin_shufflevector(v, v, 8, 9, 10, 11);
      sum += __builtin_shufflevector(v, v, 12, 13, 14, 15);
    }
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
  }
}
