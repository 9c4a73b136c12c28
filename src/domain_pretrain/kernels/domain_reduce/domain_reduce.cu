// Per-domain sums of the language-model loss, the weighted loss, and its gradient.
//
// All sums are int64 fixed point, so atomics in any order give the same bits. Compiled by NVRTC
// without host headers; macros in capitals that are not defined here are given by kernel_launch.py.
#include "scalar.cuh"

using i64 = long long;
using u64 = unsigned long long;
using u32 = unsigned int;
#if ID_BITS == 64
using Id = i64;
#else
using Id = int;
#endif

#define ALL 0xffffffffu  // all lanes of a warp

enum : int {
  WARPS = THREADS / 32,
  TILE = 32 * VEC,  // tokens that a warp reads at once
  PEEL = 16,        // domains of one tile that are reduced by shuffles; the rest by atomics
  NONE = 0x7fffffff,
  TERMS = 4,        // columns that are summed by token
};

// Partial scalars of the blocks of one launch; all zero before and after it.
struct Workspace {
  i64 weighted, loss, tokens;
  u32 flagged, ticket;
};

// Mirrored field by field by Arguments in kernel_launch.py. Strides are in elements; a column stride
// of 0 stands for one value per row.
struct Arguments {
  const Loss* losses;        // [b, s]
  const float* mask;         // [b, s]
  const Id* ids;             // [b] or [b, s]
  const float* inverse;      // [b] or [b, s]
  const float* row_tokens;   // [b], or null: samples are not counted
  const float* multipliers;  // [D], or null: one for every token
  const float* host_loss;    // scalar, or null
  const int* host_tokens;    // scalar, or null
  u64* accumulator;          // [D + 1, COLUMNS]
  u64* totals;               // [3], or null: loss, tokens, microbatches
  float* loss;               // scalar
  float* report;             // [2]
  int* num_tokens;           // scalar
  const float* grad;         // scalar
  Loss* grad_losses;         // [b, s], contiguous
  Workspace* workspace;
  i64 losses_row, losses_column, mask_row, mask_column;
  i64 ids_row, ids_column, inverse_row, inverse_column;
  u32 rows, columns, tiles_per_warp;
  int domains;
};

template <class T>
struct alignas(sizeof(T) * VEC < 16 ? sizeof(T) * VEC : 16) Pack {
  T v[VEC];
};

// VEC neighbours of one row. With VEC > 1 the column stride is 1 and the address aligned, or it
// is 0: kernel_launch.py chose VEC by that.
template <class T>
__device__ __forceinline__ Pack<T> read(const T* base, i64 row_stride, i64 column_stride, u32 row,
                                        u32 column) {
  const T* p = base + row * row_stride + column * column_stride;
  if constexpr (VEC > 1) {
    if (column_stride == 0) {
      Pack<T> same;
#pragma unroll
      for (int i = 0; i < VEC; i++) same.v[i] = *p;
      return same;
    }
  }
  return *(const Pack<T>*)p;
}

__device__ __forceinline__ int row_of(Id id, int domains) {
  return id >= 0 && id < domains ? (int)id : domains;
}

__device__ __forceinline__ float weight_of(const Arguments& a, int domain) {
  if (!a.multipliers) return 1.f;
  return domain < a.domains ? a.multipliers[domain] : 0.f;
}

// False for NaN, too.
__device__ __forceinline__ bool in_range(float v) { return fabsf(v) <= LIMIT * FIXED; }

__device__ __forceinline__ i64 warp_sum(i64 v) {
#pragma unroll
  for (int offset = 16; offset; offset >>= 1) v += __shfl_xor_sync(ALL, v, offset);
  return v;
}

struct Token {
  float loss, tokens, sample;  // in units of their grids, not rounded yet
  bool flagged;
  int domain;
};

// Sums of one domain, in the order of `column`.
struct Sums {
  i64 term[TERMS];
  __device__ __forceinline__ void take(const Token& t) {
    term[0] += __float2ll_rn(t.loss);
    term[1] += __float2ll_rn(t.tokens);
    term[2] += __float2ll_rn(t.sample);
    term[3] += t.flagged;
  }
  __device__ __forceinline__ void reduce() {
#pragma unroll
    for (int k = 0; k < TERMS; k++) term[k] = warp_sum(term[k]);
  }
};

__device__ __forceinline__ void store(const Arguments& a, int domain, int k, i64 sum) {
  if (!sum) return;
  const int column = k == 0   ? COLUMN_LOSS
                     : k == 1 ? COLUMN_TOKENS
                     : k == 2 ? COLUMN_SAMPLE_LOSS
                              : COLUMN_NONFINITE;
  atomicAdd(a.accumulator + (i64)domain * COLUMNS + column, (u64)sum);
}

