/* Arguments of the kernels of a Transformer with packed weights. structures.py mirrors them.

Letters: B sources, K beams, R rows of a product, S source length, H heads, D head size, C positions of the caches, E
width of the residual stream, O outputs and I inputs of a product, V vocabulary. Widths are multiples of 16; what a model
has less is filled with zeros, which `true_width` tells. T is the element type, fp16 or bf16.

A weight [O, I] is stored in fragments, as mma.m16n8k16 reads its first operand (fragments.cuh): [O/16, I/16, 32, 8], of T
or of whole numbers of 8 bits with a scale for each output. */
#ifndef S2S_TRANSFORMER_PARAMETERS_H
#define S2S_TRANSFORMER_PARAMETERS_H

#include <stdint.h>

#include "../beam_search/loop_parameters.h"

enum {
  S2S_LINEAR = 0, S2S_RELU = 1, S2S_GELU = 2, S2S_GELU_TANH = 3, S2S_SILU = 4, S2S_QUICK_GELU = 5, S2S_TANH = 6,
  S2S_SIGMOID = 7
};
enum { S2S_GATED = 1, S2S_MAXOUT = 2 };

/* output = activation(scale * input weight^T + bias) + residual. With `gated`, rows 0-7 of each 16 of the weight are a
gate's and rows 8-15 the inner product's: activation(gate) * inner, O/2 outputs; with S2S_MAXOUT the larger of both. Where a
norm comes first, the parts of an earlier product may be added to the input before it. */
typedef struct ProductParameters {
  const void* input;         /* [R, I] T; fp32 where a norm comes first */
  const void* weight;        /* fragments */
  const float* weight_scale; /* [O], of a weight of 8 bits; else not read */
  const float* bias;         /* [O], or null */
  const float* norm_weight;  /* [I], of the norm that comes first */
  const float* norm_bias;    /* [I], or null: an RMSNorm */
  const float* residual;     /* [R, stride] fp32, or null */
  const float* parts;        /* [n_parts, R, I], what is added to the input before its norm, or null */
  const float* parts_bias;   /* [I], added as well, or null */
  float* sum;                /* [R, I]: the input with all that was added to it, or null; not the input's own memory */
  float* normed;             /* [R, I] fp32: the input after its norm, or null; not the input's own memory */
  void* output;              /* [R, stride] T, or null */
  float* output_float;       /* [R, stride] fp32, or null */
  int32_t rows, inputs, outputs;  /* R, I, O */
  int32_t stride, limit;     /* of the output: elements from row to row; outputs from `limit` on are not stored */
  int32_t true_width;        /* of the norm */
  int32_t activation, gated;
  int32_t splits;            /* warps that share the inputs of a tile of 16 outputs: 1, 2, 4 or 8 */
  int32_t n_parts;
  float epsilon, scale;
} ProductParameters;

/* output = norm(input), row by row. */
typedef struct NormParameters {
  const float* input;   /* [R, E] */
  const float* weight;  /* [E] */
  const float* bias;    /* [E], or null: an RMSNorm */
  void* output;         /* [R, E] T, or null */
  float* output_float;  /* [R, E], or null; may be the input */
  int32_t rows, width, true_width;
  float epsilon;
} NormParameters;

/* output = scale * embedding[id] + positions[row]. The row is `rows_of_positions[r]`; else position + offset, or for a
padding token padding_id, which moves with the position where `padding_moves`. */
typedef struct EmbedParameters {
  const int64_t* ids;                /* [R] */
  const void* embedding;             /* [V, E] in fragments */
  const float* embedding_row_scales; /* [V], of an embedding of 8 bits */
  const void* positions;             /* [P, E] in fragments, or null */
  const int32_t* rows_of_positions;  /* [R], or null */
  const int64_t* position;           /* [1] */
  void* output;                      /* [R, E] T */
  float* output_float;               /* [R, E] */
  int32_t rows, width, vocabulary, n_positions, offset;
  int32_t padding_id;                /* or -1 */
  int32_t padding_moves;
  float scale;
} EmbedParameters;

