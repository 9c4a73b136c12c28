// Per-domain sums of the language-model loss, the weighted loss, and its gradient.
//
// All sums are int64 fixed point, so atomics in any order give the same bits. Compiled by NVRTC
// without host headers; macros in capitals that are not defined here are given by kernel_launch.py.
//
// All tensors are contiguous. With ROWS, ids and inverse hold one value for a row of tokens, else
// one for a token. A thread reads VEC neighbours at once, which with ROWS lie in one row.

using i64 = long long;
using u64 = unsigned long long;
using u32 = unsigned int;

#define ALL 0xffffffffu  // all lanes of a warp

enum : int {
  WARPS = THREADS / 32,
  PEEL = 16,             // domains of one tile that are reduced by shuffles; the rest by atomics
  TILE = 32 * VEC,       // tokens that a warp reads at once
  IDS = ROWS ? 1 : VEC,  // of a thread's tokens
  SPAN = VEC / IDS,      // tokens of one id
  NONE = 0x7fffffff,
};

// A thread's values of a tile are plain if their sizes add up to no more than this: then each, and
// each sum, fits into 32 bits, and none is flagged. Almost all are: four tokens of 30 nats in a row
// of 200 tokens or more.
constexpr float PLAIN = 0x7f000000;
static_assert(PLAIN <= LIMIT * FIXED, "a plain token must not be one to be flagged");

// Partial scalars: of the blocks of one launch, all zero before and after it; or of a warp.
struct Workspace {
  i64 weighted, loss, tokens;
  u32 flagged, ticket;
  __device__ __forceinline__ void add(const Workspace& other) {
    weighted += other.weighted;
    loss += other.loss;
    tokens += other.tokens;
    flagged |= other.flagged;
  }
};

// Mirrored field by field by Arguments in kernel_launch.py.
struct Arguments {
  const float* losses;       // [b, s]
  const float* mask;         // [b, s]
  const int* ids;            // [b] or [b, s]
  const float* inverse;      // as ids, or null, without an accumulator
  const float* multipliers;  // [D], or null: one for every token
  const float* host_loss;    // scalar, or null
  const int* host_tokens;    // scalar, or null
  u64* accumulator;          // [D + 1, COLUMNS], or null, for the loss alone
  u64* totals;               // [4], or null: loss, tokens, microbatches, those with a part of a token
  const float* row_tokens;   // [b], or null: samples are not counted
  float* loss;               // scalar
  float* report;             // [2]
  int* num_tokens;           // scalar
  Workspace* workspace;
  const float* grad;   // scalar
  float* grad_losses;  // [b, s]
  u32 tokens, rows;
  u32 magic, shift;  // the row of a token, without a division: (token * magic >> 32) >> shift
  u32 tiles_per_warp;
  int domains;
};

template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

template <int N, class T>
__device__ __forceinline__ Pack<T, N> read(const T* p) {
  __builtin_assume(__isGlobal(p));  // NVRTC 13.2 does not see it of the first argument
  return *(const Pack<T, N>*)p;
}

// Where the ids of the tokens from `first` on begin.
__device__ __forceinline__ u32 id_of(const Arguments& a, u32 first) {
  return ROWS ? __umulhi(first, a.magic) >> a.shift : first;
}

__device__ __forceinline__ int row_of(int id, int domains) {
  return id >= 0 && id < domains ? id : domains;
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
  float weighted;
};

// Has what is computed from these values computed here. A compiler would compute it before the loop
// over a tile's domains, for all tokens at once, and keep twice as many registers.
#ifndef STAY
#define STAY(x, y, z) asm volatile("" : "+f"(x), "+f"(y), "+f"(z))
#endif

