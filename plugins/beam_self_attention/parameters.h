/* Parameters of the beam self-attention kernel. Letters: B sources, H heads, K beams, D head size, C positions. */
#ifndef S2S_BEAM_SELF_ATTENTION_PARAMETERS_H
#define S2S_BEAM_SELF_ATTENTION_PARAMETERS_H

#include "../common/launch.h"

typedef struct BeamSelfAttentionParameters {
  const void* query;        /* [B, H, K, D] */
  const void* key;          /* [B, H, K, D], this step's */
  const void* value;        /* [B, H, K, D] */
  void* key_cache;          /* [B, H, C * K, D], slot t * K + k; slots position * K .. + K - 1 are written */
  void* value_cache;        /* like key_cache */
  const void* bias;         /* [H, C] in the element type, added to the scaled scores; or null */
  const int64_t* ancestors; /* [B, K, C]: the beam whose slot holds position t; outside 0..K-1: position t is hidden */
  const int64_t* position;  /* [1]: the position that this step writes; in device memory */
  void* output;             /* [B, H, K, D] */
  int32_t sources, heads, beams, head_size, capacity;
  float scale;
} BeamSelfAttentionParameters;

#endif
