#define RLAL_ISA avx2
#define RLAL_ISA_NAME "avx2"
#define RLAL_LANES 8
#define RLAL_TILE_CHANNELS 4
#define RLAL_TILE_PIXELS 3
#include "cpu/kernels.inl"