// The scalars as the host's schedule takes them; one thread of a launch.
__device__ __forceinline__ void add_totals(const Arguments& a, i64 loss, i64 tokens) {
  atomicAdd(a.totals, (u64)loss);
  atomicAdd(a.totals + 1, (u64)tokens);
  atomicAdd(a.totals + 2, 1ull);
}

__device__ __forceinline__ void add_host(const Arguments& a) {
  const float loss = *a.host_loss * FIXED;
  const bool finite = fabsf(loss) <= TOTAL_LIMIT * FIXED;  // false for NaN, too
  add_totals(a, finite ? __float2ll_rn(loss) : 0, *a.host_tokens);
}

__device__ __forceinline__ void count_rows(const Arguments& a) {
  for (u32 row = blockIdx.x * THREADS + threadIdx.x; row < a.rows; row += gridDim.x * THREADS) {
    if (a.row_tokens[row] > 0.f) {
      const int domain = row_of(a.ids[row * a.ids_row], a.domains);
      atomicAdd(a.accumulator + (i64)domain * COLUMNS + COLUMN_SAMPLES, 1ull);
    }
  }
}

template <bool SUMS>
__device__ __forceinline__ void load(const Arguments& a, u32 first, Token (&t)[VEC]) {
  const u32 row = first / a.columns, column = first - row * a.columns;
  const Pack<Loss> losses = read(a.losses, a.losses_row, a.losses_column, row, column);
  const Pack<float> mask = read(a.mask, a.mask_row, a.mask_column, row, column);
  const Pack<Id> ids = read(a.ids, a.ids_row, a.ids_column, row, column);
  Pack<float> inverse = {};
  if (SUMS) inverse = read(a.inverse, a.inverse_row, a.inverse_column, row, column);
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    t[i].tokens = mask.v[i] * FIXED;
    t[i].loss = widen(losses.v[i]) * t[i].tokens;
    t[i].flagged = !in_range(t[i].loss);
    if (t[i].flagged) t[i].loss = 0.f;
    t[i].sample = t[i].loss * (inverse.v[i] * SAMPLE_SCALE);
    t[i].domain = row_of(ids.v[i], a.domains);
  }
}

// Adds one tile to the warp's run of a domain. Most documents are longer than a tile: then the
// first pass takes all tokens, and nothing leaves the registers.
__device__ __forceinline__ void add_tile(const Arguments& a, const Token (&t)[VEC], u32 pending,
                                         Sums& run, int& current) {
  const int most = min(a.domains + 1, (int)PEEL);
  for (int peeled = 0;; peeled++) {
#pragma unroll
    for (int i = 0; i < VEC; i++) {
      if ((pending >> i & 1) && t[i].domain == current) {
        run.take(t[i]);
        pending ^= 1u << i;
      }
    }
    if (!__any_sync(ALL, pending)) return;
    if (peeled == most) break;
    if (current != NONE) {
      run.reduce();
      if (threadIdx.x % 32 == 0) {
#pragma unroll
        for (int k = 0; k < TERMS; k++) store(a, current, k, run.term[k]);
      }
      run = {};
    }
    int lowest = NONE;
#pragma unroll
    for (int i = 0; i < VEC; i++) {
      if (pending >> i & 1) lowest = min(lowest, t[i].domain);
    }
    current = __reduce_min_sync(ALL, lowest);
  }
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    if (pending >> i & 1) {
      Sums one = {};
      one.take(t[i]);
#pragma unroll
      for (int k = 0; k < TERMS; k++) store(a, t[i].domain, k, one.term[k]);
    }
  }
}

// Orders the atomics before it before those after it. __threadfence() also orders all of a device's
// fences among each other, which takes longer.
#ifndef FENCE
#define FENCE() asm volatile("fence.acq_rel.gpu;" ::: "memory")
#endif

// The last block to arrive writes the scalars and leaves the workspace as it was.
__device__ __forceinline__ void finish(const Arguments& a, const i64 (&sum)[4]) {
  Workspace* w = a.workspace;
  atomicAdd((u64*)&w->weighted, (u64)sum[0]);
  atomicAdd((u64*)&w->loss, (u64)sum[1]);
  atomicAdd((u64*)&w->tokens, (u64)sum[2]);
  if (sum[3]) atomicOr(&w->flagged, 1u);
  FENCE();
  if (atomicAdd(&w->ticket, 1u) != gridDim.x - 1) return;
  FENCE();
  const i64 weighted = (i64)atomicExch((u64*)&w->weighted, 0ull);
  const i64 loss = (i64)atomicExch((u64*)&w->loss, 0ull);
  const i64 tokens = (i64)atomicExch((u64*)&w->tokens, 0ull);
  const double nan = atomicExch(&w->flagged, 0u) ? __longlong_as_double(0x7ff8000000000000ll) : 0.;
  atomicExch(&w->ticket, 0u);
  const double unit = 1. / FIXED;
  const double value =
      a.host_loss ? (double)*a.host_loss + (weighted - loss) * unit : weighted * unit;
  *a.loss = (float)(value + nan);
  a.report[0] = (float)(loss * unit + nan);
  a.report[1] = (float)(tokens * unit);
  *a.num_tokens = (int)(tokens / (i64)FIXED);
  if (a.totals) add_totals(a, loss, tokens / (i64)FIXED);
}

