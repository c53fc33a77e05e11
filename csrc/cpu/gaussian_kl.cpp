// KL of a diagonal Gaussian to N(0, 1), or to another diagonal Gaussian, reduced as asked. A floor above 0 holds for
// each element, before the reduction; below it there is no gradient.
#ifndef FASTIB_ISA
#include "cpu.h"

namespace fastib {
struct GaussianKlInputs {
  Operand mu, logvar, prior_mu, prior_logvar;  // both priors or neither
  double floor;
};

struct GaussianKlArguments {
  GaussianKlInputs in;
  Reduction* reduction;
};

// The gradient by a prior: its elements, or, where the prior is broadcast, partial sums, or nothing.
struct PriorGradient {
  Operand elements;
  std::vector<double> partials;
};

struct GaussianKlBackwardArguments {
  GaussianKlInputs in;
  int64_t numel;
  double scale;
  Operand grad;
  Operand d_mu, d_logvar;  // those not asked for are null
  Columns columns;         // of the partial sums; none if there are no sums
  PriorGradient d_prior_mu, d_prior_logvar;
};
}  // namespace fastib

#define FASTIB_KERNELS "gaussian_kl.cpp"
#include "each_isa.h"

namespace fastib {

static GaussianKlInputs inputs(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu,
                               const MaybeTensor& prior_logvar, double floor) {
  return {Operand(mu), Operand(logvar), Operand::broadcast(prior_mu, mu), Operand::broadcast(prior_logvar, mu), floor};
}

Tensor gaussian_kl(const Tensor& mu, const Tensor& logvar, const MaybeTensor& prior_mu, const MaybeTensor& prior_logvar,
                   int64_t reduction, int64_t divisor, double floor) {
  Reduction r(mu, reduction, scale_of(divisor));
  const GaussianKlArguments a{inputs(mu, logvar, prior_mu, prior_logvar, floor), &r};
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), forward), a, r.chunks());
  return r.finish();
}

static void sum_columns(const Columns& columns, const std::vector<double>& partials, Tensor& out) {
  Tensor sums = output(out.sizes(), ScalarType::Double, out);
  double* values = static_cast<double*>(sums.data_ptr());
  for (int64_t i = 0; i < out.numel(); ++i) {
    values[i] = 0;  // the other prior may have more columns: this one's then repeat among them
    for (int64_t column = i; column < columns.columns; column += out.numel())
      values[i] += columns.total(partials, column);
  }
  torch::stable::copy_(out, sums);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gaussian_kl_backward(const Tensor& grad, const Tensor& mu,
                                                                const Tensor& logvar, const MaybeTensor& prior_mu,
                                                                const MaybeTensor& prior_logvar, int64_t reduction,
                                                                int64_t divisor, double floor, int64_t wanted) {
  Tensor d_mu = gradient_like(mu, wanted & 1), d_logvar = gradient_like(logvar, wanted & 2);
  int64_t columns = 0;
  for (const auto& [prior, bit] : {std::pair{&prior_mu, 4}, std::pair{&prior_logvar, 8}})
    if (wanted & bit) columns = std::max(columns, columns_of(**prior, mu));
  GaussianKlBackwardArguments a{inputs(mu, logvar, prior_mu, prior_logvar, floor),
                                mu.numel(),
                                scale_of(divisor),
                                Operand::gradient(grad, mu, reduction),
                                Operand(d_mu),
                                Operand(d_logvar),
                                Columns(mu.numel(), columns),
                                {},
                                {}};
  const auto allocate = [&](const MaybeTensor& prior, bool is_wanted, PriorGradient& g) {
    Tensor out = gradient_like(prior ? *prior : mu, is_wanted);
    if (out.numel() == mu.numel()) g.elements = Operand(out);
    else if (is_wanted) g.partials = a.columns.partials();
    return out;
  };
  Tensor d_prior_mu = allocate(prior_mu, wanted & 4, a.d_prior_mu);
  Tensor d_prior_logvar = allocate(prior_logvar, wanted & 8, a.d_prior_logvar);
  run_chunks(FASTIB_KERNEL_OF(mu.scalar_type(), backward), a, columns > 0 ? a.columns.chunks() : chunks_of(a.numel));
  for (const auto& [g, out] : {std::pair{&a.d_prior_mu, &d_prior_mu}, std::pair{&a.d_prior_logvar, &d_prior_logvar}})
    if (out->numel() > 0 && !g->elements) sum_columns(a.columns, g->partials, *out);
  return {d_mu, d_logvar, d_prior_mu, d_prior_logvar};
}

STABLE_TORCH_LIBRARY_IMPL(fastib, CPU, m) {
  m.impl("gaussian_kl", FASTIB_BOX(gaussian_kl));
  m.impl("gaussian_kl_backward", FASTIB_BOX(gaussian_kl_backward));
}

}  // namespace fastib

#else

template <class T>
struct GaussianKlBlock {
  const T *mu, *logvar, *prior_mu, *prior_logvar;
};

template <class T>
static GaussianKlBlock<T> read_inputs(const GaussianKlInputs& in, int64_t begin, int64_t n, Buffer<T> (&buffers)[4]) {
  const T *mu = read<T>(in.mu, begin, n, buffers[0]), *logvar = read<T>(in.logvar, begin, n, buffers[1]);
  if (!in.prior_mu) return {mu, logvar, nullptr, nullptr};
  return {mu, logvar, read<T>(in.prior_mu, begin, n, buffers[2]), read<T>(in.prior_logvar, begin, n, buffers[3])};
}

