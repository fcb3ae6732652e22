// Which of the compiled instruction sets this machine runs: the best that the processor has and the system keeps the
// registers of. That of AMX is asked for and tried as well, and where it is not taken the reason is kept.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

struct Chosen {
  const Kernels* kernels;
  const char* why_not_amx;  // null where it was taken, and on processors of another kind
};

// Whether a set's products of bytes are those of plain arithmetic, in tiles of all shapes. Exact: all scales are 1.
inline bool multiplies_rightly(const Kernels& kernels) {
  uint32_t state = 1;
  const auto random = [&state] { return (state = state * 1664525u + 1013904223u) >> 16; };
  for (const int rows : {12, 53}) {
    constexpr int I = 256, O = 5 * BLOCK;
    std::vector<uint8_t> bytes(size_t(rows) * I);
    std::vector<int8_t> weight(size_t(O) * I);
    std::vector<float> ones(std::max(rows, O), 1.0f), y(size_t(rows) * O);
    std::vector<int32_t> zeros(rows), weight_sum(O);
    const auto at = [&](int o, int i) {  // the weight of output o and input i
      return int32_t(weight[(size_t(o / BLOCK) * I + i / 4 * 4) * BLOCK + o % BLOCK * 4 + i % 4]);
    };
    for (auto& x : bytes) x = uint8_t(random());
    for (auto& w : weight) w = int8_t(int(random() % 255) - 127);
    for (auto& zero : zeros) zero = int32_t(random() % 256);
    for (int o = 0; o < O; o++) {
      for (int i = 0; i < I; i++) weight_sum[o] += at(o, i);
    }
    Product p{};
    p.rows = rows, p.n_in = I, p.n_out = p.stride = O, p.storage = Storage::int8;
    p.weight = weight.data(), p.scale = p.row_scale = ones.data(), p.weight_sum = weight_sum.data();
    p.bytes = bytes.data(), p.row_zero = zeros.data(), p.y = y.data();
    kernels.multiply(p, 0, O / BLOCK);
    for (int row = 0; row < rows; row++) {
      for (int o = 0; o < O; o++) {
        int32_t sum = -zeros[row] * weight_sum[o];
        for (int i = 0; i < I; i++) sum += bytes[size_t(row) * I + i] * at(o, i);
        if (y[size_t(row) * O + o] != float(sum)) return false;
      }
    }
  }
  return true;
}

#if defined(__x86_64__)
struct Leaf {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

// What the processor and the system say. __builtin_cpu_supports would say some of it too, but always says no where a
// library is linked without GCC's start files.
struct ThisMachine {
  static Leaf leaf(unsigned number, unsigned part = 0) {
    Leaf found;
    __get_cpuid_count(number, part, &found.a, &found.b, &found.c, &found.d);
    return found;  // zeros where there is none
  }
  static unsigned kept() {  // whose registers the system keeps; only where the processor has the instruction
    unsigned low = 0, high = 0;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
  }
  // Asks Linux for tiles, for all threads of the process. Without its leave the first tile instruction ends the program.
  static bool permits_tiles() {
#if defined(__linux__)
    constexpr int ASK = 0x1023, ASK_WHICH = 0x1022, TILES = 18;  // ARCH_REQ_XCOMP_PERM, ARCH_GET_XCOMP_PERM
    unsigned long permitted = 0;
    return !syscall(SYS_arch_prctl, ASK, TILES) && !syscall(SYS_arch_prctl, ASK_WHICH, &permitted) && permitted >> TILES & 1;
#else
    return false;
#endif
  }
};

#if defined(S2S_EMULATED_TILES)
struct EmulatedMachine : ThisMachine {  // has tiles beside what this machine has
  static Leaf leaf(unsigned number, unsigned part = 0) {
    if (number == 0x1d) return {1024u << 16 | 8192, 8u << 16 | 64, 16, 0};
    Leaf found = ThisMachine::leaf(number, part);
    if (number == 7 && part == 0) found.d |= 3u << 24;
    return found;
  }
  static unsigned kept() { return ThisMachine::kept() | 3u << 17; }
  static bool permits_tiles() { return true; }
};
using Machine = EmulatedMachine;
#else
using Machine = ThisMachine;
#endif

inline bool all(unsigned word, std::initializer_list<int> bits) {
  return std::all_of(bits.begin(), bits.end(), [word](int bit) { return word >> bit & 1u; });
}

template <typename M>
struct Processor {
  bool has_avx2 = false, has_avx_vnni = false, has_avx512 = false;  // with FMA; with what kernels_avx512 is compiled for
  const char* lacks_tiles = "this processor has no AVX-512 with VNNI";

