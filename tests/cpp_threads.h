// For ThreadSanitizer, which knows C++'s threads and not those of PyTorch's OpenMP: the kernels' loops on four of the
// former. Included before everything else.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace torch::stable {

inline uint32_t count_of_cpp_threads() { return 4; }

template <class Loop>
void for_on_cpp_threads(int64_t begin, int64_t end, int64_t, const Loop& loop) {
  const int64_t part = (end - begin + count_of_cpp_threads() - 1) / count_of_cpp_threads();
  std::vector<std::thread> threads;
  for (int64_t at = begin; at < end; at += part) threads.emplace_back(loop, at, std::min(at + part, end));
  for (std::thread& thread : threads) thread.join();
}

}  // namespace torch::stable

#define parallel_for for_on_cpp_threads
#define get_num_threads count_of_cpp_threads
