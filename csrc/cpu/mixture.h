// A mixture of diagonal Gaussians, and points under it: what the operators on it share outside their kernels.
//
// For a point i and a component j, u_d = (z_id - mu_jd) exp(-l_jd / 2). Kernels work in powers of two: with
// v = u sqrt(log2(e) / 2) and c = -log2(e) l / 2 the density in dimension d is 2^(c - v^2) times a factor that all
// components share, and the joint one 2^(C - sum_d v^2), C = sum_d c. The largest c of a dimension is known beforehand:
// less a shift, so that no power of two overflows, a sum over components needs no running maximum; that over C does.
#pragma once

#include <limits>
#include <memory>
#include <new>

#include "cpu.h"

namespace fastib {

// A matrix of any strides; its dtype is the kernel's to know. Null where there is none.
struct Matrix {
  char* data = nullptr;
  int64_t row = 0, column = 0;

  Matrix() = default;
  explicit Matrix(const Tensor& t)
      : data(static_cast<char*>(t.data_ptr())), row(t.stride(0)), column(t.dim() > 1 ? t.stride(1) : 0) {}
  explicit Matrix(const MaybeTensor& t) {
    if (t) *this = Matrix(*t);
  }

  explicit operator bool() const { return data != nullptr; }
  Matrix transposed() const {
    Matrix t(*this);
    std::swap(t.row, t.column);
    return t;
  }
  template <class T>
  T& at(int64_t i, int64_t j = 0) const {
    return reinterpret_cast<T*>(data)[i * row + j * column];
  }
};

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

constexpr double kLog2E = 0x1.71547652b82fep0, kLn2 = 0x1.62e42fefa39efp-1, kLog2Pi = 0x1.d67f1c864beb4p0;
constexpr double kRootHalfLog2E = 0x1.b2da4e9808a53p-1;  // sqrt(log2(e) / 2): e^(-u^2 / 2) is 2^-v^2, v = u times this

constexpr int64_t kComponentsPerChunk = 512;  // of packing, and of writing the gradients of components
constexpr int64_t kRowsPerChunk = 32;         // of the forward pass, and of writing the gradients of rows
constexpr int64_t kWidest = 16;  // lanes of float in the widest vector: components are padded to a multiple

// The components of one call, packed for vectors: kernels fill it, in parallel, before anything else runs.
struct Mixture {
  ScalarType dtype;
  int64_t rows, components, dims;
  Matrix z, mu, logvar;

  // The weights of a row's own component and of the others, relative to `base`. Where one is so much the smaller one
  // that float can't hold both, each pair is weighed by a logarithm.
  double own, other, log2_own, log2_other, log_base;
  bool by_logarithm;
  int64_t row_offset;
  Matrix log_weights;  // instead of both, where given: of float, or of double for double

  int64_t padded;             // components, rounded up to whole vectors
  std::vector<double> shift;  // per dimension; each is exact in float, and 0 where the largest c allows it
  Scratch largest_of_chunks;  // per chunk and dimension, the largest c
  Scratch packed;  // tiles of one vector of components: {mu, sqrt(log2(e)/2) exp(-l/2), c} per dimension, then C

  Mixture(const Tensor& z, const Tensor& mu, const Tensor& logvar, const MaybeTensor& log_weights, double w_self,
          double w_other, int64_t row_offset);
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

#define FASTIB_BACKWARD(m, partial, arguments)                                                 \
  do {                                                                                         \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, backward), arguments, (partial).tasks());           \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, backward_far), arguments, (partial).groups);        \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, write_rows), arguments, (m).row_chunks());          \
    run_chunks(FASTIB_KERNEL_OF((m).dtype, write_columns), arguments, (m).component_chunks()); \
  } while (false)

}  // namespace fastib
