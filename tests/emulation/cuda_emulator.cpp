// The scheduler of the emulated threads. It plays the hardware, so it is compiled without any sanitizer; what it tells
// AddressSanitizer and ThreadSanitizer where a process runs under them makes a fiber a thread to them.
//
// To ThreadSanitizer only barriers, __syncwarp and fences order memory; shuffles and votes do not. Even and odd blocks
// have fibers and tokens of their own, so nothing orders a block before the next, and races between blocks show.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "cuda_emulator.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unordered_map>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

extern "C" {
__attribute__((weak)) void __sanitizer_start_switch_fiber(void**, const void*, size_t);
__attribute__((weak)) void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
__attribute__((weak)) void __asan_unpoison_memory_region(void const volatile*, size_t);
__attribute__((weak)) void* __tsan_get_current_fiber(void);
__attribute__((weak)) void* __tsan_create_fiber(unsigned);
__attribute__((weak)) void __tsan_switch_to_fiber(void*, unsigned);
__attribute__((weak)) void __tsan_acquire(void*);
__attribute__((weak)) void __tsan_release(void*);
__attribute__((weak)) void AnnotateIgnoreWritesBegin(const char*, int);
__attribute__((weak)) void AnnotateIgnoreWritesEnd(const char*, int);
void emulator_switch(void** from, void* to);  // saves the stack pointer of one fiber, and goes on with another
}

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch
.type emulator_switch,@function
emulator_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size emulator_switch,.-emulator_switch
)");
constexpr int kSavedRegisters = 6;
#else
#error "the emulation needs a context switch for this processor"
#endif

