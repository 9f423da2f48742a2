// The rate of fused multiply-adds that the machine can reach, included by kernels.inl once per
// instruction set. In assembly, because compilers spill the accumulators of such a loop, or remove
// it.

#define RLAL_TWELVE(OP) OP(2) OP(3) OP(4) OP(5) OP(6) OP(7) OP(8) OP(9) OP(10) OP(11) OP(12) OP(13)

#if defined(__AVX512F__)
#define RLAL_FMA(n) "vfmadd231ps %%zmm0, %%zmm1, %%zmm" #n "\n\t"
#elif defined(__FMA__)
#define RLAL_FMA(n) "vfmadd231ps %%ymm0, %%ymm1, %%ymm" #n "\n\t"
#elif defined(__aarch64__)
#define RLAL_FMA(n) "fmla v" #n ".4s, v0.4s, v1.4s\n\t"
#endif

// Floating point operations of `rounds` rounds; 0 where there are no fused multiply-adds. What the
// registers hold does not matter to the speed.
int64_t fma_loop(int64_t rounds) {
#if !defined(RLAL_FMA)
  (void)rounds;
  return 0;
#else
  for (int64_t i = 0; i < rounds; ++i)
#if defined(__aarch64__)
    asm volatile(RLAL_TWELVE(RLAL_FMA)::
                     : "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13");
#else
    asm volatile(RLAL_TWELVE(RLAL_FMA)::
                     : "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                       "xmm11", "xmm12", "xmm13");
#endif
  return rounds * 12 * kLanes * 2;
#endif
}
