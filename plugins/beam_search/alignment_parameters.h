/* Parameters of the kernel that keeps a step's cross-attention for alignments. Letters as in parameters.h; L layers,
 * H heads, S source positions. All pointers are device memory. */
#ifndef S2S_BEAM_SEARCH_ALIGNMENT_PARAMETERS_H
#define S2S_BEAM_SEARCH_ALIGNMENT_PARAMETERS_H

#include "parameters.h"

typedef struct AlignmentParameters {
  const void* attention;   /* [R, L, H, S] in the element type: the weights of the tokens that the step was fed */
  const int64_t* position; /* [1] */
  const int32_t* stop;     /* [1]: a step after the end changes nothing */
  float* alignment;        /* [T, R, S] out at this step: the mean over the last layer's heads; or [T, R, L, H, S] */
  int32_t rows, layers, heads, width, prompt, limit;
  int32_t keeps_heads;     /* 1: the weights of all heads are kept as they are */
} AlignmentParameters;

#endif
