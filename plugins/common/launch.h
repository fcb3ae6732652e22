/* The C interface that all launchers share: element types, status codes, and what a launch looks like. */
#ifndef S2S_LAUNCH_H
#define S2S_LAUNCH_H

#include <stdint.h>

enum { S2S_FP32 = 0, S2S_FP16 = 1, S2S_BF16 = 2 };

/* 0 is success; a positive status is a cudaError_t of the launch. */
enum {
  S2S_OK = 0,
  S2S_BAD_ELEMENT = -1,    /* not one of the three element types */
  S2S_BAD_HEAD_SIZE = -2,  /* not a multiple of 8 in 8..128 */
  S2S_BAD_BEAMS = -3,      /* not in 1..16 */
  S2S_BAD_EXTENT = -4,     /* sources, heads or positions below 1, or sources above 65535 */
  S2S_BAD_POINTER = -5,    /* null, or not aligned to 16 bytes */
  S2S_DEADLOCK = -100      /* host build only: a barrier that some thread never reached */
};

/* The kernel, grid and block of a launch, for callers that load the binary themselves. */
typedef struct S2SLaunch {
  char kernel[64];
  uint32_t grid[3];
  uint32_t threads;
} S2SLaunch;

#endif
