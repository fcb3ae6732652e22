// Asks plugins/cpu/sets.h for the instruction set of a processor that has what the arguments name, and prints it with the
// reason against AMX. It fails where a real processor would: at what is used before it is known to be there.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "sets.h"

static int n_words;
static char** words;
static bool was_permitted = false;

static bool has(const char* word) {
  for (int i = 1; i < n_words; i++) {
    if (!strcmp(words[i], word)) return true;
  }
  return false;
}
static void fault(const char* what) {
  printf("fault: %s\n", what);
  exit(1);
}

struct Described {
  static Leaf leaf(unsigned number, unsigned part = 0) {
    Leaf found;
    if (number == 1) found.c = 1u << 12 | 1u << 28 | 1u << 29 | (has("system") ? 1u << 27 : 0);
    if (number == 7 && part == 0) {
      found.b = 1u << 5 | (has("avx512") ? 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31 : 0);
      found.c = has("avx512") ? 1u << 11 : 0;
      found.d = (has("tiles") ? 1u << 24 : 0) | (has("int8") ? 1u << 25 : 0);
    }
    if (number == 0x1d && part == 1) found = {1024u << 16 | 8192, 8u << 16 | 64, has("small") ? 8u : 16u, 0};
    return found;
  }
  static unsigned kept() {
    if (!has("system")) fault("xgetbv");
    return 0xe6 | (has("configuration") ? 1u << 17 : 0) | (has("data") ? 1u << 18 : 0);
  }
  static bool permits_tiles() {
    if (!has("tiles") || !has("int8") || !has("configuration") || !has("data")) fault("permission asked too early");
    return was_permitted = has("permission");
  }
};

// Products in plain C++.
static void multiply(const Product& p, int first_block, int end_block) {
  if (!was_permitted) fault("tiles used without permission");
  for (int row = 0; row < p.rows; row++) {
    for (int o = first_block * BLOCK; o < end_block * BLOCK; o++) {
      const int8_t* w = static_cast<const int8_t*>(p.weight) + size_t(o / BLOCK) * p.n_in * BLOCK + o % BLOCK * 4;
      int32_t sum = -p.row_zero[row] * p.weight_sum[o];
      for (int i = 0; i < p.n_in; i++) sum += p.bytes[row * p.n_in + i] * w[i / 4 * 4 * BLOCK + i % 4];
      p.y[row * p.stride + o] = float(sum);
    }
  }
  if (has("wrong")) p.y[p.rows * p.stride - 1] += 1;
}

const Kernels kernels_amx{"amx", multiply, {}, {}, {}, {}, {}, {}, {}, {}, {}};
const Kernels kernels_avx512{"avx512", {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
const Kernels kernels_avx2{"avx2", {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};
const Kernels kernels_plain{"plain", {}, {}, {}, {}, {}, {}, {}, {}, {}, {}};

int main(int argc, char** argv) {
  n_words = argc;
  words = argv;
  const Chosen found = choose<Described>();
  printf("%s: %s\n", found.kernels->name, found.why_not_amx ? found.why_not_amx : "");
}
