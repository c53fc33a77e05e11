// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") and Box-Muller.
//
// Noise is a pure function of (seed, offset, element): element e takes word e % 4 of the counter
// (e / 4, offset), each 64 bits wide, under the key seed. Words (0, 1) and (2, 3) each make two normals:
// radius from the first, angle from the second, cosine before sine.
//
// A word lives in the low half of a 64-bit lane W, whose high half is unspecified between rounds: that is the form in
// which a vector unit multiplies 32 x 32 -> 64 bits. Included once per instruction set, like math.h. The includer has
// defined multiply_low(W, uint32_t), the 64-bit product of the low half.

template <class W>
struct PhiloxWords {
  W w0, w1, w2, w3;
};

template <class W>
FASTIB_INLINE PhiloxWords<W> philox4x32_10(PhiloxWords<W> c, uint64_t seed) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const W p0 = multiply_low(c.w0, 0xD2511F53u), p1 = multiply_low(c.w2, 0xCD9E8D57u);
    c = {(p1 >> 32) ^ c.w1 ^ uint64_t(k0), p1, (p0 >> 32) ^ c.w3 ^ uint64_t(k1), p0};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// The words of counters `group`, one per lane.
template <class W>
FASTIB_INLINE PhiloxWords<W> philox_words(W group, uint64_t seed, uint64_t offset) {
  const W zero = group ^ group;
  return philox4x32_10<W>({group, group >> 32, zero + (offset & 0xffffffffu), zero + (offset >> 32)}, seed);
}

// Two independent standard normals from two words.
template <class V>
FASTIB_INLINE void box_muller(Uint<V> radius_word, Uint<V> angle_word, V& first, V& second) {
  const V radius = square_root(log_uniform<V>(radius_word) * Scalar<V>(-2));
  V sine, cosine;
  sine_cosine_turn<V>(angle_word, sine, cosine);
  first = radius * cosine;
  second = radius * sine;
}
