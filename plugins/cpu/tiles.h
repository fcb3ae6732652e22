// The tile instructions of AMX, as far as tiled.h uses them. A tile is a register of up to 16 rows of up to 64 bytes; there
// are eight. Which sizes they have is loaded before they are used, and is a thread's: ONNX Runtime's own kernels load theirs.
//
// With S2S_EMULATED_TILES, for tests, the same in plain C++. It stops the program where a processor would fault.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__AMX_INT8__) || defined(S2S_EMULATED_TILES)
#define HAS_TILES

#if defined(S2S_EMULATED_TILES)
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#endif

namespace KERNELS {

constexpr int TILE_ROWS = 16, TILE_BYTES = 64;  // of a row

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, unused[14] = {};
  uint16_t row_bytes[8] = {}, unused_bytes[8] = {};
  uint8_t rows[8] = {}, unused_rows[8] = {};

  void set(int tile, int n_rows) { rows[tile] = uint8_t(n_rows), row_bytes[tile] = TILE_BYTES; }
};
static_assert(sizeof(TileShapes) == 64, "what LDTILECFG reads");

#if defined(S2S_EMULATED_TILES)
struct EmulatedTiles {
  TileShapes shapes;
  bool are_loaded = false;
  uint8_t bytes[8][TILE_ROWS][TILE_BYTES];

  static inline std::atomic<int64_t> n_products{0};  // of two tiles, in all threads

  static EmulatedTiles& of_thread() {
    static thread_local EmulatedTiles tiles;
    return tiles;
  }
  static void check(bool is_right, const char* expected) {
    if (is_right) return;
    fprintf(stderr, "s2s.cpu: a processor would fault here, as it expects %s\n", expected);
    abort();
  }
  void check_tile(int tile) const {
    check(are_loaded, "shapes before tiles are used");
    check(tile >= 0 && tile < 8 && shapes.rows[tile], "a tile that has a shape");
  }
};

inline void load_shapes(const TileShapes& s) {
  EmulatedTiles& all = EmulatedTiles::of_thread();
  all.check(reinterpret_cast<uintptr_t>(&s) % alignof(TileShapes) == 0, "shapes that are aligned, as our own are");
  all.check(s.palette == 1 && s.start_row == 0, "palette 1 from row 0 on");
  for (uint8_t byte : s.unused) all.check(byte == 0, "zeros where nothing is defined");
  for (int i = 0; i < 8; i++) {
    all.check(s.unused_bytes[i] == 0 && s.unused_rows[i] == 0, "zeros for tiles that there are not");
    all.check(s.rows[i] <= TILE_ROWS && s.row_bytes[i] <= TILE_BYTES, "at most 16 rows of 64 bytes");
    all.check((s.rows[i] == 0) == (s.row_bytes[i] == 0), "rows and bytes of a tile, or neither");
  }
  all.shapes = s;
  all.are_loaded = true;
  memset(all.bytes, 0, sizeof all.bytes);
}

inline void release_tiles() { EmulatedTiles::of_thread().are_loaded = false; }

template <int TILE>
inline void clear_tile() {
  EmulatedTiles& all = EmulatedTiles::of_thread();
  all.check_tile(TILE);
  memset(all.bytes[TILE], 0, sizeof all.bytes[TILE]);
}

template <int TILE>
inline void load_tile(const void* from, size_t stride) {
  EmulatedTiles& all = EmulatedTiles::of_thread();
  all.check_tile(TILE);
  memset(all.bytes[TILE], 0, sizeof all.bytes[TILE]);
  for (int i = 0; i < all.shapes.rows[TILE]; i++) {
    memcpy(all.bytes[TILE][i], static_cast<const uint8_t*>(from) + i * stride, all.shapes.row_bytes[TILE]);
  }
}

template <int TILE>
inline void store_tile(void* to, size_t stride) {
  EmulatedTiles& all = EmulatedTiles::of_thread();
  all.check_tile(TILE);
  for (int i = 0; i < all.shapes.rows[TILE]; i++) {
    memcpy(static_cast<uint8_t*>(to) + i * stride, all.bytes[TILE][i], all.shapes.row_bytes[TILE]);
  }
}

template <int SUMS, int X, int WEIGHTS>
inline void add_products() {
  EmulatedTiles& all = EmulatedTiles::of_thread();
  for (int tile : {SUMS, X, WEIGHTS}) all.check_tile(tile);
  const TileShapes& s = all.shapes;
  all.n_products++;
  all.check(SUMS != X && X != WEIGHTS && SUMS != WEIGHTS, "three tiles");
  all.check(s.row_bytes[SUMS] % 4 == 0 && s.row_bytes[X] % 4 == 0, "rows of whole groups of four bytes");
  all.check(s.rows[SUMS] == s.rows[X] && s.row_bytes[SUMS] == s.row_bytes[WEIGHTS] && s.row_bytes[X] / 4 == s.rows[WEIGHTS],
            "tiles that fit each other");
  for (int i = 0; i < s.rows[SUMS]; i++) {
    uint32_t sums[TILE_BYTES / 4];
    memcpy(sums, all.bytes[SUMS][i], sizeof sums);
    for (int k = 0; k < s.rows[WEIGHTS]; k++) {
      for (int j = 0; j < s.row_bytes[SUMS] / 4; j++) {
        for (int n = 0; n < 4; n++) {
          sums[j] += uint32_t(int32_t(all.bytes[X][i][4 * k + n]) * int32_t(int8_t(all.bytes[WEIGHTS][k][4 * j + n])));
        }
      }
    }
    memcpy(all.bytes[SUMS][i], sums, s.row_bytes[SUMS]);
  }
}

// So that tests see that tiles were used.
extern "C" __attribute__((visibility("default"), used)) inline int64_t s2s_tile_products() { return EmulatedTiles::n_products; }
#else
// Not the compilers' own functions: GCC's take numbers of tiles that are written out only, not those of a template.
inline void load_shapes(const TileShapes& s) { asm volatile("ldtilecfg %0" ::"m"(s)); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int TILE>
inline void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}

template <int TILE>
inline void load_tile(const void* from, size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(TILE) : "memory");
}

template <int TILE>
inline void store_tile(void* to, size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(TILE) : "memory");
}

// Adds to SUMS [rows][16] int32 the products of X [rows][64] unsigned bytes and WEIGHTS [16 groups of 4][16][4] signed ones.
template <int SUMS, int X, int WEIGHTS>
inline void add_products() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(X), "i"(WEIGHTS));
}
#endif

}  // namespace KERNELS
#endif
