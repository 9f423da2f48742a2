#define RLAL_ISA avx512
#define RLAL_ISA_NAME "avx512"
#define RLAL_LANES 16
#define RLAL_TILE_CHANNELS 6
#define RLAL_TILE_PIXELS 4
#define RLAL_WINOGRAD_CHANNELS 6
#define RLAL_WINOGRAD_TILES 4
#define RLAL_DEPTHWISE_PIXELS 8
#include "cpu/kernels.inl"
