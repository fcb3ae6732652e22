// The interface between operators and kernels: arguments, and a table of functions for each instruction set.
//
// Letters: R rows, I inputs and O outputs of a product, V vocabulary, M candidates, Q probed tokens; B sources, K beams,
// H heads, D head size, S source length, C positions of a cache, P places of sources in caches and tables; P = B where
// none are given.
//
// A weight [O,I] is stored in blocks of 16 outputs, the last one padded with zeros:
//
//     fp32  [O/16][I][16]
//     fp16, bf16                 the same, as 16 bits; the arithmetic is that of fp32
//     int8  [O/16][I/4][16][4]   four inputs of an output side by side, I padded with zeros to a multiple of 4
#pragma once

#include <cstddef>
#include <cstdint>

constexpr int BLOCK = 16;  // outputs of a block
constexpr int PANEL = 24;  // blocks of the vocabulary that are computed and examined together: 384 logits of each row,
                           // which stay in the first-level cache. A multiple of every tile's number of blocks.

enum class Storage : int { fp32, int8, fp16, bf16 };  // what the numbers of a weight are kept as
enum class Activation : int { none = 0, relu = 1, silu = 2, gelu = 3, gelu_tanh = 4, quick_gelu = 5 };

// y [R,O] = activation(x [R,I] W^T + bias) + residual. A kernel computes some blocks of outputs.
struct Product {
  int rows, n_in, n_out;
  const float* x;
  Storage storage;
  const void* weight;          // its blocks from weight_block on
  int weight_block;
  const uint16_t* narrow;      // what the weight was made of, in as many blocks of 16 bits, or null
  bool is_cached;              // whether the weight is in the processor's cache already, and need not be asked for
  const float* scale;          // [O] of int8 weights; O padded to whole blocks
  const int32_t* weight_sum;   // [O] sum of each output's int8 weights
  const float* bias;           // [O padded], or null
  const float* residual;       // [R,O], or null
  Activation activation;
  float* y;
  int stride, first_block;  // y begins with block first_block of the outputs; its rows are `stride` floats apart
  // For int8: the rows as unsigned bytes [R, I padded], x = row_scale * (byte - row_zero).
  const uint8_t* bytes;
  const float* row_scale;
  const int32_t* row_zero;
};

struct Norm {
  int rows, width;
  const float* weight;
  const float* bias;  // null for RMSNorm, which subtracts no mean
  float epsilon;
};

struct SelfAttention {
  int n_sources, n_places, beams, heads, size, capacity;
  int longest;  // positions that the source of the longest text attends to
  float scale;
  const int64_t* positions;  // [B], or [1] of all sources
  bool is_each_source;       // whether positions are [B]
  const int64_t* places;     // [B], or null: source b has place b
  const float* qkv;          // [R, 3*H*D]
  const int64_t* ancestors;  // [P,K,C]
  const float* bias;         // [H,C], or null
  bool is_relative;          // whether the bias is that of position C-1; position p reads it C-1-p further on
  float* keys;               // [C,P,H,K,D], written at the position
  float* values;
  float* y;                  // [R, H*D]

  int position_of(int source) const { return int(positions[is_each_source ? source : 0]); }
  int place_of(int source) const { return places ? int(places[source]) : source; }
};

struct CrossAttention {
  int n_sources, beams, heads, size, length;
  float scale;
  const int64_t* places;  // [B], or null: source b has place b
  const float* query;     // [R, H*D]
  const void* keys;       // [P,H,S,D], floats or fp16
  const void* values;
  bool is_fp16;
  const int64_t* mask;    // [P,S], 0 for a hidden position
  float* y;               // [R, H*D]

  int place_of(int source) const { return places ? int(places[source]) : source; }
};

struct EncoderAttention {
  int n_sources, heads, size, length;
  float scale;
  const float* rows;  // [B*S, 3*H*D]: queries, keys and values
  const float* mask;  // added to the scores: [B or 1, H or 1, S or 1, S], or null
  size_t mask_source, mask_head, mask_query;  // distances in it; 0 where its size is 1
  bool is_int8;       // whether the products are of bytes
  float* y;           // [B*S, H*D]
};

// What is kept of a row's logits while they are computed block by block.
struct RowSummary {
  float top;    // largest logit
  float total;  // sum of e**(logit - top)
  int n;        // number of best tokens so far; best first, of equal ones the lower id first
  float* values;
  int64_t* ids;
};

struct Summary {
  int n_candidates, n_probes;
  RowSummary* rows;          // [R], over the blocks of this call
  float* floor;              // [R], of all calls together: no logit of the M best is smaller or equal
  const int64_t* probe_ids;  // [R,Q]
  float* probe_logits;       // [R,Q], written if one of the blocks holds the token
  float* logits;             // [R,V] of all tokens, or null
};

// A copy in int8 of an output projection (screen.h), as of an int8 weight, O padded to whole blocks.
struct ScreenCopy {
  int8_t* weight;
  float* scale;   // [O]
  int32_t* sum;   // [O]
  float* lost;    // [O] no less than the length of what rounding took from an output's weights
  float* norm;    // [O] no less than the length of what is left
};

// Bounds of the logits of R rows.
struct Screened {
  int n_candidates, n_blocks;
  const float *lost, *norm, *bias;  // [O]; bias may be null
  const float *by_lost, *by_norm;   // [R] a logit is off by by_lost * lost + by_norm * norm at most
  RowSummary* least;                // [R] of this call: the best lower bounds; `top` and `total` are not used
  float* highest;                   // [R, n_blocks] out: the highest upper bound of a block's logits
};

struct Kernels {
  const char* name;
  void (*multiply)(const Product&, int first_block, int end_block);
  void (*quantise)(const float* x, int rows, int n_in, uint8_t* bytes, float* scale, int32_t* zero);
  void (*normalise)(const Norm&, const float* x, float* y, int first_row, int end_row);
  void (*gate)(Activation, int width, const float* x, float* y, int rows);  // [rows, 2*width] to [rows, width]
  void (*attend_self)(const SelfAttention&, int first_pair, int end_pair);    // pairs of source and head
  void (*attend_cross)(const CrossAttention&, int first_pair, int end_pair);
  void (*attend_encoder)(const EncoderAttention&, int first_pair, int end_pair);
  void (*summarise)(const Product&, int first_block, int end_block, const Summary&);
  void (*copy_for_screen)(const Product&, int first_block, int end_block, const ScreenCopy&);
  void (*screen)(const Product&, int first_block, int end_block, const Screened&);
};

// Of each set that a library may be linked with. Weak: the address is null where it is not among them.
#define SET(name) extern const Kernels kernels_##name __attribute__((weak))
SET(amx);
SET(avx512);
SET(avxvnni);
SET(avx2);
SET(i8mm);
SET(dotprod);
SET(neon);
SET(plain);
#undef SET
