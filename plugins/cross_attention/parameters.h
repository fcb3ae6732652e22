/* Parameters of the cross-attention kernel. Letters: B sources, H heads, K beams, D head size, S source length. */
#ifndef S2S_CROSS_ATTENTION_PARAMETERS_H
#define S2S_CROSS_ATTENTION_PARAMETERS_H

#include "../common/launch.h"

typedef struct CrossAttentionParameters {
  const void* query; /* [B, H, K, D] */
  const void* key;   /* [B, H, S, D] */
  const void* value; /* [B, H, S, D] */
  const void* mask;  /* [B, S] in the element type, added to the scaled scores; at or below -8192: hidden */
  const void* bias;  /* [H, S] in the element type, added to the scaled scores; or null */
  void* output;      /* [B, H, K, D] */
  int32_t sources, heads, beams, head_size, length;
  float scale;
} CrossAttentionParameters;

#endif
