// Runs a CUDA kernel on the CPU, one block after the other in random order, so that its logic can
// be tested where there is no GPU. Every thread of a block is a fiber; a warp's collective completes
// when all of its 32 lanes have reached the same one, else the launch fails. Not emulated: two
// blocks at once, weak memory order, timing.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#define __restrict__

struct Index {
  unsigned x;
};
static Index threadIdx, blockIdx, gridDim;

namespace emulator {
enum State { RUN, WARP, BLOCK, DONE };
struct Fiber {
  ucontext_t context;
  State state;
  int site;
  long long value;
};
static ucontext_t scheduler;
static std::vector<Fiber> fibers;
static std::vector<std::vector<char>> stacks;
static long long seen[THREADS / 32][32];
static void (*body)();
static char message[200];

static void wait(State state, int site, long long value) {
  Fiber& me = fibers[threadIdx.x];
  me.state = state;
  me.site = site;
  me.value = value;
  swapcontext(&me.context, &scheduler);
}
static const long long* collective(int site, long long value) {
  wait(WARP, site, value);
  return seen[threadIdx.x / 32];
}
static void run_fiber() {
  body();
  wait(DONE, 0, 0);
}

// False where some lanes of a warp, or threads of a block, wait for others that will not come.
static bool meet(int begin, int end, State state) {
  for (int i = begin; i < end; i++) {
    if (fibers[i].state != state || fibers[i].site != fibers[begin].site) return false;
  }
  for (int i = begin; i < end; i++) {
    seen[i / 32][i % 32] = fibers[i].value;
    fibers[i].state = RUN;
  }
  return true;
}

static bool run_block(std::mt19937& random) {
  std::vector<int> order(THREADS);
  std::iota(order.begin(), order.end(), 0);
  for (int i = 0; i < THREADS; i++) {
    Fiber& f = fibers[i];
    f.state = RUN;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks[i].data();
    f.context.uc_stack.ss_size = stacks[i].size();
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  for (;;) {
    std::shuffle(order.begin(), order.end(), random);
    for (int i : order) {
      if (fibers[i].state != RUN) continue;
      threadIdx.x = i;
      swapcontext(&scheduler, &fibers[i].context);
    }
    bool met = meet(0, THREADS, BLOCK);
    for (int i = 0; i < THREADS; i += 32) met |= meet(i, i + 32, WARP);
    if (met) continue;
    for (int i = 0; i < THREADS; i++) {
      if (fibers[i].state == DONE) continue;
      snprintf(message, sizeof message, "block %u: thread %d waits at a collective (%d) for others",
               blockIdx.x, i, fibers[i].site);
      return false;
    }
    return true;
  }
}

static const char* launch(void (*kernel)(), unsigned grid, unsigned seed) {
  std::mt19937 random(seed);
  fibers.resize(THREADS);
  stacks.assign(THREADS, std::vector<char>(64 << 10));
  body = kernel;
  gridDim.x = grid;
  std::vector<unsigned> blocks(grid);
  std::iota(blocks.begin(), blocks.end(), 0u);
  std::shuffle(blocks.begin(), blocks.end(), random);
  for (unsigned block : blocks) {
    blockIdx.x = block;
    if (!run_block(random)) return message;
  }
  return nullptr;
}
}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::BLOCK, 0, 0); }
inline void __threadfence() {}
inline long long __shfl_xor_sync(unsigned, long long v, int offset) {
  return emulator::collective(100 + offset, v)[threadIdx.x % 32 ^ offset];
}
inline int __any_sync(unsigned, unsigned predicate) {
  const long long* all = emulator::collective(1, predicate != 0);
  return std::any_of(all, all + 32, [](long long v) { return v; });
}
inline int __reduce_min_sync(unsigned, int v) {
  const long long* all = emulator::collective(2, v);
  return (int)*std::min_element(all, all + 32);
}
template <class T>
T atomicAdd(T* p, T v) {
  const T old = *p;
  *p = old + v;
  return old;
}
template <class T>
T atomicOr(T* p, T v) {
  const T old = *p;
  *p = old | v;
  return old;
}
template <class T>
T atomicExch(T* p, T v) {
  const T old = *p;
  *p = v;
  return old;
}
inline long long __float2ll_rn(float v) { return llrintf(v); }
inline double __longlong_as_double(long long v) {
  double d;
  memcpy(&d, &v, sizeof d);
  return d;
}
inline float __uint_as_float(unsigned v) {
  float f;
  memcpy(&f, &v, sizeof f);
  return f;
}
using std::min;
