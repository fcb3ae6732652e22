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

// The sums of ROW_TILES tiles of rows, from `row` on, and BLOCKS blocks, from `block` on.
template <int ROW_TILES, int BLOCKS>
inline void sums_of_tiles(const Product& p, int row, int block, int32_t (&sums)[ROW_TILES * TILE_ROWS][BLOCKS * BLOCK]) {
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
  }
  each<ROW_TILES>([&](auto i) {
    each<BLOCKS>([&](auto j) { store_tile<sum_tile<ROW_TILES>(i, j)>(&sums[i * TILE_ROWS][j * BLOCK], sizeof sums[0]); });
  });
}

template <int ROW_TILES, int BLOCKS>
inline void tiled(const Product& p, int row, int n_rows, int block) {
  alignas(64) int32_t sums[ROW_TILES * TILE_ROWS][BLOCKS * BLOCK];
  sums_of_tiles<ROW_TILES, BLOCKS>(p, row, block, sums);
  for (int j = 0; j < BLOCKS; j++) {
    const int output = (block + j) * BLOCK, n = p.n_out - output;
    const Floats scale = load(p.scale + output), bias = p.bias ? load(p.bias + output) : Floats{};
    const Wrapping weight_sum = Wrapping(load(p.weight_sum + output));
    for (int i = 0; i < n_rows; i++) {
      Floats values = scaled(p, row + i, load(&sums[i][j * BLOCK]), scale, weight_sum);
      asm("" : "+v"(values));  // rounded before the bias is added, as elsewhere: else one instruction does both
      put(p, row + i, output, n, values, bias);
    }
  }
}

// Rows [first, end) of all blocks: any number of groups of full tiles, or one group whose last tile may have fewer rows.
template <int ROW_TILES>
inline void tiled_rows(const Product& p, int first, int end, int block, int end_block) {
  if (first == end) return;
  constexpr int MOST = ROW_TILES * TILE_ROWS, BLOCKS = 4 / ROW_TILES;
  const int n = end - first < MOST ? end - first : MOST;
  int rows[ROW_TILES];
  for (int i = 0; i < ROW_TILES; i++) rows[i] = n - i * TILE_ROWS < TILE_ROWS ? n - i * TILE_ROWS : TILE_ROWS;
  const Shaped<ROW_TILES> shaped(rows);
  for (; block + BLOCKS <= end_block; block += BLOCKS) {
    for (int row = first; row < end; row += n) tiled<ROW_TILES, BLOCKS>(p, row, n, block);
  }
  for (; block < end_block; block++) {
    for (int row = first; row < end; row += n) tiled<ROW_TILES, 1>(p, row, n, block);
  }
}

// Whether blocks of a product fit tiles, and are so many that loading the shapes pays.
inline bool is_tiled(const Product& p, int n_blocks, int least_rows = LEAST_TILED) {
  return p.storage == Storage::int8 && p.rows >= least_rows && p.n_in % TILE_BYTES == 0 &&
         int64_t(p.rows) * p.n_in * n_blocks * BLOCK >= LEAST_WORK;
}

inline void multiply_tiled(const Product& p, int first_block, int end_block) {
  constexpr int TWO = 2 * TILE_ROWS;
  const int full = p.rows / TWO * TWO;
  tiled_rows<2>(p, 0, full, first_block, end_block);
  if (p.rows - full > TILE_ROWS) {
    tiled_rows<2>(p, full, p.rows, first_block, end_block);
  } else {
    tiled_rows<1>(p, full, p.rows, first_block, end_block);
  }
}

#else
constexpr int TILE_BYTES = 4;  // inputs that are multiplied together
inline bool is_tiled(const Product&, int) { return false; }
#endif

}  // namespace KERNELS
