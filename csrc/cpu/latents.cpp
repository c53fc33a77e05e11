// Reads tensors of any strides and dtype into columns of float.
#include "latents.h"

namespace fastib {

namespace {

constexpr int64_t kRowsAtOnce = 256;  // a few dimensions of them fit the first-level cache

// Beyond these a square, or a precision, may overflow float.
constexpr float kLargestPosition = 0x1p60f, kLargestLogvar = 80;

template <class T>
bool read(const Matrix& from, int64_t rows, int64_t dims, float largest, float* to) {
  std::vector<char> tame(size_t((rows + kRowsAtOnce - 1) / kRowsAtOnce));
  run_tasks(
      [&](int64_t chunk) {
        bool all = true;
        const int64_t begin = chunk * kRowsAtOnce, end = std::min(begin + kRowsAtOnce, rows);
        for (int64_t d = 0; d < dims; ++d) {
          for (int64_t i = begin; i < end; ++i) {
            const auto x = float(from.at<T>(i, d));
            all &= std::abs(x) <= largest;  // false for NaN
            to[d * rows + i] = x;
          }
        }
        tame[size_t(chunk)] = char(all);
      },
      int64_t(tame.size()));
  return std::find(tame.begin(), tame.end(), char(0)) == tame.end();
}

bool read(ScalarType dtype, const Matrix& from, int64_t rows, int64_t dims, float largest, const Scratch& to) {
  float* out = to.as<float>();
  if (dtype == ScalarType::Float) return read<float>(from, rows, dims, largest, out);
  if (dtype == ScalarType::BFloat16) return read<torch::headeronly::BFloat16>(from, rows, dims, largest, out);
  return read<torch::headeronly::Half>(from, rows, dims, largest, out);
}

}  // namespace

Latents::Latents(const Mixture& m)
    : rows(m.rows),
      components(m.components),
      dims(m.dims),
      row_offset(m.row_offset),
      own_weight(m.own),
      z(rows * dims * int64_t(sizeof(float))),
      mu(components * dims * int64_t(sizeof(float))),
      logvar(components * dims * int64_t(sizeof(float))) {
  tame = read(m.dtype, m.z, rows, dims, kLargestPosition, z) &&
         read(m.dtype, m.mu, components, dims, kLargestPosition, mu) &&
         read(m.dtype, m.logvar, components, dims, kLargestLogvar, logvar);
}

}  // namespace fastib