/* A decoder step's self-attention. rows [B*K, 3*H*D]: queries, keys and values. The caches are changed in place. */
typedef struct SelfAttentionParameters {
  const void* rows;
  void* key_cache;           /* [B, H, C*K, D] T, slot t*K + k */
  void* value_cache;
  const int64_t* ancestors;  /* [B, K, C] */
  const int64_t* position;   /* [1] */
  const float* bias;         /* [H, n_distances], or null: of the distance key - query, the first of which is first_distance */
  void* output;              /* [B*K, H*D] T */
  int32_t sources, heads, beams, head_size, capacity, first_distance, n_distances;
  float scale;
} SelfAttentionParameters;

/* The output projection of attention, head by head: parts[h] = the head's result times the weight's inputs of that head. The
sum over the heads is left to whoever reads the parts. */
typedef struct HeadOutputParameters {
  const void* weight;  /* fragments of [O, H*D] */
  const float* weight_scale; /* [O], of a weight of 8 bits */
  float* parts;        /* [H, R, O] */
  int32_t outputs;     /* O */
} HeadOutputParameters;

/* Self-attention and its output projection; attention.output is not used. */
typedef struct SelfBlockParameters {
  SelfAttentionParameters attention;
  HeadOutputParameters output;
} SelfBlockParameters;

/* A decoder step's cross-attention. The key of source b, position s and head h begins at keys + (b*S + s)*stride + h*D. */
typedef struct CrossAttentionParameters {
  const void* query;    /* [B*K, H*D] T */
  const void* keys;     /* T */
  const void* values;
  const int32_t* mask;  /* [B, S]: 0 hides a position */
  void* output;         /* [B*K, H*D] T */
  float* parts;         /* [B*K, H, splits, D + 2], where there are several splits: see cross_attention */
  int32_t sources, heads, beams, head_size, length, stride;
  int32_t splits;       /* blocks among which a source's positions are split; not used by cross_block */
  float scale;
} CrossAttentionParameters;

enum { S2S_MOST_LISTED_HEADS = 64 };

/* The weights of some heads of a layer, for alignments. */
typedef struct CrossWeightsParameters {
  CrossAttentionParameters attention; /* values, output and parts are not used */
  float* weights;                     /* [B*K, n_all, S]: out, those from `first` on */
  int32_t n_all, first, n_heads;
  uint8_t listed[S2S_MOST_LISTED_HEADS]; /* [n_heads]: which heads */
} CrossWeightsParameters;

/* Norm, query, cross-attention and its output projection. query: a product with a norm of at most 1,024 inputs, of whose
fields those of the output, the activation and the residual are not used; nor are attention.query and attention.output. */
typedef struct CrossBlockParameters {
  ProductParameters query;
  CrossAttentionParameters attention;
  HeadOutputParameters output;
} CrossBlockParameters;

/* The output projection, of which only each row's best tokens are kept: lists as LogSoftmaxTopParameters has them, a list
for each block along the vocabulary. Rules that ban tokens or allow only some are applied before. */
typedef struct HeadParameters {
  ProductParameters product; /* limit: V; nothing of its output is used */
  RulesParameters rules;     /* scores and choice are not used; n_rules null: there are none */
  float* list_values;        /* [R, lists, M] */
  int32_t* list_ids;         /* [R, lists, M] */
  float* list_maximum;       /* [R, lists] */
  float* list_sum;           /* [R, lists] */
  int32_t candidates, lists; /* M, at most 32 */
} HeadParameters;

/* The windows of a convolution as rows of a product: row b*S + s has the `size` positions from s*step - padding on, each with
its channels, then zeros. Positions outside the input are zero. */
typedef struct WindowParameters {
  const void* input;  /* [B, length, channels] T; with `by_channel` [B, channels, length] fp32 */
  void* output;       /* [B*S, inputs] T */
  int32_t positions;  /* S */
  int32_t length, channels, inputs;
  int32_t size, step, padding;
  int32_t by_channel;
} WindowParameters;

