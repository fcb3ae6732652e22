/* Parameters of the beam-search kernels. Letters: B sources, K beams, R = B*K rows, V vocabulary, M candidates,
 * C positions of the cache, T steps. All pointers are device memory. */
#ifndef S2S_BEAM_SEARCH_PARAMETERS_H
#define S2S_BEAM_SEARCH_PARAMETERS_H

#include "../common/launch.h"

enum { S2S_BAD_CANDIDATES = -7 }; /* M below 1, above V, or too many for one block; or too many end tokens */

typedef struct LogSoftmaxTopParameters {
  const void* logits;          /* [R, V] in the element type */
  float* list_values;          /* [R, lists, M] scratch */
  int32_t* list_ids;           /* [R, lists, M] scratch */
  float* list_maximum;         /* [R, lists] scratch */
  float* list_sum;             /* [R, lists] scratch */
  float* log_normalizer;       /* [R]: log sum exp of the logits */
  float* candidate_log_probs;  /* [R, M], best first */
  int64_t* candidate_ids;      /* [R, M]; of equal logits the lower token first */
  int32_t rows, vocabulary, candidates, lists; /* lists: s2s_log_softmax_top_lists(V) */
  int32_t keeps_values; /* 1: the values are not logits; candidate_log_probs are these values as they are, not normalised */
} LogSoftmaxTopParameters;

enum { S2S_EARLY_STOPPING_FALSE = 0, S2S_EARLY_STOPPING_TRUE = 1 }; /* "never" differs only in the bound, see below */

typedef struct BeamUpdateParameters {
  const float* candidate_log_probs; /* [B, K, M], after the decoding rules; in any order */
  const int64_t* candidate_ids;     /* [B, K, M] */
  const int64_t* position;          /* [1]: the cache position that this step wrote; step = position - prompt + 1 */
  const int64_t* end_ids;           /* [n_end] */
  const float* length_divisor;      /* [limit + 1]: n ** length_penalty, rounded to fp32, for n tokens */
  float* scores;                    /* [B, K] in and out: of the running beams */
  int64_t* next_tokens;             /* [B, K] out: what the beams feed next */
  int32_t* tokens;                  /* [T, B, K] out at this step */
  int32_t* parents;                 /* [T, B, K] out at this step */
  int64_t* ancestors;               /* [B, K, C] in and out */
  float* pool_scores;               /* [B, K] in and out: the best finished hypotheses, best first */
  int32_t* pool_finished;           /* [B, K] in and out: 0 for an empty slot */
  int32_t* pool_steps;              /* [B, K] in and out: the step at which it finished */
  int32_t* pool_parents;            /* [B, K] in and out: the beam that it continued at that step */
  int32_t* pool_tokens;             /* [B, K] in and out: its last token */
  int32_t* open;                    /* [B] in and out: 1 while a better hypothesis may still finish */
  int32_t* all_hit;                 /* [B] out: 1 when every candidate ends its text */
  const int32_t* stop;              /* [1]: a step after the end changes nothing */
  int32_t sources, beams, candidates, n_end;
  int32_t prompt;                   /* tokens of the decoder prompt */
  int32_t limit;                    /* max_length - prompt: at most this many tokens are generated */
  int32_t capacity;                 /* C */
  int32_t early_stopping;           /* S2S_EARLY_STOPPING_... */
  int32_t bound_at_limit;           /* 1: "never" with a length penalty above 0: the bound assumes the longest length */
} BeamUpdateParameters;

typedef struct BeamStopParameters {
  const int32_t* open;          /* [B] */
  const int32_t* all_hit;       /* [B] */
  const int32_t* pool_finished; /* [B, K] */
  int64_t* position;            /* [1] in and out: advanced by one unless the search stops */
  int32_t* stop;                /* [1] in and out: once set, nothing changes */
  int32_t sources, beams, early_stopping;
} BeamStopParameters;

#endif
