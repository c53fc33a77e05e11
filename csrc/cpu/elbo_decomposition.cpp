// Mutual information, total correlation and dimension-wise KL of each sample, reduced as asked.
#ifndef FASTIB_ISA
#include "near_linear.h"

namespace fastib {
struct ElboDecompositionArguments {
  Mixture* mixture;
  Matrix saved;
  double* terms;  // [3, rows]
};

struct ElboDecompositionBackwardArguments {
  Mixture* mixture;
  PartialGradients* partial;
  Matrix grad_mi, grad_tc, grad_kl, saved;
  double scale;
  Matrix d_z, d_mu, d_logvar;
};

// The terms of one sample, of the sums of its logarithms and of its squares. `own` is log q(z|x) - log q(z).
inline void set_terms(double* terms, int64_t rows, int64_t row, double own, double log_joint, double log_marginals,
                      double squares, int64_t dims) {
  terms[row] = own;
  terms[rows + row] = log_joint - log_marginals;
  terms[2 * rows + row] = log_marginals + 0.5 * (squares + kLog2Pi * double(dims));
}

struct TermGradients {
  double mi, tc, kl;
};

inline TermGradients gradients_of_terms(const ElboDecompositionBackwardArguments& a, int64_t row) {
  const auto of = [&](const Matrix& grad) {
    if (!grad) return 0.0;
    return a.scale * (a.mixture->is_double() ? grad.at<double>(row) : double(grad.at<float>(row)));
  };
  return {of(a.grad_mi), of(a.grad_tc), of(a.grad_kl)};
}
}  // namespace fastib

#define FASTIB_KERNELS "elbo_decomposition.cpp"
#include "each_isa.h"

