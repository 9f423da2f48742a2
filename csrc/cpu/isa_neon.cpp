#define RLAL_ISA neon
#define RLAL_ISA_NAME "neon"
#define RLAL_LANES 4
#define RLAL_TILE_CHANNELS 6
#define RLAL_TILE_PIXELS 4
#define RLAL_WINOGRAD_CHANNELS 6
#define RLAL_WINOGRAD_TILES 4
#define RLAL_DEPTHWISE_PIXELS 8
// Scheduled before registers are given out, a tile's weights are all loaded first: with 24 sums and
// 4 inputs that is more than 32 registers, and GCC keeps sums on the stack.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-schedule-insns")
#endif
#include "cpu/kernels.inl"
