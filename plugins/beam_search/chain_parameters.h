/* Parameters of the kernels that apply decoding rules: a chain of launches, each for some of the rules. Letters as in
 * parameters.h. */
#ifndef S2S_BEAM_SEARCH_CHAIN_PARAMETERS_H
#define S2S_BEAM_SEARCH_CHAIN_PARAMETERS_H

#include "loop_parameters.h"

enum { S2S_DIGIT_BINS = 2048, S2S_MOST_LIKELY = 128 };

/* What a row's blocks find together. */
typedef struct FilterRow {
  uint64_t counts[S2S_DIGIT_BINS];  /* tokens by the next digit of their number in the order; 0 between launches */
  uint64_t weights[S2S_DIGIT_BINS]; /* likewise, their probabilities */
  uint64_t count, weight;           /* of the tokens below the threshold */
  uint32_t threshold;               /* as far as its digits are known */
  int32_t last;                     /* of the tokens at the threshold, the last one that still counts as below it */
  int32_t arrived;                  /* blocks that have finished; 0 between launches */
  int32_t n_likely;                 /* 0 between launches */
  float likely[S2S_MOST_LIKELY];    /* top-h: the tokens that it looks at, in no order */
  int32_t likely_ids[S2S_MOST_LIKELY];
} FilterRow;

/* What a block finds of its slice of a row, each launch what it is for. */
typedef struct FilterSlice {
  double sum;     /* of exp(score - maximum) */
  double entropy; /* the slice's terms of the row's entropy, with the row's probabilities */
  uint64_t weight; /* the sum of its exponentials in whole numbers, see weights.cuh */
  float maximum;
  int32_t unused;
} FilterSlice;

typedef struct ChainParameters {
  RulesParameters rules;
  FilterRow* filter_rows;     /* [B * K], twice as many where choices are edited; zeros before the first launch */
  FilterSlice* filter_slices; /* the same rows, times lists; scratch */
  int32_t first, end;         /* the rules of this launch; one that has launches of its own is the first */
  int32_t digit;              /* of the threshold: 0 to 2, the highest first */
  int32_t lists;              /* slices of a row */
} ChainParameters;

#endif
