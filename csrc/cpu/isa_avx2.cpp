#define RLAL_ISA avx2
#define RLAL_ISA_NAME "avx2"
#define RLAL_LANES 8
#define RLAL_TILE_CHANNELS 4
#define RLAL_TILE_PIXELS 3
#define RLAL_WINOGRAD_CHANNELS 6
#define RLAL_WINOGRAD_TILES 2
#define RLAL_DEPTHWISE_PIXELS 4
#include "cpu/kernels.inl"
