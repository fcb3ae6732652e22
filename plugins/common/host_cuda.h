// CUDA's execution model on one CPU thread: enough of it to run our kernels unchanged.
//
// Blocks run one after another. The threads of a block are fibers; a fiber runs until it meets a barrier (__syncthreads,
// __syncwarp, a shuffle, a vote) and goes on once all others of its block or warp have met it too. What is
// undefined on a GPU shows here:
//   * shared memory is filled with NaN before every block, so a read before the write shows in the result;
//   * `schedule` orders blocks and threads: 0 forward, 1 backward, else a random order from that seed. A missing barrier
//     changes results between orders;
//   * a barrier that some thread never reaches (divergence, early return) is reported as kDeadlock.
// Not emulated: warps in lockstep without a barrier, partial masks (every warp primitive takes all 32 lanes), blocks that
// run at the same time (so an atomic operation is a plain one). Not safe for several threads at once: one launch at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "host_fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::max;
using std::min;

namespace host_cuda {

constexpr int kDeadlock = -100;
constexpr int kWarp = 32;
constexpr size_t kShownBytes = 64;
constexpr size_t kSharedBytes = 48 * 1024;  // what a kernel may declare statically on every architecture

struct Barrier {
  int expected = 0, arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t exchange[2][kWarp];  // two buffers: the next exchange may start while a slow lane still reads the last one
  alignas(16) char shown[2][kWarp][kShownBytes];  // likewise
};

struct Thread {
  Fiber fiber;
  bool done = false;
  int exchanges = 0;
  size_t shared_used = 0;
};

struct Machine {
  std::function<void()> kernel;
  std::vector<std::unique_ptr<Thread>> threads;
  std::vector<Warp> warps;
  Barrier block;
  alignas(16) char shared[kSharedBytes];
  int block_votes[2] = {0, 0};
  int current = 0;
  bool progress = false;
  uint64_t schedule = 0;
  void (*predecessor)() = nullptr;  // the launch before this one, which has yet to run
  bool awaits = false;              // a thread waits for it
};

inline Machine machine;

inline Thread& self() { return *machine.threads[machine.current]; }
inline int lane() { return machine.current % kWarp; }
inline Warp& warp() { return machine.warps[machine.current / kWarp]; }

inline void wait(Barrier& barrier) {
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    machine.progress = true;
    return;
  }
  while (barrier.generation == generation) self().fiber.leave();
}

// Each thread declares the same objects in the same order, so counting bytes gives all of them the same address.
template <class Type>
Type* shared() {
  size_t& used = self().shared_used;
  used = (used + 15) / 16 * 16;
  static_assert(sizeof(Type) <= kSharedBytes, "more static shared memory than a block may have");
  char* address = machine.shared + used;
  used += sizeof(Type);
  if (used > kSharedBytes) std::abort();
  return reinterpret_cast<Type*>(address);
}

template <class Value>
Value exchange(Value value, int source) {
  static_assert(sizeof(Value) <= 8, "shuffles move at most eight bytes");
  uint64_t* slots = warp().exchange[self().exchanges++ & 1];
  std::memcpy(&slots[lane()], &value, sizeof value);
  wait(warp().barrier);
  std::memcpy(&value, &slots[source], sizeof value);
  return value;
}

// What every lane of the warp shows: lane l's is found at index l * kShownBytes. Good until the lane's second next call.
template <class Value>
const char* show(const Value& value) {
  static_assert(sizeof(Value) <= kShownBytes, "more than a lane may show");
  auto* slots = warp().shown[self().exchanges++ & 1];
  std::memcpy(slots[lane()], &value, sizeof value);
  wait(warp().barrier);
  return slots[0];
}

// Whatever the first block of a launch does before it waits for the launch before it is done before that one has begun: the
// earliest that a GPU allows, so a read that comes too early finds old values.
inline void await_predecessor() {
  while (machine.predecessor != nullptr) {
    machine.awaits = true;
    self().fiber.leave();
  }
}

// Runs the launch before this one on a machine of its own. Called on the scheduler's stack.
inline void run_predecessor() {
  const dim3 old_block = blockIdx, old_block_size = blockDim, old_grid = gridDim;
  static Machine suspended;
  void (*run)() = machine.predecessor;
  machine.predecessor = nullptr;
  machine.awaits = false;
  std::swap(machine, suspended);
  machine.schedule = suspended.schedule;
  run();
  std::swap(machine, suspended);
  blockIdx = old_block, blockDim = old_block_size, gridDim = old_grid;
}

inline void thread_main() {
  self().fiber.arrived();
  machine.kernel();
  self().done = true;
  machine.progress = true;
  self().fiber.leave(true);
}

