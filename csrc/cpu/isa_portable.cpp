#define RLAL_ISA portable
#define RLAL_ISA_NAME "portable"
#define RLAL_LANES 4
#define RLAL_TILE_CHANNELS 4
#define RLAL_TILE_PIXELS 3
#include "cpu/kernels.inl"