template <class V, class T>
FASTIB_INLINE KlBetween<V> kl_between_at(const GaussianKlBlock<T>& in, int64_t i) {
  return kl_between<V>(load<V>(in.mu + i), load<V>(in.logvar + i), load<V>(in.prior_mu + i),
                       load<V>(in.prior_logvar + i));
}

// The KL before the floor, which the backward pass compares with it too.
template <class T, class S = Compute<T> >
static void fill_kl(GaussianKlBlock<T> in, int64_t n, S* kl) {
  using V = Vec<S>;
  if (in.prior_mu == nullptr)
    for (int64_t i = 0; i < n; i += kLanes<S>)
      store(kl + i, kl_standard<V>(load<V>(in.mu + i), exponential<V>(load<V>(in.logvar + i)).minus_1_minus_x));
  else
    for (int64_t i = 0; i < n; i += kLanes<S>) store(kl + i, kl_between_at<V>(in, i).kl);
}

template <class T>
static void forward(const GaussianKlArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  const S floor = S(a.in.floor);
  Buffer<T> buffers[4];
  reduce_chunk<S>(*a.reduction, chunk, [&](int64_t begin, int64_t n, S* kl) {
    fill_kl(read_inputs(a.in, begin, n, buffers), n, kl);
    if (floor > 0)  // in a loop of its own: without a floor it costs nothing. A NaN compares false and stays.
      for (int64_t i = 0; i < n; i += kLanes<S>) {
        const V v = load<V>(kl + i);
        store(kl + i, v < floor ? splat<V>(floor) : v);
      }
    return kl;
  });
}

// The gradient of the KL, and 0 where the floor holds, as that of torch.clamp.
template <class T, class S = Compute<T> >
static const S* read_gradient(const GaussianKlBackwardArguments& a, GaussianKlBlock<T> in, int64_t begin, int64_t n,
                              S* buffer) {
  using V = Vec<S>;
  const S* grad = read<S>(a.grad, begin, n, buffer);
  const S floor = S(a.in.floor);
  if (!(floor > 0)) return grad;
  Buffer<S> kl;
  fill_kl(in, n, kl.values);
  for (int64_t i = 0; i < n; i += kLanes<S>) store(buffer + i, load<V>(kl + i) >= floor ? load<V>(grad + i) : V{});
  return buffer;
}

template <class T>
static void backward_standard(const GaussianKlBackwardArguments& a, int64_t chunk) {
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> buffers[4], d_mu_buffer, d_logvar_buffer;
  Buffer<S> grad_buffer;
  for_each_block(chunk, a.numel, [&](int64_t begin, int64_t n) {
    const GaussianKlBlock<T> in = read_inputs(a.in, begin, n, buffers);
    const S* grad = read_gradient(a, in, begin, n, grad_buffer.values);
    const Target<T> d_mu(a.d_mu, begin, n, d_mu_buffer);
    const Target<T> d_logvar(a.d_logvar, begin, n, d_logvar_buffer);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const V g = loss_gradient<T, V>(grad, i, a.scale);
      store(d_mu, i, g * load<V>(in.mu + i));
      store(d_logvar, i, g * (S(0.5) * exponential<V>(load<V>(in.logvar + i)).minus_1));
    }
    write<T>(a.d_mu, begin, n, d_mu.values);
    write<T>(a.d_logvar, begin, n, d_logvar.values);
  });
}

template <class T, class S = Compute<T> >
static void write_prior(const GaussianKlBackwardArguments& a, const PriorGradient& g, int64_t chunk, int64_t begin,
                        int64_t n, const S* values) {
  if (!g.partials.empty()) return add_to_columns(a.columns, chunk, values, n, const_cast<double*>(g.partials.data()));
  if constexpr (std::is_same_v<T, S>) {
    write<T>(g.elements, begin, n, values);
  } else {
    Buffer<T> narrow;
    for (int64_t i = 0; i < n; i += kLanes<S>) store(narrow + i, load<Vec<S> >(values + i));
    write<T>(g.elements, begin, n, narrow);
  }
}

template <class T>
static void backward(const GaussianKlBackwardArguments& a, int64_t chunk) {
  if (!a.in.prior_mu) return backward_standard<T>(a, chunk);
  using S = Compute<T>;
  using V = Vec<S>;
  Buffer<T> buffers[4], d_mu, d_logvar;
  Buffer<S> grad_buffer, d_prior_mu, d_prior_logvar;
  const Blocks blocks = a.columns.columns > 0 ? blocks_of(a.columns, chunk) : blocks_of(chunk, a.numel);
  for_each_block(blocks, [&](int64_t begin, int64_t n) {
    const GaussianKlBlock<T> in = read_inputs(a.in, begin, n, buffers);
    const S* grad = read_gradient(a, in, begin, n, grad_buffer.values);
    for (int64_t i = 0; i < n; i += kLanes<S>) {
      const KlBetween<V> d = kl_between_at<V>(in, i);
      const V g = loss_gradient<T, V>(grad, i, a.scale);
      store(d_mu + i, g * d.d_mu);
      store(d_logvar + i, g * d.d_logvar);
      store(d_prior_mu + i, -g * d.d_mu);
      store(d_prior_logvar + i, g * d.d_prior_logvar);
    }
    write<T>(a.d_mu, begin, n, d_mu);
    write<T>(a.d_logvar, begin, n, d_logvar);
    write_prior<T>(a, a.d_prior_mu, chunk, begin, n, d_prior_mu.values);
    write_prior<T>(a, a.d_prior_logvar, chunk, begin, n, d_prior_logvar.values);
  });
}

#endif