// Sums of one domain, by column; samples are counted by row, and flagged tokens apart until the end.
struct Sums {
  i64 column[COLUMNS], weighted;
  u32 flagged, unweighed;  // tokens whose loss, or weighted loss, is out of range
  __device__ __forceinline__ void take_plain(const Token (&t)[VEC]) {
    int sum[COLUMNS] = {}, of_weighted = 0;
#pragma unroll
    for (int i = 0; i < VEC; i++) {
      sum[COLUMN_LOSS] += __float2int_rn(t[i].loss);
      sum[COLUMN_TOKENS] += __float2int_rn(t[i].tokens);
      sum[COLUMN_SAMPLE_LOSS] += __float2int_rn(t[i].sample);
      of_weighted += __float2int_rn(t[i].weighted);
    }
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) column[k] += sum[k];
    weighted += of_weighted;
  }
  __device__ __forceinline__ void take(const Token (&of)[VEC], int id) {
#pragma unroll
    for (int i = id * SPAN; i < (id + 1) * SPAN; i++) {
      Token t = of[i];
      STAY(t.loss, t.tokens, t.sample);
      const bool bad = !in_range(t.loss), over = bad || !in_range(t.weighted);
      column[COLUMN_LOSS] += __float2ll_rn(bad ? 0.f : t.loss);
      column[COLUMN_TOKENS] += __float2ll_rn(t.tokens);
      column[COLUMN_SAMPLE_LOSS] += __float2ll_rn(bad ? 0.f : t.sample);
      flagged += bad;
      weighted += __float2ll_rn(over ? 0.f : t.weighted);
      unweighed += over;
    }
  }
  __device__ __forceinline__ void reduce() {
    column[COLUMN_LOSS] = warp_sum(column[COLUMN_LOSS]);
    column[COLUMN_TOKENS] = warp_sum(column[COLUMN_TOKENS]);
    column[COLUMN_SAMPLE_LOSS] = warp_sum(column[COLUMN_SAMPLE_LOSS]);
    column[COLUMN_NONFINITE] = __reduce_add_sync(ALL, flagged);
    if (SCALARS) weighted = warp_sum(weighted);
    if (SCALARS) unweighed = __any_sync(ALL, unweighed);
  }
  __device__ __forceinline__ Workspace scalars() const {
    return {weighted, column[COLUMN_LOSS], column[COLUMN_TOKENS], unweighed};
  }
};

__device__ __forceinline__ void store(const Arguments& a, int domain, int column, i64 sum) {
  if (sum && (!SCALARS || a.accumulator)) atomicAdd(a.accumulator + (i64)domain * COLUMNS + column, (u64)sum);
}

__device__ __forceinline__ void store(const Arguments& a, int domain, const Sums& sums) {
#pragma unroll
  for (int k = 0; k < COLUMNS; k++) store(a, domain, k, sums.column[k]);
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
    store(a, row_of(a.ids[row], a.domains), COLUMN_SAMPLES, a.row_tokens[row] > 0.f);
  }
}

__device__ __forceinline__ void load(const Arguments& a, u32 first, Token (&t)[VEC],
                                     int (&domain)[IDS]) {
  const Pack<float, VEC> losses = read<VEC>(a.losses + first), mask = read<VEC>(a.mask + first);
  const u32 at = id_of(a, first);
  const Pack<int, IDS> ids = read<IDS>(a.ids + at);
  Pack<float, IDS> inverse = {};
  if (!SCALARS || a.inverse) inverse = read<IDS>(a.inverse + at);
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    t[i].tokens = mask.v[i] * FIXED;
    t[i].loss = losses.v[i] * t[i].tokens;
    t[i].sample = t[i].loss * (inverse.v[i / SPAN] * SAMPLE_SCALE);
  }
#pragma unroll
  for (int j = 0; j < IDS; j++) {
    domain[j] = row_of(ids.v[j], a.domains);
    const float weight = SCALARS ? weight_of(a, domain[j]) : 0.f;
#pragma unroll
    for (int i = j * SPAN; i < (j + 1) * SPAN; i++) {
      t[i].weighted = SCALARS ? weight * t[i].loss : 0.f;
    }
  }
}

// False for NaN, too.
__device__ __forceinline__ bool is_plain(const Token (&t)[VEC]) {
  float size = 0.f;
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    size += fabsf(t[i].loss) + fabsf(t[i].tokens) + fabsf(t[i].sample);
    if (SCALARS) size += fabsf(t[i].weighted);
  }
  return size <= PLAIN;
}

// Adds one tile to the warp's run of a domain, whatever its tokens are: those of the current run,
// then of another domain that is left, and so on.
__device__ __forceinline__ void add_tile(const Arguments& a, const Token (&t)[VEC],
                                         const int (&domain)[IDS], u32 pending, Sums& run,
                                         int& current, Workspace& total) {
#pragma unroll 1
  for (int left = min(a.domains + 1, (int)PEEL);; left--) {
    int next = NONE;
#pragma unroll
    for (int j = 0; j < IDS; j++) {
      if (!(pending >> j & 1)) continue;
      if (domain[j] == current) {
        run.take(t, j);
        pending ^= 1u << j;
      } else {
        next = domain[j];
      }
    }
    if (!__any_sync(ALL, pending)) return;
    if (left == 0) break;
    if (current != NONE) {
      run.reduce();
      if (threadIdx.x % 32 == 0) {
        store(a, current, run);
        if (SCALARS) total.add(run.scalars());
      }
      run = {};
    }
    current = __reduce_min_sync(ALL, next);
  }
#pragma unroll
  for (int j = 0; j < IDS; j++) {
    Sums one = {};
    if (pending >> j & 1) {
      one.take(t, j);
      one.column[COLUMN_NONFINITE] = one.flagged;
      store(a, domain[j], one);
    }
    if (!SCALARS) continue;
    one.reduce();
    if (threadIdx.x % 32 == 0) total.add(one.scalars());
  }
}