namespace fastib {

namespace {

template <class S>
void reduce_terms(const std::vector<double>& terms, int64_t rows, bool keep, double scale, const Tensor& out, int k) {
  const double* term = terms.data() + k * rows;
  S* values = static_cast<S*>(out.data_ptr());
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    if (keep) values[i] = S(term[i] * scale);
    else sum += term[i];
  }
  if (!keep) *values = S(sum * scale);
}

// The gradient of a term, which a reduction spreads over all rows.
Matrix row_gradient(const MaybeTensor& grad, int64_t reduction) {
  Matrix g;
  if (!grad) return g;
  g.data = static_cast<char*>(grad->data_ptr());
  if (ReductionKind(reduction) == ReductionKind::none) g.row = grad->stride(0);
  return g;
}

void near_linear_forward(const Mixture& m, const Latents& x, const Tensor& saved, double* terms) {
  const NearLinearSums sums(x, saved);
  std::vector<double> logs(size_t(x.rows * x.dims));
  std::vector<float> own(size_t(x.rows));
  marginals_forward({&x, sums.sums, sums.slopes, logs.data()});
  joint_forward({&x, sums.largest, sums.joint_sums, own.data()});
  const double unit = (m.log_base - 0.5 * kLog2Pi) * double(x.dims);
  run_tasks(
      [&](int64_t chunk) {
        const int64_t begin = chunk * kRowsPerChunk, end = std::min(begin + kRowsPerChunk, x.rows);
        double log_marginals[kRowsPerChunk] = {}, squares[kRowsPerChunk] = {};
        for (int64_t d = 0; d < x.dims; ++d) {
          const float* z = x.z_of(d);
          const double* log = logs.data() + d * x.rows;
          for (int64_t i = begin; i < end; ++i) {
            log_marginals[i - begin] += log[i];
            squares[i - begin] += double(z[i]) * double(z[i]);
          }
        }
        for (int64_t i = begin; i < end; ++i) {
          const double own_log = kLn2 * (double(own[size_t(i)]) - double(sums.largest[i])) -
                                 std::log(double(sums.joint_sums[i])) - m.log_base;
          const double log_joint = sums.log_joint(i) + m.log_base - 0.5 * kLog2Pi * double(x.dims);
          set_terms(terms, x.rows, i, own_log, log_joint, log_marginals[i - begin] + unit, squares[i - begin], x.dims);
        }
      },
      m.row_chunks());
}

void near_linear_backward(const ElboDecompositionBackwardArguments& a, const Latents& x, const Tensor& saved) {
  const NearLinearSums sums(x, saved);
  NearLinearGradients gradients(x);
  std::vector<float> by_marginals, by_density, by_information, by_prior;
  for (int64_t i = 0; i < x.rows; ++i) {
    const TermGradients g = gradients_of_terms(a, i);
    by_marginals.push_back(float(g.kl - g.tc));
    by_density.push_back(float(g.tc));
    by_information.push_back(float(g.mi));
    by_prior.push_back(float(g.kl));
  }
  Matrix of_rows;
  of_rows.data = reinterpret_cast<char*>(by_marginals.data());
  of_rows.column = 1;
  gradients.add_marginals(sums, of_rows);
  gradients.add_joint(sums, by_density, by_information);
  for (int64_t d = 0; d < x.dims; ++d)
    for (int64_t i = 0; i < x.rows; ++i) gradients.d_z[size_t(d * x.rows + i)] += by_prior[size_t(i)] * x.z_of(d)[i];
  gradients.write(a.mixture->dtype, a.d_z, a.d_mu, a.d_logvar);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> elbo_decomposition(const Tensor& z, const Tensor& mu, const Tensor& logvar,
                                                              int64_t estimator, int64_t dataset_size,
                                                              int64_t row_offset, int64_t reduction, int64_t divisor,
                                                              int64_t algorithm) {
  Mixture m(z, mu, logvar, std::nullopt, weights_of(estimator, dataset_size, mu.size(0)), row_offset);
  const ScalarType dtype = accumulate_type(m.dtype);
  const bool keep = ReductionKind(reduction) == ReductionKind::none;
  const auto term = [&] { return keep ? output({m.rows}, dtype, z) : output({}, dtype, z); };
  Tensor mi = term(), tc = term(), kl = term(), saved = output({m.rows, m.saved_columns()}, dtype, z);
  std::vector<double> terms(size_t(3 * m.rows));
  if (const auto latents = near_linear_latents(m, algorithm, true)) {
    near_linear_forward(m, *latents, saved, terms.data());
  } else {
    FASTIB_PACK(m);
    const ElboDecompositionArguments a{&m, Matrix(saved), terms.data()};
    run_chunks_of_pairs(FASTIB_KERNEL_OF(m.dtype, forward), a, m.row_chunks(), m.weights_given());
  }
  const Tensor* outputs[] = {&mi, &tc, &kl};
  for (int k = 0; k < 3; ++k) {
    if (m.is_double()) reduce_terms<double>(terms, m.rows, keep, scale_of(divisor), *outputs[k], k);
    else reduce_terms<float>(terms, m.rows, keep, scale_of(divisor), *outputs[k], k);
  }
  return {mi, tc, kl, saved};
}

std::tuple<Tensor, Tensor, Tensor> elbo_decomposition_backward(const MaybeTensor& grad_mi, const MaybeTensor& grad_tc,
                                                               const MaybeTensor& grad_kl, const Tensor& z,
                                                               const Tensor& mu, const Tensor& logvar,
                                                               const Tensor& saved, int64_t estimator,
                                                               int64_t dataset_size, int64_t row_offset,
                                                               int64_t reduction, int64_t divisor, int64_t algorithm) {
  Mixture m(z, mu, logvar, std::nullopt, weights_of(estimator, dataset_size, mu.size(0)), row_offset);
  Tensor d_z = output_like(z), d_mu = output_like(mu), d_logvar = output_like(logvar);
  ElboDecompositionBackwardArguments a{&m,
                                       nullptr,
                                       row_gradient(grad_mi, reduction),
                                       row_gradient(grad_tc, reduction),
                                       row_gradient(grad_kl, reduction),
                                       Matrix(saved),
                                       scale_of(divisor),
                                       Matrix(d_z),
                                       Matrix(d_mu),
                                       Matrix(d_logvar)};
  if (const auto latents = near_linear_latents(m, algorithm, true)) {
    near_linear_backward(a, *latents, saved);
  } else {
    PartialGradients partial(m);
    a.partial = &partial;
    FASTIB_PACK(m);
    FASTIB_BACKWARD(m, partial, a);
  }
  return {d_z, d_mu, d_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("elbo_decomposition", FASTIB_BOX(elbo_decomposition));
  m.impl("elbo_decomposition_backward", FASTIB_BOX(elbo_decomposition_backward));
}

}  // namespace fastib

#else
#include "mixture_tiles.h"

#include "mixture_forward.h"

#include "mixture_backward.h"

// The exponent of a point's own component in the joint: the bits that the pass over all components saw.
template <class S>
static S own_exponent(const Mixture& m, int64_t row, const S* z) {
  using V = Vec<S>;
  const int64_t own = row + m.row_offset;
  const Tile<S> tile(m, own / kLanes<S>);
  V squares{};
  for (int64_t d = 0; d < m.dims; ++d) {
    const V v = scaled_deviation<V>(z[d * kRows], load<V>(tile.mu(d)), load<V>(tile.precision(d)));
    squares = fma<V>(v, v, squares);
  }
  return (load<V>(tile.joint()) - squares)[own % kLanes<S>];
}

template <class T>
static void forward(const ElboDecompositionArguments& a, int64_t chunk) {
  using S = Compute<T>;
  const Mixture& m = *a.mixture;
  mixture_forward<T>(m, chunk, a.saved.data, [&](int64_t row, const S* z, const PointResult<S>& result) {
    double log_marginals = 0, squares = 0;
    for (int64_t d = 0; d < m.dims; ++d) {
      log_marginals += result.log_marginals[d];
      squares += double(z[d * kRows]) * double(z[d * kRows]);
    }
    // log q(z|x) - log q(z) without their common part, so that it keeps its digits where both are large.
    const double own = double(own_exponent<S>(m, row, z)) - double(result.joint.max);
    set_terms(a.terms, m.rows, row, kLn2 * own - std::log(result.joint.sum) - result.log_unit, result.log_joint,
              log_marginals, squares, m.dims);
  });
}

template <class S>
FASTIB_INLINE void gradients_of_row(const ElboDecompositionBackwardArguments& a, int64_t row, S& joint, S& relative,
                                    S* marginals) {
  const TermGradients g = gradients_of_terms(a, row);
  joint = S(g.tc);
  relative = S(g.mi);
  std::fill_n(marginals, a.mixture->dims, S(g.kl - g.tc));
}

template <class T>
static void backward(const ElboDecompositionBackwardArguments& a, int64_t task) {
  using S = Compute<T>;
  mixture_backward<T>(
      *a.mixture, *a.partial, a.saved.data, task,
      [&](int64_t row, S& joint, S& relative, S* marginals) { gradients_of_row(a, row, joint, relative, marginals); });
}

template <class T>
static void backward_far(const ElboDecompositionBackwardArguments& a, int64_t group) {
  using S = Compute<T>;
  far_backward<T>(*a.mixture, *a.partial, a.saved.data, group, [&](int64_t row, S& joint, S& relative, S* marginals) {
    gradients_of_row(a, row, joint, relative, marginals);
  });
}

template <class T>
static void write_rows(const ElboDecompositionBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  const Mixture& m = *a.mixture;
  finish_rows<T>(m, *a.partial, a.d_z, chunk, [&](int64_t row, int64_t d, double sum) {
    return sum + gradients_of_terms(a, row).kl * double(S(m.z.at<T>(row, d)));  // by log p(z)
  });
}

template <class T>
static void write_columns(const ElboDecompositionBackwardArguments& a, int64_t chunk) {
  finish_columns<T>(*a.mixture, *a.partial, a.d_mu, a.d_logvar, chunk);
}

#endif