template <bool SUMS, bool SCALARS>
__device__ __forceinline__ void forward(const Arguments& a) {
  __shared__ i64 runs[WARPS][TERMS], scalars[WARPS][4];
  __shared__ int domains[WARPS];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = a.rows * a.columns;

  Sums run = {};
  int current = NONE;
  i64 total[4] = {};  // weighted, loss, tokens, flagged
  // Neighbouring tiles, so that a long document stays in one warp's run.
  u32 tile = (blockIdx.x * WARPS + warp) * a.tiles_per_warp;
  for (const u32 end = tile + a.tiles_per_warp; tile < end && tile * TILE < n; tile++) {
    const u32 first = tile * TILE + lane * VEC;
    Token t[VEC] = {};
    if (first < n) load<SUMS>(a, first, t);
    if (SUMS) add_tile(a, t, first < n ? (1u << VEC) - 1 : 0, run, current);
    if (SCALARS && first < n) {
#pragma unroll
      for (int i = 0; i < VEC; i++) {
        const float weighted = weight_of(a, t[i].domain) * t[i].loss;
        const bool over = !in_range(weighted);
        total[0] += __float2ll_rn(over ? 0.f : weighted);
        total[1] += __float2ll_rn(t[i].loss);
        total[2] += __float2ll_rn(t[i].tokens);
        total[3] += over || t[i].flagged;
      }
    }
  }

  // Not before the loop, whose loads would wait for theirs.
  if (SUMS && a.row_tokens) count_rows(a);
  if (!SCALARS && a.totals && blockIdx.x == 0 && threadIdx.x == 0) add_host(a);
  if (SUMS) {
    run.reduce();
    if (lane == 0) {
      domains[warp] = current;
#pragma unroll
      for (int k = 0; k < TERMS; k++) runs[warp][k] = run.term[k];
    }
  }
  if (SCALARS) {
#pragma unroll
    for (int k = 0; k < 4; k++) {
      total[k] = warp_sum(total[k]);
      if (lane == 0) scalars[warp][k] = total[k];
    }
  }
  __syncthreads();
  if (SUMS && threadIdx.x < TERMS) {  // one atomic for neighbouring warps of one domain
    const int k = threadIdx.x;
    i64 sum = 0;
    for (int w = 0; w < WARPS; w++) {
      sum += runs[w][k];
      if (w + 1 < WARPS && domains[w + 1] == domains[w]) continue;
      if (domains[w] != NONE) store(a, domains[w], k, sum);
      sum = 0;
    }
  }
  if (SCALARS && threadIdx.x == THREADS - 1) {  // not in the warp that stores above
    i64 sum[4] = {};
    for (int w = 0; w < WARPS; w++) {
#pragma unroll
      for (int k = 0; k < 4; k++) sum[k] += scalars[w][k];
    }
    finish(a, sum);
  }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, 2)

// One kernel per cubin: what a run does not use, it does not compile.
#if defined(REDUCE)
KERNEL reduce(const __grid_constant__ Arguments a) { forward<true, false>(a); }
#elif defined(LOSS)
KERNEL loss(const __grid_constant__ Arguments a) { forward<false, true>(a); }
#elif defined(REDUCE_AND_LOSS)
KERNEL reduce_and_loss(const __grid_constant__ Arguments a) { forward<true, true>(a); }
#elif defined(COUNT)
KERNEL count(const __grid_constant__ Arguments a) { count_rows(a); }
#elif defined(GRADIENT)
KERNEL gradient(const __grid_constant__ Arguments a) {
  const u32 first = (blockIdx.x * THREADS + threadIdx.x) * VEC;
  if (first >= a.rows * a.columns) return;
  const u32 row = first / a.columns, column = first - row * a.columns;
  const Pack<float> mask = read(a.mask, a.mask_row, a.mask_column, row, column);
  const Pack<Id> ids = read(a.ids, a.ids_row, a.ids_column, row, column);
  const float grad = *a.grad;
  Pack<Loss> out;
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    out.v[i] = narrow(weight_of(a, row_of(ids.v[i], a.domains)) * (grad * mask.v[i]));
  }
  *(Pack<Loss>*)(a.grad_losses + first) = out;
}
#endif
