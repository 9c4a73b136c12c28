// Runs a CUDA kernel on the CPU, one block after the other in random order, so that its logic can
// be tested where there is no GPU. Every thread of a block is a fiber; a warp's collective completes
// when all of its 32 lanes have reached the same one, else the launch fails. Not emulated: two
// blocks at once, weak memory order, timing.
#pragma once
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

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
static Fiber fibers[THREADS];
static char stacks[THREADS][64 << 10];
static long long seen[THREADS / 32][32];
static void (*body)();
static char message[200];
static const char* undefined;
static unsigned random_state;
static int additions;  // atomicAdd, in one launch

static void shuffle(int* values, int n) {
  for (int i = n - 1; i > 0; i--) {
    random_state = random_state * 1664525u + 1013904223u;
    const int j = (random_state >> 8) % (i + 1), other = values[j];
    values[j] = values[i];
    values[i] = other;
  }
}

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

static bool run_block() {
  static int order[THREADS];
  for (int i = 0; i < THREADS; i++) {
    order[i] = i;
    Fiber& f = fibers[i];
    f.state = RUN;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = stacks[i];
    f.context.uc_stack.ss_size = sizeof stacks[i];
    f.context.uc_link = nullptr;
    makecontext(&f.context, run_fiber, 0);
  }
  for (;;) {
    shuffle(order, THREADS);
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

// Null, or what went wrong.
static const char* launch(void (*kernel)(), int grid, unsigned seed) {
  static int blocks[1 << 16];
  undefined = nullptr;
  additions = 0;
  random_state = seed;
  body = kernel;
  gridDim.x = grid;
  for (int i = 0; i < grid; i++) blocks[i] = i;
  shuffle(blocks, grid);
  for (int i = 0; i < grid; i++) {
    blockIdx.x = blocks[i];
    if (!run_block()) return message;
  }
  return undefined;
}
}  // namespace emulator

// What -fsanitize=undefined reports, without its library: misaligned vectors, overflows, shifts.
#define REPORT(kind) \
  extern "C" void __ubsan_handle_##kind() { emulator::undefined = "undefined behaviour: " #kind; }
REPORT(type_mismatch_v1)
REPORT(add_overflow)
REPORT(sub_overflow)
REPORT(mul_overflow)
REPORT(negate_overflow)
REPORT(divrem_overflow)
REPORT(shift_out_of_bounds)
REPORT(out_of_bounds)
REPORT(load_invalid_value)
REPORT(pointer_overflow)
REPORT(builtin_unreachable)
REPORT(missing_return)
#undef REPORT

inline void __syncthreads() { emulator::wait(emulator::BLOCK, 0, 0); }
#define FENCE()  // memory is in order here
#define STAY(x, y, z)  // compilers order here what they like
#define __isGlobal(p) true
#define __builtin_assume(claim)
inline long long __shfl_xor_sync(unsigned, long long v, int offset) {
  return emulator::collective(100 + offset, v)[threadIdx.x % 32 ^ offset];
}
inline int __any_sync(unsigned, unsigned predicate) {
  const long long* all = emulator::collective(1, predicate != 0);
  for (int i = 0; i < 32; i++) {
    if (all[i]) return 1;
  }
  return 0;
}
inline int __reduce_min_sync(unsigned, int v) {
  const long long* all = emulator::collective(2, v);
  int least = (int)all[0];
  for (int i = 1; i < 32; i++) least = all[i] < least ? (int)all[i] : least;
  return least;
}
inline unsigned __reduce_add_sync(unsigned, unsigned v) {
  const long long* all = emulator::collective(3, v);
  unsigned sum = 0;
  for (int i = 0; i < 32; i++) sum += (unsigned)all[i];
  return sum;
}
template <class T>
T atomicAdd(T* p, T v) {
  emulator::additions++;
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
inline int __float2int_rn(float v) { return (int)lrintf(v); }
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
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned long long)a * b >> 32; }
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
