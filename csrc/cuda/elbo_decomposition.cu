// Mutual information, total correlation and dimension-wise KL of each sample, reduced as asked, and their gradients.
#include "mixture_backward.cuh"

namespace fastib::cuda {

// The terms of each row, [3, rows]. A copy of it belongs to one row, so that it can add up.
template <class S, int C>
struct KeepTerms {
  Mixture<S> m;
  double* terms;
  double log_marginals = 0, squares = 0;

  __device__ void marginal(int64_t row, int64_t d, double log) {
    const double z = double(m.points[row * m.chunks * C + d]);
    log_marginals += log;
    squares += z * z;
  }

  __device__ void row(int64_t row, const RowResult<S>& result) {
    log_marginals = warp_sum(log_marginals);
    squares = warp_sum(squares);
    // log q(z|x) - log q(z) without their common part, so that it keeps its digits where both are large.
    const S own_exponent = m.constants[row + m.row_offset] - squares_of_pair(m, C, row, row + m.row_offset);
    const double own = double(own_exponent) - result.joint.max;
    if (threadIdx.x % kWarp != 0) return;
    terms[row] = kLn2 * own - ::log(result.joint.sum) - result.log_unit;
    terms[m.rows + row] = result.log_joint - log_marginals;
    terms[2 * m.rows + row] = log_marginals + 0.5 * (squares + kLog2Pi * double(m.dims));
  }
};

// A block for each term: its values, or their sum, times `scale`.
template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_terms(const double* terms, int64_t rows, bool keep, double scale, S* mi, S* tc, S* kl) {
  const double* term = terms + blockIdx.x * rows;
  S* out = blockIdx.x == 0 ? mi : blockIdx.x == 1 ? tc : kl;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < rows; i += kThreads) {
    if (keep) out[i] = S(term[i] * scale);
    else sum += term[i];
  }
  if (keep) return;
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = S(sum * scale);
}

// The gradients by the terms, of a loss that may not use some; a reduction spreads them over all rows.
template <class S>
struct TermGradients {
  Matrix mi, tc, kl;
  double scale;

  TermGradients(const MaybeTensor& mi_, const MaybeTensor& tc_, const MaybeTensor& kl_, int64_t reduction,
                double scale_)
      : mi(of_rows(mi_, reduction)), tc(of_rows(tc_, reduction)), kl(of_rows(kl_, reduction)), scale(scale_) {}

  static Matrix of_rows(const MaybeTensor& grad, int64_t reduction) {
    Matrix g;
    if (!grad) return g;
    g.data = static_cast<char*>(grad->data_ptr());
    if (ReductionKind(reduction) == ReductionKind::none) g.row = grad->stride(0);
    return g;
  }
  __device__ double of(const Matrix& grad, int64_t row) const { return grad ? scale * double(grad.at<S>(row)) : 0.0; }

  __device__ void of_row(int64_t row, S& joint, S& relative) const {
    joint = S(of(tc, row));
    relative = S(of(mi, row));
  }
  __device__ S of_marginal(int64_t row, int64_t) const { return S(of(kl, row) - of(tc, row)); }
};

// The gradient of log p(z), which does not come from the mixture.
template <class S>
struct AddPrior {
  TermGradients<S> gradients;
  const S* points;
  int64_t padded;

  __device__ double operator()(int64_t row, int64_t d) const {
    return gradients.of(gradients.kl, row) * double(points[row * padded + d]);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> elbo_decomposition(const Tensor& z, const Tensor& mu, const Tensor& logvar,
                                                              int64_t estimator, int64_t dataset_size,
                                                              int64_t row_offset, int64_t reduction, int64_t divisor,
                                                              int64_t) {
  const ScalarType dtype = accumulate_type(z.scalar_type());
  const bool keep = ReductionKind(reduction) == ReductionKind::none;
  const int64_t rows = z.size(0);
  const auto term = [&] { return keep ? output({rows}, dtype, z) : output({}, dtype, z); };
  const Tensor mi = term(), tc = term(), kl = term(), saved = output({rows, 2 * z.size(1) + 2}, dtype, z);
  const Tensor terms = output({3, rows}, ScalarType::Double, z);
  const Device device(z);
  with_type(z.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using S = Compute<T>;
    const PackedMixture<T> mixture(device, z, mu, logvar, std::nullopt, weights_of(estimator, dataset_size, mu.size(0)),
                                   row_offset);
    with_width<S>(mixture.chunks, [&](auto width) {
      mixture_forward(device, mixture, saved, KeepTerms<S, decltype(width)::value>{mixture.mixture, doubles(terms)});
    });
    const auto data = [](const Tensor& t) { return static_cast<S*>(t.data_ptr()); };
    FASTIB_RUN(device, reduce_terms<S>, 3, kThreads, doubles(terms), rows, keep, scale_of(divisor), data(mi), data(tc),
               data(kl));
  });
  return {mi, tc, kl, saved};
}

std::tuple<Tensor, Tensor, Tensor> elbo_decomposition_backward(const MaybeTensor& grad_mi, const MaybeTensor& grad_tc,
                                                               const MaybeTensor& grad_kl, const Tensor& z,
                                                               const Tensor& mu, const Tensor& logvar,
                                                               const Tensor& saved, int64_t estimator,
                                                               int64_t dataset_size, int64_t row_offset,
                                                               int64_t reduction, int64_t divisor, int64_t) {
  const MixtureGradients out{output_like(z), output_like(mu), output_like(logvar)};
  const Device device(z);
  with_type(z.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using S = Compute<T>;
    const PackedMixture<T> mixture(device, z, mu, logvar, std::nullopt, weights_of(estimator, dataset_size, mu.size(0)),
                                   row_offset);
    const TermGradients<S> gradients(grad_mi, grad_tc, grad_kl, reduction, scale_of(divisor));
    const AddPrior<S> prior{gradients, mixture.mixture.points, mixture.chunks.padded()};
    mixture_backward(device, mixture, saved, gradients, prior, out);
  });
  return {out.d_z, out.d_mu, out.d_logvar};
}

FASTIB_GPU_KERNELS(m) {
  m.impl("elbo_decomposition", TORCH_BOX(&elbo_decomposition));
  m.impl("elbo_decomposition_backward", TORCH_BOX(&elbo_decomposition_backward));
}

}  // namespace fastib::cuda
