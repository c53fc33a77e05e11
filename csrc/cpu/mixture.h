// What the operators on a mixture (common/mixture.h) share outside their kernels.
#pragma once

#include <limits>
#include <memory>
#include <new>

#include "../common/mixture.h"
#include "cpu.h"

namespace fastib {

// Uninitialised memory for vectors of the widest instruction set.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : data_(::operator new(size_t(std::max<int64_t>(bytes, 1)), kAlign)) {}
  template <class T>
  T* as() const {
    return static_cast<T*>(data_.get());
  }

 private:
  static constexpr std::align_val_t kAlign{64};
  struct Delete {
    void operator()(void* p) const { ::operator delete(p, kAlign); }
  };
  std::unique_ptr<void, Delete> data_;
};

constexpr int64_t kComponentsPerChunk = 512;  // of packing, and of writing the gradients of components
constexpr int64_t kRowsPerChunk = 32;         // of the forward pass, and of writing the gradients of rows
constexpr int64_t kWidest = 16;  // lanes of float in the widest vector: components are padded to a multiple

// The components of one call, packed for vectors: kernels fill it, in parallel, before anything else runs.
struct Mixture : PairWeighting {
  ScalarType dtype;
  int64_t rows, components, dims;
  Matrix z, mu, logvar;

  int64_t row_offset;
  Matrix log_weights;  // instead of both, where given: of float, or of double for double

  int64_t padded;             // components, rounded up to whole vectors
  std::vector<double> shift;  // per dimension; each is exact in float, and 0 where the largest c allows it
  Scratch largest_of_chunks;  // per chunk and dimension, the largest c
  Scratch packed;  // tiles of one vector of components: {mu, sqrt(log2(e)/2) exp(-l/2), c} per dimension, then C

  Mixture(const Tensor& z, const Tensor& mu, const Tensor& logvar, const MaybeTensor& log_weights, Weights weights,
          int64_t row_offset);
  bool weights_given() const { return log_weights || by_logarithm; }  // of each pair
  bool is_double() const { return dtype == ScalarType::Double; }
  int64_t element_size() const { return is_double() ? sizeof(double) : sizeof(float); }
  // What the forward pass leaves to the backward pass, per row: the joint's maximum and sum, then the sums of the
  // marginals, and room for as many numbers more, which NearLinearSums has.
  int64_t saved_columns() const { return 2 * dims + 2; }
  int64_t component_chunks() const { return (components + kComponentsPerChunk - 1) / kComponentsPerChunk; }
  int64_t row_chunks() const { return (rows + kRowsPerChunk - 1) / kRowsPerChunk; }
  void choose_shifts();
};

// The backward pass is cut into tasks, a group of rows against a block of components. Each has partial sums of its own,
// so that threads never meet: for the gradient of z one per block, for those of mu and logvar one per group.
struct PartialGradients {
  int64_t groups = 1, blocks = 1;
  Scratch rows;     // [blocks, rows, dims]: the sum of c v sqrt(log2(e)/2) exp(-l/2), of which d z is -2 ln(2) times
  Scratch columns;  // [groups, tiles, dims, 2, lanes]: the sums of c v and of c (u^2 - 1) / 2; the joint's are its own

  PartialGradients(int64_t rows, int64_t components, int64_t dims, int64_t element_size);
  explicit PartialGradients(const Mixture& m) : PartialGradients(m.rows, m.components, m.dims, m.element_size()) {}
  int64_t tasks() const { return groups * blocks; }
  int64_t first_row(const Mixture& m, int64_t group) const { return group * m.rows / groups; }

 private:
  void choose_tasks(int64_t rows, int64_t components, int64_t dims);
};

// Runs the passes of an operator: its file has the kernels of these names.
#define FASTIB_PACK(m)                                                                \
  do {                                                                                \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, find_largest), m, (m).component_chunks()); \
    (m).choose_shifts();                                                              \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, pack), m, (m).component_chunks());         \
  } while (false)

#define FASTIB_BACKWARD(m, partial, arguments)                                                                        \
  do {                                                                                                                \
    run_chunks_of_pairs(FASTIB_KERNEL_OF((m).dtype, backward), arguments, (partial).tasks(), (m).weights_given());    \
    run_chunks_of_pairs(FASTIB_KERNEL_OF((m).dtype, backward_far), arguments, (partial).groups, (m).weights_given()); \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, write_rows), arguments, (m).row_chunks());                                 \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, write_columns), arguments, (m).component_chunks());                        \
  } while (false)

}  // namespace fastib
