// The choice of the algorithm, and its way from and to tensors.
#include "near_linear.h"

namespace fastib {

namespace {

// Whether the near-linear algorithm is the faster one, from shapes alone: the same for every call of a training, and
// for every number of threads. Measured, forward and backward, on the least favourable of ten kinds of posteriors. With
// few dimensions the joint gains less from pairs that it leaves out than it costs to find them.
bool is_faster(const Mixture& m, bool joint) {
  const int64_t points = std::min(m.rows, m.components), enough = !joint ? 1024 : m.dims >= 6 ? 1536 : 4096;
  return points >= enough;
}

constexpr int64_t kMostPoints = int64_t(1) << 30;  // that 32 bits number

template <class T>
void write_as(const std::vector<float>& columns, int64_t rows, int64_t dims, const Matrix& to) {
  constexpr int64_t at_once = 256;
  run_tasks(
      [&](int64_t chunk) {
        for (int64_t d = 0; d < dims; ++d)
          for (int64_t i = chunk * at_once; i < std::min((chunk + 1) * at_once, rows); ++i)
            to.at<T>(i, d) = T(columns[size_t(d * rows + i)]);
      },
      (rows + at_once - 1) / at_once);
}

void write_columns(ScalarType dtype, const std::vector<float>& columns, int64_t rows, int64_t dims, const Matrix& to) {
  if (dtype == ScalarType::Float) write_as<float>(columns, rows, dims, to);
  else if (dtype == ScalarType::BFloat16) write_as<torch::headeronly::BFloat16>(columns, rows, dims, to);
  else write_as<torch::headeronly::Half>(columns, rows, dims, to);
}

}  // namespace

std::unique_ptr<Latents> near_linear_latents(const Mixture& m, int64_t algorithm, bool joint) {
  if (Algorithm(algorithm) == Algorithm::direct) return nullptr;
  if (m.is_double() || m.log_weights || m.by_logarithm || m.rows * m.dims == 0) return nullptr;
  if (std::max(m.rows, m.components) > kMostPoints) return nullptr;
  if (Algorithm(algorithm) == Algorithm::automatic && !is_faster(m, joint)) return nullptr;
  auto latents = std::make_unique<Latents>(m);
  return latents->tame ? std::move(latents) : nullptr;
}

NearLinearGradients::NearLinearGradients(const Latents& latents)
    : x(latents),
      d_z(size_t(x.rows * x.dims)),
      d_mu(size_t(x.components * x.dims)),
      d_logvar(size_t(x.components * x.dims)) {}

void NearLinearGradients::add_marginals(const NearLinearSums& saved, const Matrix& grads) {
  marginals_backward({&x, saved.sums, saved.slopes, grads, d_z.data(), d_mu.data(), d_logvar.data()});
}

void NearLinearGradients::add_joint(const NearLinearSums& saved, const std::vector<float>& by_density,
                                    const std::vector<float>& by_information) {
  joint_backward({&x, saved.largest, saved.joint_sums, by_density.data(), by_information.data(), d_z.data(),
                  d_mu.data(), d_logvar.data()});
}

void NearLinearGradients::write(ScalarType dtype, const Matrix& z, const Matrix& mu, const Matrix& logvar) const {
  write_columns(dtype, d_z, x.rows, x.dims, z);
  write_columns(dtype, d_mu, x.components, x.dims, mu);
  write_columns(dtype, d_logvar, x.components, x.dims, logvar);
}

}  // namespace fastib