inline std::vector<unsigned> order(unsigned count, uint64_t salt) {
  std::vector<unsigned> result(count);
  std::iota(result.begin(), result.end(), 0u);
  if (machine.schedule == 1) std::reverse(result.begin(), result.end());
  if (machine.schedule > 1) std::shuffle(result.begin(), result.end(), std::mt19937_64(machine.schedule + salt));
  return result;
}

inline int run_block(unsigned count, uint64_t number) {
  std::memset(machine.shared, 0xff, kSharedBytes);
  machine.block = Barrier{static_cast<int>(count)};
  machine.warps.assign((count + kWarp - 1) / kWarp, Warp{});
  for (unsigned w = 0; w < machine.warps.size(); ++w)
    machine.warps[w].barrier.expected = static_cast<int>(min(count - w * kWarp, static_cast<unsigned>(kWarp)));
  while (machine.threads.size() < count) machine.threads.push_back(std::make_unique<Thread>());
  for (unsigned t = 0; t < count; ++t) {
    Thread& thread = *machine.threads[t];
    thread.done = false;
    thread.exchanges = 0;
    thread.shared_used = 0;
    thread.fiber.start(thread_main);
  }
  const std::vector<unsigned> turns = order(count, number + 1);
  for (unsigned left = count; left > 0;) {
    machine.progress = false;
    for (unsigned t : turns) {
      if (machine.threads[t]->done) continue;
      machine.current = static_cast<int>(t);
      threadIdx = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y));
      machine.threads[t]->fiber.enter();
      left -= machine.threads[t]->done;
    }
    if (machine.progress) continue;
    if (!machine.awaits) return kDeadlock;
    run_predecessor();  // all threads wait for it, or for those that do
  }
  return 0;
}

// Runs every block of the grid to its end: 0, or kDeadlock.
inline int run(std::function<void()> kernel, dim3 grid, dim3 block) {
  machine.kernel = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  for (unsigned number : order(grid.x * grid.y * grid.z, 0)) {
    blockIdx = dim3(number % grid.x, number / grid.x % grid.y, number / (grid.x * grid.y));
    if (int status = run_block(block.x * block.y * block.z, number)) return status;
  }
  return 0;
}

}  // namespace host_cuda

inline void __syncwarp(unsigned = 0xffffffffu) { host_cuda::wait(host_cuda::warp().barrier); }
inline void __syncthreads() { host_cuda::wait(host_cuda::machine.block); }
inline void __threadfence() {}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }

inline unsigned atomicOr(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address |= value;
  return before;
}
inline unsigned atomicAnd(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address &= value;
  return before;
}

template <class Value>
Value atomicAdd(Value* address, Value value) {
  const Value before = *address;
  *address += value;
  return before;
}

inline int __syncthreads_or(int predicate) {
  int& votes = host_cuda::machine.block_votes[0];
  if (host_cuda::machine.block.arrived == 0) votes = 0;
  votes |= predicate != 0;
  __syncthreads();
  const int result = votes;
  __syncthreads();  // all have to read this vote's result before the next vote begins
  return result;
}

template <class Value>
Value __shfl_sync(unsigned, Value value, int source, int width = host_cuda::kWarp) {
  const int first = host_cuda::lane() / width * width;
  return host_cuda::exchange(value, first + source % width);
}

template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int lane_mask) {
  return host_cuda::exchange(value, host_cuda::lane() ^ lane_mask);
}

template <class Value>
Value __shfl_down_sync(unsigned, Value value, int delta) {
  const int source = host_cuda::lane() + delta;
  return host_cuda::exchange(value, source < host_cuda::kWarp ? source : host_cuda::lane());
}

inline unsigned __ballot_sync(unsigned, int predicate) {
  unsigned votes = 0;
  const uint64_t* slots = host_cuda::warp().exchange[host_cuda::self().exchanges & 1];
  host_cuda::exchange(static_cast<uint64_t>(predicate != 0), 0);
  for (int lane = 0; lane < host_cuda::warp().barrier.expected; ++lane) votes |= static_cast<unsigned>(slots[lane] & 1) << lane;
  return votes;
}

// The next launch begins before `run`, which is to run the launch before it, and has to wait for it.
extern "C" __attribute__((visibility("default"), used)) inline void s2s_host_predecessor(void (*run)()) {
  host_cuda::machine.predecessor = run;
}

// Whether a launch has waited for the one before it, as it has to. Forgets that one if not.
extern "C" __attribute__((visibility("default"), used)) inline int s2s_host_has_waited() {
  const bool has = host_cuda::machine.predecessor == nullptr;
  host_cuda::machine.predecessor = nullptr;
  return has;
}

// Tests choose the order of blocks and threads here; results must not depend on it.
extern "C" __attribute__((visibility("default"), used)) inline void s2s_host_schedule(uint64_t schedule) {
  host_cuda::machine.schedule = schedule;
}
