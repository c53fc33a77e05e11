// Information Dropout: multiplicative log-normal noise and its KL in one pass, and the gradients in another.
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct InformationDropoutOptions {
  bool log_normal, mask_zero;
  double shift;                      // 1 for noise of mean one, else 0
  double prior_mean, prior_log_std;  // of the log-normal prior
};

struct InformationDropoutArguments {
  InformationDropoutOptions options;
  Operand x, log_std, noise;
  const int64_t* rng;
  Operand z;
  Reduction* reduction;
};

struct InformationDropoutBackwardArguments {
  InformationDropoutOptions options;
  int64_t numel;
  double scale;
  Operand grad_z, grad_kl;  // either may be null
  Operand x, log_std, noise;
  const int64_t* rng;
  Operand d_x, d_log_std;  // those not asked for are null
  double* d_prior;         // two per chunk: the sums for prior_mean and prior_log_std
};
}  // namespace fastib

#define FASTIB_KERNELS "information_dropout.cpp"
#include "each_isa.h"

namespace fastib {

static double scalar_value(const MaybeTensor& t) {
  if (!t) return 0;
  const void* p = t->const_data_ptr();
  double value;
  switch (t->scalar_type()) {
    case ScalarType::Float: value = *static_cast<const float*>(p); break;
    case ScalarType::Half: value = *static_cast<const torch::headeronly::Half*>(p); break;
    case ScalarType::BFloat16: value = *static_cast<const torch::headeronly::BFloat16*>(p); break;
    default: value = *static_cast<const double*>(p);
  }
  return value == value ? value : NAN;  // the usual one: see round_to_bfloat16
}

static InformationDropoutOptions options(const MaybeTensor& prior_mean, const MaybeTensor& prior_log_std,
                                         bool log_normal, bool mask_zero, bool mean_one) {
  return {log_normal, mask_zero, mean_one ? 1.0 : 0.0, scalar_value(prior_mean), scalar_value(prior_log_std)};
}

std::tuple<Tensor, Tensor> information_dropout(const Tensor& x, const Tensor& log_std, const MaybeTensor& prior_mean,
                                               const MaybeTensor& prior_log_std, const MaybeTensor& noise,
                                               const MaybeTensor& rng, bool log_normal, bool mask_zero, bool mean_one,
                                               int64_t reduction, int64_t divisor) {
  check_reduction_with_noise(reduction);
  Tensor z = output_like(x);
  Reduction r(x, reduction, scale_of(divisor));
  const InformationDropoutArguments a{options(prior_mean, prior_log_std, log_normal, mask_zero, mean_one),
                                      Operand(x),
                                      Operand(log_std),
                                      Operand(noise),
                                      rng_words(rng),
                                      Operand(z),
                                      &r};
  run_chunks(FASTIB_KERNEL_OF(x.scalar_type(), forward), a, r.chunks());
  return {z, r.finish()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> information_dropout_backward(
    const MaybeTensor& grad_z, const MaybeTensor& grad_kl, const Tensor& x, const Tensor& log_std,
    const MaybeTensor& prior_mean, const MaybeTensor& prior_log_std, const MaybeTensor& noise, const MaybeTensor& rng,
    bool log_normal, bool mask_zero, bool mean_one, int64_t reduction, int64_t divisor, int64_t wanted) {
  Tensor d_x = gradient_like(x, wanted & 1), d_log_std = gradient_like(log_std, wanted & 2);
  const int64_t chunks = chunks_of(x.numel());
  std::vector<double> d_prior(size_t(2 * chunks));
  const InformationDropoutBackwardArguments a{options(prior_mean, prior_log_std, log_normal, mask_zero, mean_one),
                                              x.numel(),
                                              scale_of(divisor),
                                              Operand(grad_z),
                                              Operand::gradient(grad_kl, x, reduction),
                                              Operand(x),
                                              Operand(log_std),
                                              Operand(noise),
                                              rng_words(rng),
                                              Operand(d_x),
                                              Operand(d_log_std),
                                              d_prior.data()};
  run_chunks(FASTIB_KERNEL_OF(x.scalar_type(), backward), a, chunks);
  double d_mean = 0, d_prior_log_std = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    d_mean += d_prior[size_t(2 * chunk)];
    d_prior_log_std += d_prior[size_t(2 * chunk + 1)];
  }
  const auto scalar = [&](double value) {
    Tensor t = output({}, accumulate_type(x.scalar_type()), x);
    if (t.scalar_type() == ScalarType::Double) *static_cast<double*>(t.data_ptr()) = value;
    else *static_cast<float*>(t.data_ptr()) = float(value);
    return t;
  };
  return {d_x, d_log_std, scalar(d_mean), scalar(d_prior_log_std)};
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("information_dropout", FASTIB_BOX(information_dropout));
  m.impl("information_dropout_backward", FASTIB_BOX(information_dropout_backward));
}

}  // namespace fastib

#else

template <class T>
static void forward(const InformationDropoutArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  const InformationDropoutOptions& o = a.options;
  const S inverse = S(std::exp(-o.prior_log_std));
  Buffer<T> x_buffer, log_std_buffer, z_buffer;
  Buffer<S> noise_buffer;
  reduce_chunk<S>(*a.reduction, chunk, [&](int64_t begin, int64_t n, S* kl) {
    const T* xs = read<T>(a.x, begin, n, x_buffer);
    const T* log_stds = read<T>(a.log_std, begin, n, log_std_buffer);
    const S* noise = noise_block<T>(a.noise, a.rng, begin, n, noise_buffer);
    const Target<T> z(a.z, begin, n, z_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V x = load<V>(xs + i), log_std = load<V>(log_stds + i);
      const V std = exponential<V>(log_std).value;
      store(z, i, dropout_sample<V>(x, dropout_noise<V>(std, load<V>(noise + i), S(o.shift))));
      V loss;
      if (o.log_normal)
        loss = dropout_kl_log_normal<V>(x, log_std, std, S(o.prior_mean), S(o.prior_log_std), inverse, S(o.shift)).kl;
      else loss = o.mask_zero ? (x > S(0) ? -log_std : V{}) : -log_std;
      store(kl + i, loss);
    }
    write<T>(a.z, begin, n, z.values);
    return kl;
  });
}

template <class T>
static void backward(const InformationDropoutBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  const InformationDropoutOptions& o = a.options;
  const S inverse = S(std::exp(-o.prior_log_std));
  Buffer<T> grad_z_buffer, x_buffer, log_std_buffer, d_x_buffer, d_log_std_buffer;
  Buffer<S> grad_kl_buffer, noise_buffer;
  Buffer<S> mean_terms, log_std_terms;
  double d_mean = 0, d_prior_log_std = 0;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const T* grad_z = read<T>(a.grad_z, begin, n, grad_z_buffer);
    const S* grad_kl = read<S>(a.grad_kl, begin, n, grad_kl_buffer);
    const T* xs = read<T>(a.x, begin, n, x_buffer);
    const T* log_stds = read<T>(a.log_std, begin, n, log_std_buffer);
    const S* noise = a.grad_z ? noise_block<T>(a.noise, a.rng, begin, n, noise_buffer) : nullptr;
    const Target<T> d_x(a.d_x, begin, n, d_x_buffer);
    const Target<T> d_log_std(a.d_log_std, begin, n, d_log_std_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V x = load<V>(xs + i), log_std = load<V>(log_stds + i), std = exponential<V>(log_std).value;
      const V gk = loss_gradient<T, V>(grad_kl, i, a.scale);
      V by_x{}, by_log_std{};
      if (a.grad_z) {  // where the KL alone is used, the noise may overflow
        const V normal = load<V>(noise + i), eps = dropout_noise<V>(std, normal, S(o.shift));
        const V gz = load<V>(grad_z + i), by_exponent = gz * dropout_sample<V>(x, eps);
        by_x = gz * eps;
        by_log_std = by_exponent * fma<V>(std, normal, -dropout_shift<V>(std, S(o.shift)));
        by_log_std = eps == S(0) ? by_exponent : by_log_std;  // 0, where x is finite; the exponent may be infinite
      }
      if (!a.grad_kl) {
        // Only z is used: log x and its derivatives may be infinite.
      } else if (o.log_normal) {
        const DropoutKl<V> k =
            dropout_kl_log_normal<V>(x, log_std, std, S(o.prior_mean), S(o.prior_log_std), inverse, S(o.shift));
        by_x = fma<V>(gk, k.d_x, by_x);
        by_log_std = fma<V>(gk, k.d_log_std, by_log_std);
        store(mean_terms + i, gk * k.d_prior_mean);
        store(log_std_terms + i, gk * k.d_prior_log_std);
      } else {
        by_log_std -= o.mask_zero ? (x > S(0) ? gk : V{}) : gk;
      }
      store(d_x, i, by_x);
      store(d_log_std, i, by_log_std);
    }
    if (o.log_normal && a.grad_kl) {
      d_mean += double(sum<S>(mean_terms, n));
      d_prior_log_std += double(sum<S>(log_std_terms, n));
    }
    write<T>(a.d_x, begin, n, d_x.values);
    write<T>(a.d_log_std, begin, n, d_log_std.values);
  });
  a.d_prior[2 * chunk] = d_mean;
  a.d_prior[2 * chunk + 1] = d_prior_log_std;
}

#endif
