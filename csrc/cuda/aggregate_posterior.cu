// Log densities of the aggregate posterior, jointly and for each dimension, and their gradients.
#include "mixture_backward.cuh"

namespace fastib::cuda {

template <class S>
struct KeepDensities {
  S* log_qz;  // null where only the marginals are wanted
  S* log_qz_marginals;
  int64_t dims;

  __device__ void marginal(int64_t row, int64_t d, double log) const { log_qz_marginals[row * dims + d] = S(log); }
  __device__ void row(int64_t row, const RowResult<S>& result) const {
    if (log_qz != nullptr && threadIdx.x % kWarp == 0) log_qz[row] = S(result.log_joint);
  }
};

template <class S>
struct DensityGradients {
  Matrix joint, marginals;  // either may be null

  __device__ void of_row(int64_t row, S& by_joint, S& relative) const {
    by_joint = joint ? joint.at<S>(row) : S(0);
    relative = S(0);
  }
  __device__ S of_marginal(int64_t row, int64_t d) const { return marginals ? marginals.at<S>(row, d) : S(0); }
};

struct AddNothing {
  __device__ double operator()(int64_t, int64_t) const { return 0; }
};

std::tuple<Tensor, Tensor, Tensor> aggregate_posterior(const Tensor& z, const Tensor& mu, const Tensor& logvar,
                                                       const MaybeTensor& log_weights, int64_t estimator,
                                                       int64_t dataset_size, double w_self, double w_other,
                                                       int64_t row_offset, int64_t, bool joint) {
  const ScalarType dtype = accumulate_type(z.scalar_type());
  const int64_t rows = z.size(0), dims = z.size(1);
  const Tensor log_qz = output({joint ? rows : 0}, dtype, z), log_qz_marginals = output({rows, dims}, dtype, z),
               saved = output({rows, 2 * dims + 2}, dtype, z);
  const Device device(z);
  with_type(z.scalar_type(), [&](auto type) {
    using T = decltype(type);
    using S = Compute<T>;
    const PackedMixture<T> mixture(device, z, mu, logvar, log_weights,
                                   weights_of(estimator, dataset_size, mu.size(0), {w_self, w_other}), row_offset);
    const KeepDensities<S> keep{joint ? static_cast<S*>(log_qz.data_ptr()) : nullptr,
                                static_cast<S*>(log_qz_marginals.data_ptr()), dims};
    mixture_forward(device, mixture, saved, keep);
  });
  return {log_qz, log_qz_marginals, saved};
}

std::tuple<Tensor, Tensor, Tensor> aggregate_posterior_backward(
    const MaybeTensor& grad_log_qz, const MaybeTensor& grad_log_qz_marginals, const Tensor& z, const Tensor& mu,
    const Tensor& logvar, const MaybeTensor& log_weights, const Tensor& saved, int64_t estimator, int64_t dataset_size,
    double w_self, double w_other, int64_t row_offset, int64_t, bool joint) {
  const MixtureGradients out{output_like(z), output_like(mu), output_like(logvar)};
  const Device device(z);
  with_type(z.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const PackedMixture<T> mixture(device, z, mu, logvar, log_weights,
                                   weights_of(estimator, dataset_size, mu.size(0), {w_self, w_other}), row_offset);
    const DensityGradients<Compute<T>> gradients{joint ? Matrix(grad_log_qz) : Matrix(), Matrix(grad_log_qz_marginals)};
    mixture_backward(device, mixture, saved, gradients, AddNothing(), out);
  });
  return {out.d_z, out.d_mu, out.d_logvar};
}

FASTIB_GPU_KERNELS(m) {
  m.impl("aggregate_posterior", TORCH_BOX(&aggregate_posterior));
  m.impl("aggregate_posterior_backward", TORCH_BOX(&aggregate_posterior_backward));
}

}  // namespace fastib::cuda
