/* Parameters of the decoding loop's other kernels: decoding rules, draws, records. Letters as in parameters.h; H tokens of
 * the longest text, S tokens of a source. All pointers are device memory. */
#ifndef S2S_BEAM_SEARCH_LOOP_PARAMETERS_H
#define S2S_BEAM_SEARCH_LOOP_PARAMETERS_H

#include "parameters.h"

typedef struct NormalizeParameters {
  const void* logits;  /* [R, V] in the element type */
  float* list_maximum; /* [R, lists] scratch */
  float* list_sum;     /* [R, lists] scratch */
  float* scores;       /* [R, V] out: log-probabilities */
  float* choice;       /* [R, V] out: the logits; or null */
  const int32_t* stop; /* [1]: a step after the end changes nothing */
  int32_t rows, vocabulary, lists;
} NormalizeParameters;

/* What a rule does. Effects up to S2S_ONLY change the tokens that the rule names (decoding/rule.py); effects up to
 * S2S_RENORMALIZE change all scores; those up to S2S_ETA are filters, which keep some tokens and remove the rest. S2S_TIMES
 * is the order of times among words (times.cuh), whose four numbers are among the ids. */
enum {
  S2S_BAN = 0, S2S_ADD = 1, S2S_SCALE = 2, S2S_GROW = 3, S2S_ONLY = 4,
  S2S_TEMPERATURE = 5, S2S_REMOVE_INVALID = 6, S2S_RENORMALIZE = 7,
  S2S_TOP_K = 8, S2S_TOP_P = 9, S2S_TOP_H = 10, S2S_MIN_P = 11, S2S_TYPICAL_P = 12, S2S_EPSILON = 13, S2S_ETA = 14,
  S2S_TIMES = 15
};

/* Which tokens a rule names. */
enum {
  S2S_LISTED = 0,       /* ids[first_id .. first_id + count) */
  S2S_HISTORY = 1,      /* the row's text so far */
  S2S_SOURCE = 2,       /* its source */
  S2S_NGRAM = 3,        /* what followed an earlier occurrence of the text's last n - 1 tokens in the text */
  S2S_SOURCE_NGRAM = 4, /* the same in the source */
  S2S_SEQUENCES = 5     /* the last token of each sequence whose other tokens end the text: `count` records of
                           1 + n ids, the length and then the tokens */
};

typedef struct DeviceRule {
  int32_t effect, which;
  int32_t first_length, last_length; /* the rule is active at these lengths of the text so far, prompt included */
  int32_t n;                         /* see above; for top-k, k; for top-h, how many tokens it looks at; for other filters, the
                                        least number of tokens to keep */
  int32_t first_id, count;
  int32_t first_amount; /* ADD: amounts, one for each mention; GROW: one for each length - first_length; else unused */
  float amount;         /* SCALE, TEMPERATURE: the factor; top-p: 1 - p; other filters: the option's value */
} DeviceRule;

typedef struct RulesParameters {
  const DeviceRule* rules; /* in order */
  const int32_t* n_rules;  /* [1] */
  const int32_t* ids;
  const float* amounts;
  const int32_t* history; /* [B, K, H] */
  const int32_t* sources; /* [B, S], padded with -1 */
  const int64_t* position;
  const int32_t* stop;
  float* scores; /* [B, K, V] in and out */
  float* choice; /* [B, K, V] in and out, or null */
  int32_t n_sources, beams, vocabulary, history_width, source_width;
} RulesParameters;

enum { S2S_DRAW_SLICE = 2048 }; /* tokens of a slice */

typedef struct DrawParameters {
  const float* scores;        /* [B, K, V]: after the rules */
  const float* beam_scores;   /* [B, K]; null when rows are drawn */
  const uint64_t* seed;       /* [1] */
  const uint64_t* numbers;    /* [B]: the number of each source */
  const int64_t* position;    /* [1] */
  const int32_t* stop;        /* [1] */
  float* maxima;              /* rows: [B, K, lists] scratch */
  uint64_t* weights;          /* rows: [B, K, lists] scratch */
  uint64_t* race;             /* beams: [B, lists, n_drawn] scratch */
  int32_t* arrived;           /* rows: [B, K]; beams: [B]: blocks that have finished, 0 between launches */
  int64_t* drawn_ids;         /* rows: [B, K] out; beams: [B, n_drawn] out */
  int32_t* drawn_beams;       /* beams: [B, n_drawn] out */
  float* drawn_sums;          /* beams: [B, n_drawn] out */
  int32_t n_sources, beams, vocabulary, n_drawn, lists;
} DrawParameters;

