// The near-linear algorithm as the operators call it: marginals.h and joint.h, between tensors.
#pragma once

#include "joint.h"
#include "marginals.h"

namespace fastib {

// The numbers are those of fastib._arguments.Algorithm.
enum class Algorithm : int64_t { automatic = 0, direct = 1, near_linear = 2 };

// A call's points and components, if they are for the near-linear algorithm: it is asked for, or the faster one, and
// there is nothing in them that only the direct one can do. Both passes come to the same answer.
std::unique_ptr<Latents> near_linear_latents(const Mixture& m, int64_t algorithm, bool joint);

// What the forward pass leaves to the backward pass, in the memory of the tensor `saved`.
struct NearLinearSums {
  float *largest, *joint_sums;  // [rows]: see Joint
  float *sums, *slopes;         // [dims, rows]: see Marginals

  NearLinearSums(const Latents& x, const Tensor& saved)
      : largest(static_cast<float*>(saved.data_ptr())),
        joint_sums(largest + x.rows),
        sums(joint_sums + x.rows),
        slopes(sums + x.rows * x.dims) {}
  double log_joint(int64_t row) const { return std::log(double(joint_sums[row])) + kLn2 * double(largest[row]); }
};

// The gradients of one call, before they are written to tensors.
struct NearLinearGradients {
  const Latents& x;
  std::vector<float> d_z, d_mu, d_logvar;  // [dims, rows], [dims, components] twice

  explicit NearLinearGradients(const Latents& latents);
  void add_marginals(const NearLinearSums& saved, const Matrix& grads);
  void add_joint(const NearLinearSums& saved, const std::vector<float>& by_density,
                 const std::vector<float>& by_information);
  void write(ScalarType dtype, const Matrix& z, const Matrix& mu, const Matrix& logvar) const;
};

}  // namespace fastib