/* An encoder's self-attention. rows [B*S, 3*H*D]: queries, keys and values. */
typedef struct EncoderAttentionParameters {
  const void* rows;
  const int32_t* mask;  /* [B, S] */
  const float* bias;    /* [H, n_distances], or null */
  void* output;         /* [B*S, H*D] T */
  int32_t sources, heads, head_size, length, first_distance, n_distances;
  float scale;
} EncoderAttentionParameters;

/* A layer of LSTM or GRU cells for one position. Letters: U units, L layers, G gates. A tile of 16 outputs has the gates of
16/G units, one gate behind the other (recurrent.cuh).

A decoder step has R = B*K rows and `length` 0: states lie in rows of `stride` elements. An encoder has R = B rows: the state
of position p is row b*S + p of `after`, direction d in columns d*U and on, and `before` is the same memory. */
typedef struct CellParameters {
  const void* input;         /* [R, input_stride] T, of which the first I are read */
  const void* input_weight;  /* fragments of [O, I] */
  const float* input_scale;  /* [O], of a weight of 8 bits; else not read */
  const float* input_bias;   /* [O], or null */
  const void* hidden_weight; /* fragments of [directions*O, U] */
  const float* hidden_scale; /* [directions*O] */
  const float* hidden_bias;  /* [directions*O], or null */
  const float* added;        /* [R, added_stride], or [B*S, added_stride] of an encoder: what the input gives, or null */
  const int32_t* mask;       /* [B, S] of an encoder */
  const void* before;        /* the last hidden states, T */
  const float* kept_before;  /* an LSTM's last cells, a GRU's last hidden states */
  void* after;
  float* kept_after;
  void* output;              /* [R, output_stride] T: the hidden states once more, or null */
  int32_t rows, inputs, units, outputs;  /* R, I or 0, U, O of one direction */
  int32_t input_stride, stride, added_stride, output_stride;
  int32_t length, step;      /* S, and the number of the position in the order in which it is read */
  int32_t reverse;           /* the first direction reads from the last position to the first */
} CellParameters;

/* What a recurrent decoder's step begins with. after -> before: each beam's states are its parent's; at position 0 they are
the first ones of its source. */
typedef struct BeginParameters {
  const int64_t* ids;        /* [R] */
  const void* embedding;     /* [V, E] in fragments */
  const float* embedding_row_scales;
  void* embedded;            /* [R, stride] T */
  const void* context;       /* [B, context_width] T, copied to each beam, or null */
  void* context_rows;        /* [R, stride] T */
  const int64_t* ancestors;  /* [B, K, C] */
  const int64_t* position;   /* [1] */
  const void* first;         /* [B, L, U] T */
  const float* first_kept;   /* [B, L, U], or null: zeros */
  const void* after;         /* [L, R, U] T */
  const float* kept_after;   /* [L, R, U] */
  void* before;
  float* kept_before;
  int32_t rows, beams, capacity, width, vocabulary, stride, context_width, units, layers;
} BeginParameters;

/* The states with which an encoder has read a whole source. */
typedef struct PickParameters {
  const void* states;   /* [B*S, stride] T */
  const float* kept;    /* [B*S, stride] */
  const int32_t* mask;  /* [B, S] */
  void* output;         /* [B, output_stride] T */
  float* output_kept;   /* [B, output_stride], or null */
  int32_t length, stride, output_stride, units, backward;
} PickParameters;

/* Scores of attention without heads: energy . tanh(query + key), or state . key. */
typedef struct ScoreParameters {
  const float* query;   /* [R, U], with energy */
  const void* state;    /* [R, U] T, without */
  const float* energy;  /* [U], or null */
  const void* keys;     /* [B, S, U] T */
  const int32_t* mask;  /* [B, S] */
  float* scores;        /* [R, S] */
  int32_t beams, length, units;
} ScoreParameters;

/* The mean of annotations, weighted with the softmax of scores. */
typedef struct ContextParameters {
  const float* scores;      /* [R, S] */
  const void* annotations;  /* [B, S, A] T */
  void* output;             /* [R, stride] T */
  int32_t beams, length, width, stride;  /* width: A */
} ContextParameters;

#endif
