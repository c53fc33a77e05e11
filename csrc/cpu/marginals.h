// Densities of points under mixtures of Gaussians in one dimension, for each dimension of a call, in near-linear time.
//
// Components whose sigma lies in one octave share a grid of nodes, 6 to 12 of which make a sigma. A sum of their
// densities is smooth on it: each component adds its density to the nodes within `cutoff` sigmas, and a point reads the
// sum, and its derivative, from the polynomial through the 12 nodes around it. Backwards, points add their share to the
// nodes, and components read them. All is in double; the error is that of the polynomial and of the cutoff.
//
// Seen at u sigmas the polynomial is off by 1.6e-7 of the density at 5, 2.4e-6 at 6, 7e-5 at 7, and the cutoff by all
// beyond it: relative to the density F of a point, by 2e-7 + (4e-6 e^-12.5 + 9e-5 e^-18 + e^(-cutoff^2/2)) R, where R
// is the sum of 1/sigma over F, and by e^-50 R for the components that are not near. Where that is more than
// kLargestError, the point is summed apart, over all components.
#pragma once

#include "latents.h"

namespace fastib {

constexpr double kLargestError = 1.2e-6;
inline double marginal_cutoff = 7;  // tests make it smaller

struct Marginals {
  const Latents* latents;
  // [dims, rows]: the sum of densities times sqrt(2 pi), the derivative of its logarithm, and the logarithm. The sum of
  // a point that was summed apart is negative, and relative to its largest term: the backward pass is to do the same.
  // It is 0 where no component has weight.
  float *sums, *slopes;
  double* logs;
};

struct MarginalGradients {
  const Latents* latents;
  const float *sums, *slopes;
  Matrix grads;                  // [dims, rows] of float: of the loss by the logarithms
  float *d_z, *d_mu, *d_logvar;  // is added to [dims, rows], [dims, components] twice
};

void marginals_forward(const Marginals&);
void marginals_backward(const MarginalGradients&);

}  // namespace fastib