namespace emulator {

Thread* current = nullptr;

namespace {

int setting(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? 0 : std::atoi(value);
}

constexpr size_t kStack = 256 * 1024, kPage = 4096;
constexpr int kMostThreads = 256, kWarp = 32;  // as all launch bounds say; a GPU refuses more

enum class State { ready, at_barrier, in_warp_operation, done };

struct Fiber {
  Thread thread;
  State state = State::done;
  int number = 0;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  WarpOperation operation;
  unsigned mask;
  uint64_t value, result;
  int source;
  void *tsan = nullptr, *asan = nullptr;
};

// The lanes of one warp that meet under one mask.
struct Meeting {
  unsigned mask, arrived = 0, generation = 0;
};

std::vector<Fiber> fiber_sets[2];
Fiber* fibers;
int set_number;
std::vector<Meeting> meetings[kMostThreads / kWarp];
Body body;
void* argument;
const char* kernel;
Fiber* running;
void *scheduler_stack_pointer, *scheduler_tsan, *scheduler_asan;
const void* main_stack;
size_t main_stack_size;
int threads, alive, waiting, votes, last_votes;
unsigned first_ready, end_ready, barrier_generation;
char barrier_tokens[2][2], warp_tokens[2][kMostThreads / kWarp][2], start_token, end_token, fence_token;
std::string error;
std::unordered_map<const void*, void*> shared_variables;
int order = setting("EMULATED_ORDER");  // 0: ascending; 1: descending, blocks too; more: seeds of a random order
uint64_t random_state;

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void acquire(char* token) {
  if (__tsan_acquire) __tsan_acquire(token);
}
void release(char* token) {
  if (__tsan_release) __tsan_release(token);
}

// The scheduler's own memory is no business of ThreadSanitizer's.
struct Hidden {
  Hidden() {
    if (AnnotateIgnoreWritesBegin) AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Hidden() {
    if (AnnotateIgnoreWritesEnd) AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }
};

void to_scheduler() {
  Fiber* f = running;
  if (__sanitizer_start_switch_fiber)
    __sanitizer_start_switch_fiber(f->state == State::done ? nullptr : &f->asan, main_stack, main_stack_size);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(scheduler_tsan, 1);
  emulator_switch(&f->stack_pointer, scheduler_stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(f->asan, &main_stack, &main_stack_size);
}

void to_fiber(int i) {
  running = &fibers[i];
  current = &running->thread;
  if (__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&scheduler_asan, running->stack, kStack);
  if (__tsan_switch_to_fiber) __tsan_switch_to_fiber(running->tsan, 1);
  emulator_switch(&scheduler_stack_pointer, running->stack_pointer);
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(scheduler_asan, nullptr, nullptr);
}

void set_error(const std::string& what, const uint3& block) {
  if (error.empty()) error = what + " in block " + std::to_string(block.x);
}

[[noreturn]] void fail(const std::string& what) {
  set_error(what + ", thread " + std::to_string(running->number), running->thread.block);
  for (;;) to_scheduler();
}

void enter() {
  if (__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
  acquire(&start_token);
  body(argument);
  release(&end_token);
  running->state = State::done;
  --alive;
  to_scheduler();
  std::abort();
}

// A ring, as long as there can be threads.
int& ready(unsigned i) {
  static int ring[kMostThreads];
  return ring[i % kMostThreads];
}

void make_ready(int i) {
  fibers[i].state = State::ready;
  ready(end_ready++) = i;
}

void make_all_ready() {
  for (int i = 0; i < threads; ++i) make_ready(i);
}

// The next to run, by `order`.
int take_ready() {
  if (order == 0) return ready(first_ready++);
  if (order > 1)
    std::swap(ready(first_ready + unsigned(next_random() % (end_ready - first_ready))), ready(end_ready - 1));
  return ready(--end_ready);
}

void prepare_fiber(int i, uint3 block, dim3 block_size, dim3 grid_size) {
  Fiber& f = fibers[i];
  const auto n = unsigned(i);
  f.number = i;
  f.thread.index = {n % block_size.x, n / block_size.x % block_size.y, n / (block_size.x * block_size.y)};
  f.thread.block = block;
  f.thread.block_size = block_size;
  f.thread.grid_size = grid_size;
  f.thread.lane = i % kWarp;
  f.thread.copies_begun = 0;
  // A thread that came to its end left nothing poisoned; one of a kernel that failed did.
  if (__asan_unpoison_memory_region && f.state != State::done) __asan_unpoison_memory_region(f.stack, kStack);
  void** top = reinterpret_cast<void**>(f.stack + kStack) - 1;
  *top = nullptr;  // a return address that is never taken; it leaves the stack as a function finds it
  *--top = reinterpret_cast<void*>(&enter);
  for (int k = 0; k < kSavedRegisters; ++k) *--top = nullptr;
  f.stack_pointer = top;
  f.asan = nullptr;
}

void report_deadlock(uint3 block) {
  int in_warp = 0, at_barrier = 0;
  unsigned mask = 0;
  for (int i = 0; i < threads; ++i) {
    at_barrier += fibers[i].state == State::at_barrier;
    if (fibers[i].state != State::in_warp_operation) continue;
    ++in_warp;
    mask = fibers[i].mask;
  }
  char text[200];
  std::snprintf(text, sizeof text,
                "deadlock: of %d threads %d at a barrier, %d at a warp operation (mask %08x), %d done", threads,
                at_barrier, in_warp, mask, threads - alive);
  set_error(text, block);
}

void run_block(uint3 block, dim3 block_size, dim3 grid_size) {
  first_ready = end_ready = 0;
  waiting = votes = 0;
  alive = threads;
  for (auto& m : meetings) m.clear();
  for (int i = 0; i < threads; ++i) prepare_fiber(i, block, block_size, grid_size);
  make_all_ready();
  while (error.empty() && alive > 0) {
    if (first_ready == end_ready) report_deadlock(block);
    else to_fiber(take_ready());
  }
  const Hidden hidden;
  for (auto& [key, memory] : shared_variables) std::free(memory);
  shared_variables.clear();
}

void make_stacks(int count) {
  for (int k = 0; k < (__tsan_create_fiber ? 2 : 1); ++k) {
    if (fiber_sets[k].size() < size_t(count)) fiber_sets[k].resize(size_t(count));
    for (auto& f : fiber_sets[k]) {
      if (f.stack != nullptr) continue;
      void* memory =
          mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) std::abort();
      mprotect(memory, kPage, PROT_NONE);  // a stack that overflows is a crash
      f.stack = static_cast<char*>(memory) + kPage;
      if (__tsan_create_fiber) f.tsan = __tsan_create_fiber(0);
    }
  }
}

}  // namespace

int perturbation = setting("EMULATED_PERTURBATION");

void block_barrier() {
  char* token = &barrier_tokens[set_number][barrier_generation & 1];
  release(token);
  running->state = State::at_barrier;
  if (++waiting == threads) {
    waiting = 0;
    ++barrier_generation;
    last_votes = votes;
    votes = 0;
    make_all_ready();
  }
  to_scheduler();
  acquire(token);
}

int block_vote(int predicate) {
  votes += predicate != 0;
  block_barrier();
  return last_votes;
}

uint64_t warp_operation(WarpOperation operation, unsigned mask, uint64_t value, int source) {
  const Hidden hidden;
  Fiber* f = running;
  const int first = f->number / kWarp * kWarp, lanes = std::min(kWarp, threads - first);
  if ((mask >> f->thread.lane & 1) == 0) fail("a warp operation by a lane that is not in its mask");
  auto& of_warp = meetings[first / kWarp];
  auto meeting = std::find_if(of_warp.begin(), of_warp.end(), [&](const Meeting& m) { return m.mask == mask; });
  if (meeting == of_warp.end()) meeting = of_warp.insert(of_warp.end(), Meeting{mask});
  f->operation = operation;
  f->mask = mask;
  f->value = value;
  f->source = source;
  f->state = State::in_warp_operation;
  meeting->arrived |= 1u << f->thread.lane;
  char* token = &warp_tokens[set_number][first / kWarp][meeting->generation & 1];
  if (operation == WarpOperation::synchronise) release(token);
  const unsigned existing = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  if (meeting->arrived == (mask & existing)) {
    const unsigned arrived = meeting->arrived;
    uint64_t ballot = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      if ((arrived >> lane & 1) == 0) continue;
      if (fibers[first + lane].operation != operation) fail("lanes of one mask in different warp operations");
      if (fibers[first + lane].value & 1) ballot |= uint64_t(1) << lane;
    }
    for (int lane = 0; lane < lanes; ++lane) {
      if ((arrived >> lane & 1) == 0) continue;
      Fiber& t = fibers[first + lane];
      const bool there = t.source >= 0 && t.source < lanes && (arrived >> t.source & 1) != 0;
      t.result = operation == WarpOperation::vote ? ballot : there ? fibers[first + t.source].value : ~uint64_t(0);
      make_ready(first + lane);
    }
    meeting->arrived = 0;
    ++meeting->generation;
  }
  to_scheduler();
  if (operation == WarpOperation::synchronise) acquire(token);
  return f->result;
}

void* shared_variable(const void* key, size_t bytes) {
  const Hidden hidden;
  void*& memory = shared_variables[key];
  if (memory == nullptr) {
    memory = std::malloc(bytes);
    std::memset(memory, 0xff, bytes);
  }
  return memory;
}

void fence() {
  release(&fence_token);
  acquire(&fence_token);
}

void run_grid(dim3 grid, dim3 block, Body body_, void* argument_, const char* kernel_) {
  threads = int(block.x * block.y * block.z);
  kernel = kernel_;
  body = body_;
  argument = argument_;
  if (threads < 1 || threads > kMostThreads || grid.x == 0) {
    error = "invalid launch";
    return;
  }
  random_state = 0x9E3779B97F4A7C15ull * unsigned(order + 1);
  if (__tsan_get_current_fiber) scheduler_tsan = __tsan_get_current_fiber();
  make_stacks(threads);
  release(&start_token);
  for (unsigned n = 0; n < grid.x && error.empty(); ++n) {
    set_number = __tsan_create_fiber ? int(n & 1) : 0;
    fibers = fiber_sets[set_number].data();
    run_block({order == 1 ? grid.x - 1 - n : n, 0, 0}, block, grid);
  }
  acquire(&end_token);
}

}  // namespace emulator

cudaError_t cudaGetLastError() { return emulator::error.empty() ? cudaSuccess : 1; }

const char* cudaGetErrorString(cudaError_t) {
  static std::string text;
  text = emulator::error;
  emulator::error.clear();
  return text.c_str();
}