// Orders the atomics before it before those after it. __threadfence() also orders all of a device's
// fences among each other, which takes longer.
#ifndef FENCE
#define FENCE() asm volatile("fence.acq_rel.gpu;" ::: "memory")
#endif

// The last block to arrive writes the scalars and leaves the workspace as it was.
__device__ __forceinline__ void finish(const Arguments& a, const Workspace (&warps)[WARPS]) {
  Workspace *w = a.workspace, sum = {};
  for (const Workspace& warp : warps) sum.add(warp);
  atomicAdd((u64*)&w->weighted, (u64)sum.weighted);
  atomicAdd((u64*)&w->loss, (u64)sum.loss);
  atomicAdd((u64*)&w->tokens, (u64)sum.tokens);
  if (sum.flagged) atomicOr(&w->flagged, 1u);
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
  if (a.totals && a.host_tokens) {
    add_host(a);
  } else if (a.totals) {
    add_totals(a, loss, tokens / (i64)FIXED);
    if (tokens % (i64)FIXED) atomicAdd(a.totals + 3, 1ull);
  }
}

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_PER_PROCESSOR)

// One kernel per cubin: what a run does not use, it does not compile.
#if !GRADIENT
KERNEL NAME(const __grid_constant__ Arguments a) {
  __shared__ i64 runs[WARPS][COLUMNS];
  __shared__ int domains[WARPS];
  __shared__ Workspace totals[WARPS];
  const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, n = a.tokens;
  if (SCALARS && lane == 0) totals[warp] = {};

  Sums run = {};
  int current = NONE;
  // Neighbouring tiles, so that a long document stays in one warp's run.
  u32 tile = (blockIdx.x * WARPS + warp) * a.tiles_per_warp;
  const u32 end = min(tile + a.tiles_per_warp, (n + TILE - 1) / TILE);
#pragma unroll 1
  for (; tile < end; tile++) {
    const u32 first = tile * TILE + lane * VEC;
    Token t[VEC];
    int domain[IDS];
    const bool used = first < n;
    load(a, min(first, n - VEC), t, domain);  // past the end: something

    // Most documents are longer than a tile: then one vote is enough, and nothing leaves the
    // registers.
    bool common = used & is_plain(t);
#pragma unroll
    for (int j = 0; j < IDS; j++) common &= domain[j] == current;
    if (!__any_sync(ALL, !common)) {
      run.take_plain(t);
      continue;
    }
    add_tile(a, t, domain, used ? (1u << IDS) - 1 : 0, run, current, totals[warp]);
  }

  // Not before the loop, whose loads would wait for theirs.
  if (a.row_tokens) count_rows(a);
  if (!SCALARS && a.totals && blockIdx.x == 0 && threadIdx.x == 0) add_host(a);
  run.reduce();
  if (lane == 0) {
    domains[warp] = current;
#pragma unroll
    for (int k = 0; k < COLUMNS; k++) runs[warp][k] = run.column[k];
    if (SCALARS) totals[warp].add(run.scalars());
  }
  __syncthreads();
  if (threadIdx.x < COLUMNS) {  // one atomic for neighbouring warps of one domain
    const int k = threadIdx.x;
    i64 sum = 0;
    for (int w = 0; w < WARPS; w++) {
      sum += runs[w][k];
      if (w + 1 < WARPS && domains[w + 1] == domains[w]) continue;
      if (domains[w] != NONE) store(a, domains[w], k, sum);
      sum = 0;
    }
  }
  if (SCALARS && threadIdx.x == THREADS - 1) finish(a, totals);  // not in the warp that stores above
}

#else
KERNEL NAME(const __grid_constant__ Arguments a) {
  const u32 first = (blockIdx.x * THREADS + threadIdx.x) * VEC;
  if (first >= a.tokens) return;
  const Pack<float, VEC> mask = read<VEC>(a.mask + first);
  const Pack<int, IDS> ids = read<IDS>(a.ids + id_of(a, first));
  const float grad = *a.grad;
  Pack<float, VEC> out;
#pragma unroll
  for (int i = 0; i < VEC; i++) {
    const int domain = row_of(ids.v[i / SPAN], a.domains);
    out.v[i] = weight_of(a, domain) * (grad * mask.v[i]);
  }
  *(Pack<float, VEC>*)(a.grad_losses + first) = out;
}
#endif
