// The random words themselves, so that backends can be compared bit for bit: word k of counter `start + i` at [i, k].
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct PhiloxWordsArguments {
  const int64_t* rng;
  uint64_t start;
  int64_t count;
  int64_t* words;
};
}  // namespace fastib

#define FASTIB_KERNELS "philox_words.cpp"
#include "each_isa.h"

namespace fastib {

Tensor philox_words(const Tensor& rng, int64_t start, int64_t count) {
  Tensor words = output({count, 4}, ScalarType::Long, rng);
  const PhiloxWordsArguments a{static_cast<const int64_t*>(rng.const_data_ptr()), uint64_t(start), count,
                               static_cast<int64_t*>(words.data_ptr())};
  run_chunks(FASTIB_KERNEL(forward), a, chunks_of(count));
  return words;
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) { m.impl("philox_words", FASTIB_BOX(philox_words)); }

}  // namespace fastib

#else

static void forward(const PhiloxWordsArguments& a, int64_t chunk) {
  using W = Vec<uint64_t>;
  constexpr int lanes = kLanes<uint64_t>;
  for_each_block(chunk, a.count, [&](int64_t begin, int64_t n) {
    for (int64_t i = begin; i < begin + n; i += lanes) {
      W group;
      for (int lane = 0; lane < lanes; ++lane) group[lane] = a.start + uint64_t(i + lane);
      const PhiloxWords<W> w = philox_words<W>(group, uint64_t(a.rng[0]), uint64_t(a.rng[1]));
      for (int lane = 0; lane < lanes && i + lane < begin + n; ++lane) {
        int64_t* out = a.words + 4 * (i + lane);
        out[0] = int64_t(w.w0[lane] & 0xffffffffu);
        out[1] = int64_t(w.w1[lane] & 0xffffffffu);
        out[2] = int64_t(w.w2[lane] & 0xffffffffu);
        out[3] = int64_t(w.w3[lane] & 0xffffffffu);
      }
    }
  });
}

#endif
