// The losses' scalar type, chosen by LOSS_BITS and LOSS_BRAIN: conversions without CUDA's headers,
// which a node that only runs torch does not have.
#if LOSS_BITS == 32
using Loss = float;
__device__ __forceinline__ float widen(Loss v) { return v; }
__device__ __forceinline__ Loss narrow(float v) { return v; }
#else
using Loss = unsigned short;
__device__ __forceinline__ float widen(Loss v) {
#if LOSS_BRAIN
  return __uint_as_float((unsigned)v << 16);
#else
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v));
  return f;
#endif
}
__device__ __forceinline__ Loss narrow(float v) {
  Loss h;
#if LOSS_BRAIN
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(v));
#else
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(v));
#endif
  return h;
}
#endif