  Processor() {
    if (!all(M::leaf(1).c, {12, 27, 28, 29})) return;  // FMA, OSXSAVE, AVX, F16C
    const unsigned kept = M::kept();
    const Leaf seven = M::leaf(7);
    if (!all(kept, {1, 2}) || !all(seven.b, {5})) return;
    has_avx2 = true;
    has_avx_vnni = all(M::leaf(7, 1).a, {4});
    has_avx512 = all(kept, {5, 6, 7}) && all(seven.b, {16, 17, 30, 31}) && all(seven.c, {11});  // F, DQ, BW, VL; VNNI
    if (has_avx512) lacks_tiles = why_no_tiles(seven, kept);
  }

 private:
  static const char* why_no_tiles(const Leaf& seven, unsigned kept) {
    if (!all(seven.d, {24, 25})) return "this processor doesn't have it";
    if (!all(kept, {17, 18})) return "the system doesn't keep its registers; Linux does from 5.16 on";
    const Leaf palette = M::leaf(0x1d, 1);
    if (palette.b < (8u << 16 | 64) || (palette.b & 0xffff) != 64 || (palette.c & 0xffff) != 16) {
      return "this processor's tiles are not eight of 16 rows of 64 bytes";
    }
    return M::permits_tiles() ? nullptr : "the system refuses it to this process (arch_prctl)";
  }
};

template <typename M>
Chosen choose() {
  const Processor<M> processor;
  const char* why_not_amx = &kernels_amx ? processor.lacks_tiles : "it was not compiled, as the compiler doesn't know it";
  if (!why_not_amx && !multiplies_rightly(kernels_amx)) why_not_amx = "its products are wrong on this processor";
  if (!why_not_amx) return {&kernels_amx, nullptr};
  if (&kernels_avx512 && processor.has_avx512) return {&kernels_avx512, why_not_amx};
  if (&kernels_avxvnni && processor.has_avx_vnni) return {&kernels_avxvnni, why_not_amx};
  if (&kernels_avx2 && processor.has_avx2) return {&kernels_avx2, why_not_amx};
  return {&kernels_plain, why_not_amx};
}

#elif defined(__aarch64__)
struct Machine {};

// What Linux says of the processor; <asm/hwcap.h> has these bits, and older ones lack the second.
constexpr unsigned long ASIMDDP = 1ul << 20, I8MM = 1ul << 13;
inline bool has_dotprod() { return getauxval(AT_HWCAP) & ASIMDDP; }
inline bool has_i8mm() { return getauxval(AT_HWCAP2) & I8MM; }

template <typename>
Chosen choose() {
  if (&kernels_i8mm && has_dotprod() && has_i8mm()) return {&kernels_i8mm, nullptr};
  if (&kernels_dotprod && has_dotprod()) return {&kernels_dotprod, nullptr};
  return {&kernels_neon, nullptr};
}

#else
struct Machine {};

template <typename>
Chosen choose() {
  return {&kernels_plain, nullptr};
}
#endif

// The best instruction set of this machine among those that were compiled.
inline const Chosen& chosen() {
  static const Chosen found = choose<Machine>();
  return found;
}
