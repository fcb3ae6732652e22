// Products of rows of bytes with an int8 weight by the tile instructions of AMX. A weight lies in the order in which they
// read it, and their sums are exact in 32 bits as all others here are, so that results are those of kernels_avx512, bit for
// bit. Those also do what does not fit: inputs that do not fill whole tiles, and fewer rows than are worth one.
#pragma once

#include <utility>

#include "ahead.h"
#include "epilogue.h"
#include "kernels.h"
#include "tiles.h"

namespace KERNELS {

#if defined(HAS_TILES)

constexpr int LEAST_TILED = 4;        // rows from which on a product is computed in tiles
constexpr int LEAST_TILED_HEAD = 16;  // of the output projection, whose weights come from memory
constexpr int MOST_INPUTS = 1 << 15;  // so that the sum of an output's weights fits 128 times 16 bits
#if defined(S2S_EMULATED_TILES)
constexpr int64_t LEAST_WORK = 1;  // so that small tests have tiles too
#else
constexpr int64_t LEAST_WORK = 1 << 17;  // multiplications; in the 0.2 us of loading shapes 50,000 are done without tiles
#endif
static_assert(BLOCK * 4 == TILE_BYTES && LANES == BLOCK, "a tile has the outputs of a block, and so has a vector");

// The numbers of the tiles, for ROW_TILES x 2 or 1 x BLOCKS sums: these first, then the rows' bytes, then the weights.
template <int ROW_TILES>
constexpr int sum_tile(int i, int j) {
  return i * 2 + j;
}
constexpr int FIRST_X = 4;
template <int ROW_TILES>
constexpr int weight_tile(int j) {  // three of them take turns where one tile has all rows
  return FIRST_X + ROW_TILES + j % (4 - ROW_TILES);
}

// Loads the shapes for tiles of so many rows, and gives the tiles back at the end: as long as they are in use the system
// saves them whenever it changes threads.
template <int ROW_TILES>
class Shaped {
 public:
  explicit Shaped(const int (&rows)[ROW_TILES]) {
    TileShapes shapes;
    for (int i = 0; i < ROW_TILES; i++) {
      for (int j = 0; j < 4 / ROW_TILES; j++) shapes.set(sum_tile<ROW_TILES>(i, j), rows[i]);
      shapes.set(FIRST_X + i, rows[i]);
    }
    for (int j = 0; j < 4 - ROW_TILES; j++) shapes.set(weight_tile<ROW_TILES>(j), TILE_ROWS);
    load_shapes(shapes);
  }
  ~Shaped() { release_tiles(); }
  Shaped(const Shaped&) = delete;
};

// Calls f with 0, 1, ..., N - 1 as constants.
template <typename F, int... I>
inline void each(std::integer_sequence<int, I...>, F f) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int N, typename F>
inline void each(F f) {
  each(std::make_integer_sequence<int, N>{}, f);
}

// Sums of ROW_TILES tiles of rows and up to 4 / ROW_TILES blocks, and where they belong.
template <int ROW_TILES>
struct Group {
  alignas(64) int32_t sums[ROW_TILES * TILE_ROWS][4 / ROW_TILES * BLOCK];
  alignas(64) int32_t zeros[ROW_TILES * TILE_ROWS];  // of the rows, as `finish` multiplies them
  int row = 0, n_rows = 0, block = 0, n_blocks = 0;
  int done = 0;  // rows that became outputs
};

// The sums of ROW_TILES tiles of rows, from `row` on, and BLOCKS blocks, from `block` on. meanwhile: called after each of
// so many steps; what it does runs beside the products, which have an execution unit of their own.
template <int ROW_TILES, int BLOCKS, typename Meanwhile>
inline void sums_of_tiles(const Product& p, int row, int block, int32_t (&sums)[ROW_TILES * TILE_ROWS][4 / ROW_TILES * BLOCK],
                          const Meanwhile& meanwhile) {
  const size_t width = size_t(p.n_in), step = width * BLOCK;
  const uint8_t* x = p.bytes + size_t(row) * width;
  const int8_t* w = static_cast<const int8_t*>(p.weight) + size_t(block) * step;
  Ahead ahead(p, row, ROW_TILES * TILE_ROWS, p.n_in / 4);
  each<ROW_TILES>([&](auto i) { each<BLOCKS>([&](auto j) { clear_tile<sum_tile<ROW_TILES>(i, j)>(); }); });
  for (int k = 0, lines = 0; k < p.n_in; k += TILE_BYTES) {
    for (lines += TILE_ROWS; lines >= ahead.every; lines -= ahead.every) ahead.fetch<BLOCKS>(w, step, TILE_BYTES);
    each<ROW_TILES>([&](auto i) { load_tile<FIRST_X + i>(x + i * TILE_ROWS * width + k, width); });
    each<BLOCKS>([&](auto j) {
      load_tile<weight_tile<ROW_TILES>(j)>(w + j * step + size_t(k) * BLOCK, TILE_BYTES);
      each<ROW_TILES>([&](auto i) { add_products<sum_tile<ROW_TILES>(i, j), FIRST_X + i, weight_tile<ROW_TILES>(j)>(); });
    });
    meanwhile(k / TILE_BYTES + 1);
  }
  each<ROW_TILES>([&](auto i) {
    each<BLOCKS>([&](auto j) { store_tile<sum_tile<ROW_TILES>(i, j)>(&sums[i * TILE_ROWS][j * BLOCK], sizeof sums[0]); });
  });
}

// Makes outputs of a group's rows up to `end`. A row's zero point times the sum of an output's weights is subtracted in one
// instruction: the sum is told as 128 times a number of 16 bits and what is left over.
template <Activation ACTIVATION, int ROW_TILES>
inline void finish(const Product& p, Group<ROW_TILES>& group, int end) {
  for (int j = 0; j < group.n_blocks; j++) {
    const int output = (group.block + j) * BLOCK, n = p.n_out - output;
    const Floats scale = load(p.scale + output), bias = p.bias ? load(p.bias + output) : Floats{};
    const Wrapping weight_sum = Wrapping(load(p.weight_sum + output));
    const __m512i parts = __m512i((weight_sum & 127) | Wrapping(Ints(weight_sum) >> 7) << 16);
    for (int i = group.done; i < end; i++) {
      const Ints sums = load(&group.sums[i][j * BLOCK]);
      const Ints exact = Ints(_mm512_dpwssd_epi32(__m512i(sums), parts, _mm512_set1_epi32(group.zeros[i])));
      Floats values = to_floats(exact) * (scale * p.row_scale[group.row + i]);
      asm("" : "+v"(values));  // rounded before the bias is added, as elsewhere: else one instruction does both
      put(p, group.row + i, output, n, values, bias, ACTIVATION);
    }
  }
  group.done = end;
}

// Computes groups of tiles one after the other, and of each the outputs while the next one's products are computed.
template <Activation ACTIVATION, int ROW_TILES>
class InTurn {
 public:
  explicit InTurn(const Product& p) : p_(p) {}
  ~InTurn() { finish<ACTIVATION>(p_, groups_[last_], groups_[last_].n_rows); }
  InTurn(const InTurn&) = delete;

