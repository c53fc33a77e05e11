// The joint density of points under a mixture of diagonal Gaussians, where most pairs may be left out.
//
// The exponent of a pair, C - sum_d v^2 (see mixture.h), only falls as dimensions are added. Dimensions that tell
// components apart come first, and points and components are put in an order in which those near each other in these
// dimensions are neighbours. A tile of components is dropped for a block of points when no pair of theirs can add
// 2^-joint_dropped_bits / N to the density of its point: all that is dropped is then less than 2^-joint_dropped_bits of
// it. First the boxes around the two are held against each other, then the exponents of the pairs, after a few
// dimensions each.
#pragma once

#include "latents.h"

namespace fastib {

inline double joint_dropped_bits = 24;  // tests make it smaller

struct Joint {
  const Latents* latents;
  // [rows]: the sum over components of weight times 2^exponent is sum times 2^largest; and the exponent of the own one.
  float *largest, *sums, *own;
};

struct JointGradients {
  const Latents* latents;
  const float *largest, *sums;
  const float *by_density, *by_information;  // [rows]: of the loss by log q(z), and by log q(z|x) - log q(z)
  float *d_z, *d_mu, *d_logvar;              // is added to [dims, rows], [dims, components] twice
};

void joint_forward(const Joint&);
void joint_backward(const JointGradients&);

// All components of one dimension: the least and the greatest mu, and the least precision sqrt(log2(e)/2) exp(-l/2).
struct Extent {
  float least = INFINITY, greatest = -INFINITY;
  double precision = 0;
};

// Points and components in the order in which they are visited.
struct Arrangement {
  std::vector<int32_t> rows, components, dims;  // what stands where
  std::vector<int32_t> own;                     // where the own component of each row stands
  int64_t tested;                               // so many dimensions, the first ones, tell components apart
  std::vector<Extent> extents;                  // of the dimensions, in their order

  explicit Arrangement(const Latents& x);
};

}  // namespace fastib
