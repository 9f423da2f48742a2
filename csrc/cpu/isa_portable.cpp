#define RLAL_ISA portable
#define RLAL_ISA_NAME "portable"
#define RLAL_LANES 4
#define RLAL_TILE_CHANNELS 4
#define RLAL_TILE_PIXELS 3
#define RLAL_WINOGRAD_CHANNELS 6
#define RLAL_WINOGRAD_TILES 2
#define RLAL_DEPTHWISE_PIXELS 4
#include "cpu/kernels.inl"