  template <int BLOCKS>
  void compute(int row, int n_rows, int block) {
    Group<ROW_TILES>&before = groups_[last_], &group = groups_[1 - last_];
    const int n_steps = p_.n_in / TILE_BYTES;
    sums_of_tiles<ROW_TILES, BLOCKS>(p_, row, block, group.sums, [&](int step) {
      finish<ACTIVATION>(p_, before, int(int64_t(before.n_rows) * step / n_steps));
    });
    group.row = row, group.n_rows = n_rows, group.block = block, group.n_blocks = BLOCKS, group.done = 0;
    for (int i = 0; i < n_rows; i++) {
      const uint32_t zero = uint32_t(-p_.row_zero[row + i]);
      group.zeros[i] = int32_t((zero & 0xffff) | zero << 23);
    }
    last_ = 1 - last_;
  }

 private:
  const Product& p_;
  Group<ROW_TILES> groups_[2];
  int last_ = 0;
};

// Rows [first, end) of all blocks: any number of groups of full tiles, or one group whose last tile may have fewer rows.
template <Activation ACTIVATION, int ROW_TILES>
inline void tiled_rows(const Product& p, int first, int end, int block, int end_block) {
  if (first == end) return;
  constexpr int MOST = ROW_TILES * TILE_ROWS, BLOCKS = 4 / ROW_TILES;
  const int n = end - first < MOST ? end - first : MOST;
  int rows[ROW_TILES];
  for (int i = 0; i < ROW_TILES; i++) rows[i] = n - i * TILE_ROWS < TILE_ROWS ? n - i * TILE_ROWS : TILE_ROWS;
  const Shaped<ROW_TILES> shaped(rows);
  InTurn<ACTIVATION, ROW_TILES> tiles(p);
  for (; block + BLOCKS <= end_block; block += BLOCKS) {
    for (int row = first; row < end; row += n) tiles.template compute<BLOCKS>(row, n, block);
  }
  for (; block < end_block; block++) {
    for (int row = first; row < end; row += n) tiles.template compute<1>(row, n, block);
  }
}

// Whether blocks of a product fit tiles, and are so many that loading the shapes pays.
inline bool is_tiled(const Product& p, int n_blocks, int least_rows = LEAST_TILED) {
  return p.storage == Storage::int8 && p.rows >= least_rows && p.n_in % TILE_BYTES == 0 && p.n_in <= MOST_INPUTS &&
         int64_t(p.rows) * p.n_in * n_blocks * BLOCK >= LEAST_WORK;
}

template <Activation ACTIVATION>
inline void multiply_in_tiles(const Product& p, int first_block, int end_block) {
  constexpr int TWO = 2 * TILE_ROWS;
  const int full = p.rows / TWO * TWO;
  tiled_rows<ACTIVATION, 2>(p, 0, full, first_block, end_block);
  if (p.rows - full > TILE_ROWS) {
    tiled_rows<ACTIVATION, 2>(p, full, p.rows, first_block, end_block);
  } else {
    tiled_rows<ACTIVATION, 1>(p, full, p.rows, first_block, end_block);
  }
}

inline void multiply_tiled(const Product& p, int first_block, int end_block) {
  switch (p.activation) {
    case Activation::none: return multiply_in_tiles<Activation::none>(p, first_block, end_block);
    case Activation::relu: return multiply_in_tiles<Activation::relu>(p, first_block, end_block);
    case Activation::silu: return multiply_in_tiles<Activation::silu>(p, first_block, end_block);
    case Activation::gelu: return multiply_in_tiles<Activation::gelu>(p, first_block, end_block);
    case Activation::gelu_tanh: return multiply_in_tiles<Activation::gelu_tanh>(p, first_block, end_block);
    case Activation::quick_gelu: return multiply_in_tiles<Activation::quick_gelu>(p, first_block, end_block);
  }
}

#else
constexpr int TILE_BYTES = 4;  // inputs that are multiplied together
inline bool is_tiled(const Product&, int) { return false; }
#endif

}  // namespace KERNELS
