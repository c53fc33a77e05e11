// Log densities of points under a mixture of diagonal Gaussians, jointly and for each dimension.
#ifndef FASTIB_ISA
#include "near_linear.h"

namespace fastib {
struct AggregatePosteriorArguments {
  Mixture* mixture;
  Matrix log_qz, log_qz_marginals, saved;  // log_qz is null where it is not wanted
};

struct AggregatePosteriorBackwardArguments {
  Mixture* mixture;
  PartialGradients* partial;
  Matrix grad_log_qz, grad_log_qz_marginals, saved;
  Matrix d_z, d_mu, d_logvar;
};
}  // namespace fastib

#define FASTIB_KERNELS "aggregate_posterior.cpp"
#include "each_isa.h"

namespace fastib {

namespace {

void near_linear_forward(const Mixture& m, const Latents& x, const Matrix& log_qz, const Matrix& log_qz_marginals,
                         const Tensor& saved) {
  const NearLinearSums sums(x, saved);
  std::vector<double> logs(size_t(x.rows * x.dims));
  marginals_forward({&x, sums.sums, sums.slopes, logs.data()});
  if (log_qz) joint_forward({&x, sums.largest, sums.joint_sums, nullptr});
  else std::fill_n(sums.largest, 2 * x.rows, 0.0f);
  const double unit = m.log_base - 0.5 * kLog2Pi;
  run_tasks(
      [&](int64_t chunk) {
        for (int64_t i = chunk * kRowsPerChunk; i < std::min((chunk + 1) * kRowsPerChunk, x.rows); ++i) {
          if (log_qz) log_qz.at<float>(i) = float(sums.log_joint(i) + m.log_base - 0.5 * kLog2Pi * double(x.dims));
          for (int64_t d = 0; d < x.dims; ++d)
            log_qz_marginals.at<float>(i, d) = float(logs[size_t(d * x.rows + i)] + unit);
        }
      },
      m.row_chunks());
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> aggregate_posterior(const Tensor& z, const Tensor& mu, const Tensor& logvar,
                                                       const MaybeTensor& log_weights, int64_t estimator,
                                                       int64_t dataset_size, double w_self, double w_other,
                                                       int64_t row_offset, int64_t algorithm, bool joint) {
  Mixture m(z, mu, logvar, log_weights, weights_of(estimator, dataset_size, mu.size(0), {w_self, w_other}), row_offset);
  const ScalarType dtype = accumulate_type(m.dtype);
  Tensor log_qz = output({joint ? m.rows : 0}, dtype, z), log_qz_marginals = output({m.rows, m.dims}, dtype, z);
  Tensor saved = output({m.rows, m.saved_columns()}, dtype, z);
  const Matrix to_log_qz = joint ? Matrix(log_qz) : Matrix();
  if (const auto latents = near_linear_latents(m, algorithm, joint)) {
    near_linear_forward(m, *latents, to_log_qz, Matrix(log_qz_marginals), saved);
  } else {
    FASTIB_PACK(m);
    const AggregatePosteriorArguments a{&m, to_log_qz, Matrix(log_qz_marginals), Matrix(saved)};
    run_chunks_of_pairs(FASTIB_KERNEL_OF(m.dtype, forward), a, m.row_chunks(), m.weights_given());
  }
  return {log_qz, log_qz_marginals, saved};
}

std::tuple<Tensor, Tensor, Tensor> aggregate_posterior_backward(
    const MaybeTensor& grad_log_qz, const MaybeTensor& grad_log_qz_marginals, const Tensor& z, const Tensor& mu,
    const Tensor& logvar, const MaybeTensor& log_weights, const Tensor& saved, int64_t estimator, int64_t dataset_size,
    double w_self, double w_other, int64_t row_offset, int64_t algorithm, bool joint) {
  Mixture m(z, mu, logvar, log_weights, weights_of(estimator, dataset_size, mu.size(0), {w_self, w_other}), row_offset);
  Tensor d_z = output_like(z), d_mu = output_like(mu), d_logvar = output_like(logvar);
  const Matrix by_joint = joint ? Matrix(grad_log_qz) : Matrix(), by_marginals(grad_log_qz_marginals);
  if (const auto latents = near_linear_latents(m, algorithm, joint)) {
    const NearLinearSums sums(*latents, saved);
    NearLinearGradients gradients(*latents);
    if (by_marginals) gradients.add_marginals(sums, by_marginals.transposed());
    if (by_joint) {
      std::vector<float> by_density(size_t(m.rows)), by_information(size_t(m.rows));
      for (int64_t i = 0; i < m.rows; ++i) by_density[size_t(i)] = by_joint.at<float>(i);
      gradients.add_joint(sums, by_density, by_information);
    }
    gradients.write(m.dtype, Matrix(d_z), Matrix(d_mu), Matrix(d_logvar));
  } else {
    PartialGradients partial(m);
    FASTIB_PACK(m);
    const AggregatePosteriorBackwardArguments a{&m,          &partial,     by_joint,        by_marginals, Matrix(saved),
                                                Matrix(d_z), Matrix(d_mu), Matrix(d_logvar)};
    FASTIB_BACKWARD(m, partial, a);
  }
  return {d_z, d_mu, d_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("aggregate_posterior", FASTIB_BOX(aggregate_posterior));
  m.impl("aggregate_posterior_backward", FASTIB_BOX(aggregate_posterior_backward));
}

}  // namespace fastib

#else
#include "mixture_tiles.h"

#include "mixture_forward.h"

#include "mixture_backward.h"

template <class T>
static void forward(const AggregatePosteriorArguments& a, int64_t chunk) {
  using S = Compute<T>;
  mixture_forward<T>(*a.mixture, chunk, a.saved.data, [&](int64_t row, const S*, const PointResult<S>& result) {
    if (a.log_qz) a.log_qz.at<S>(row) = S(result.log_joint);
    for (int64_t d = 0; d < a.mixture->dims; ++d) a.log_qz_marginals.at<S>(row, d) = S(result.log_marginals[d]);
  });
}

template <class S>
FASTIB_INLINE void gradients_of_row(const AggregatePosteriorBackwardArguments& a, int64_t row, S& joint, S& relative,
                                    S* marginals) {
  relative = 0;
  joint = a.grad_log_qz ? a.grad_log_qz.at<S>(row) : S(0);
  for (int64_t d = 0; d < a.mixture->dims; ++d)
    marginals[d] = a.grad_log_qz_marginals ? a.grad_log_qz_marginals.at<S>(row, d) : S(0);
}

template <class T>
static void backward(const AggregatePosteriorBackwardArguments& a, int64_t task) {
  using S = Compute<T>;
  mixture_backward<T>(
      *a.mixture, *a.partial, a.saved.data, task,
      [&](int64_t row, S& joint, S& relative, S* marginals) { gradients_of_row(a, row, joint, relative, marginals); });
}

template <class T>
static void backward_far(const AggregatePosteriorBackwardArguments& a, int64_t group) {
  using S = Compute<T>;
  far_backward<T>(*a.mixture, *a.partial, a.saved.data, group, [&](int64_t row, S& joint, S& relative, S* marginals) {
    gradients_of_row(a, row, joint, relative, marginals);
  });
}

template <class T>
static void write_rows(const AggregatePosteriorBackwardArguments& a, int64_t chunk) {
  finish_rows<T>(*a.mixture, *a.partial, a.d_z, chunk, [](int64_t, int64_t, double sum) { return sum; });
}

template <class T>
static void write_columns(const AggregatePosteriorBackwardArguments& a, int64_t chunk) {
  finish_columns<T>(*a.mixture, *a.partial, a.d_mu, a.d_logvar, chunk);
}

#endif