typedef struct RecordParameters {
  const float* scores;               /* [B, K, V] after the rules; null: the candidates have the log-probabilities */
  const float* candidate_log_probs;  /* [B, K, M] */
  const int64_t* candidate_ids;      /* [B, K, M] */
  const int32_t* tokens;             /* [T, B, K] */
  const int32_t* parents;            /* [T, B, K] */
  const int32_t* pool_steps;         /* [B, K] */
  const int32_t* pool_parents;       /* [B, K] */
  const int32_t* pool_tokens;        /* [B, K] */
  const int64_t* position;
  const int32_t* stop;
  float* token_scores;    /* [T, B, K] out: the log-probability of each token */
  float* finished_scores; /* [T, B, K] out: of the last tokens of hypotheses that finished at a step, in the pool's order */
  int32_t* history;       /* [B, K, H] in and out, or null */
  int32_t n_sources, beams, vocabulary, candidates, prompt, limit, history_width;
} RecordParameters;

typedef struct RowUpdateParameters {
  const int64_t* chosen_ids;      /* [R] */
  const float* chosen_log_probs;  /* [R]; read when `scores` is null */
  const float* scores;            /* [R, V] after the rules, or null */
  const int64_t* end_ids;         /* [n_end] */
  int64_t* position;              /* [1] in and out */
  int32_t* stop;                  /* [1] in and out */
  int32_t* finished;              /* [R] in and out */
  int32_t* n_generated;           /* [R] in and out: the end token included */
  int64_t* next_tokens;           /* [R] out */
  int32_t* tokens;                /* [T, R] out at this step */
  float* token_scores;            /* [T, R] out at this step */
  int32_t* history;               /* [R, H] out at this length, or null */
  int32_t rows, vocabulary, n_end, fill, prompt, limit, history_width;
} RowUpdateParameters;

#define S2S_STOPPED (1ull << 32)

typedef struct PublishParameters {
  const int32_t* tokens;      /* [T, B, K] */
  const int32_t* parents;     /* [T, B, K]; null for rows */
  const int32_t* pool_steps;  /* [B, K]; rows: n_generated */
  const int32_t* pool_parents;
  const int32_t* pool_tokens;
  const int32_t* pool_finished;
  const int32_t* open;
  const int64_t* position;
  const int32_t* stop;
  int32_t* news;     /* [T, B, 2K + 4], host memory, or null: tokens, parents, best output's step, parent, token; settled */
  uint64_t* progress;  /* [1], host memory: steps done, and S2S_STOPPED once the search has ended; one word, so that no
                          reader sees one without the other */
  int32_t* iterations; /* [1]: steps that were queued, in and out */
  uint64_t condition;  /* of the WHILE node around this step, or 0 */
  int32_t n_sources, beams, prompt, limit, early_stopping;
} PublishParameters;

/* All that follows a step's candidates in beam search, in one launch. */
typedef struct BeamStepParameters {
  LogSoftmaxTopParameters top;  /* whose lists are merged */
  BeamUpdateParameters update;
  RecordParameters record;
  BeamStopParameters stop;
  PublishParameters publish;
  const int64_t* drawn_ids;     /* [B, n_chosen] in place of the lists, or null */
  const int32_t* drawn_beams;   /* [B, n_chosen] */
  const float* drawn_sums;      /* [B, n_chosen] */
  int32_t* arrived;             /* [1]: blocks that have finished, 0 between launches */
} BeamStepParameters;

/* The same for independent rows. */
typedef struct RowStepParameters {
  LogSoftmaxTopParameters top;
  RowUpdateParameters rows;
  PublishParameters publish;
  int32_t* arrived;
  int32_t merges;               /* 0: the tokens were drawn, and there are no lists */
} RowStepParameters;

#endif
