// A stand-in for libcublasLt: it computes on the CPU what the descriptors say, and refuses what the library would refuse.
// Constants are those of cublasLt.h; test_cublaslt.py compares them where that header is. With fake_driver.cpp in one
// library, products are kept in a graph while a stream is captured.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "common/host_floats.h"

enum { kOk = 0, kNotInitialized = 1, kInvalid = 7, kNotSupported = 15 };
enum { kFloat = 0, kHalf = 2, kBfloat = 14 };

struct Layout { int type; uint64_t rows, columns; int64_t leading; };
struct Description { int compute, scale; std::map<int, std::vector<char>> attributes; };
struct Preference { std::map<int, std::vector<char>> attributes; };
struct Algorithm { uint64_t data[8]; };
struct Proposal { Algorithm algorithm; size_t workspace_bytes; int state; float waves; int reserved[4]; };

static int n_products, n_heuristics, n_open, refuses_creation, refuses_products;
static size_t wanted_workspace = 1024;

// fake_driver.cpp's queue, where it is there.
extern "C" __attribute__((weak)) int fake_queue(void* stream, void (*run)(void*), void* data);

template <class Value>
static Value attribute(const std::map<int, std::vector<char>>& attributes, int which, Value otherwise) {
  const auto found = attributes.find(which);
  if (found == attributes.end()) return otherwise;
  if (found->second.size() != sizeof(Value)) abort();
  memcpy(&otherwise, found->second.data(), sizeof otherwise);
  return otherwise;
}
static int set(std::map<int, std::vector<char>>& attributes, int which, const void* value, size_t size) {
  const char* bytes = static_cast<const char*>(value);
  attributes[which] = std::vector<char>(bytes, bytes + size);
  return kOk;
}
static int bytes_of(int type) { return type == kFloat ? 4 : 2; }
static float read(const void* from, int type, int64_t at) {
  if (type == kFloat) return static_cast<const float*>(from)[at];
  if (type == kHalf) return __half2float(static_cast<const __half*>(from)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(from)[at]);
}
static void write(void* to, int type, int64_t at, float value) {
  if (type == kFloat) static_cast<float*>(to)[at] = value;
  else if (type == kHalf) static_cast<__half*>(to)[at] = __float2half_rn(value);
  else static_cast<__nv_bfloat16*>(to)[at] = __float2bfloat16_rn(value);
}

// A product with everything that it reads: whatever the caller changes afterwards must not count.
struct Product {
  Layout a, b, c, d;
  bool transposes_a, transposes_b;
  float alpha, beta;
  int epilogue;
  const void *A, *B, *C, *bias;
  void* D;
  int run() const {
    const int64_t m = d.rows, n = d.columns, k = transposes_a ? a.rows : a.columns;
    std::vector<float> found(m * n);
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < m; ++i) {
        double sum = 0.0;
        for (int64_t l = 0; l < k; ++l)
          sum += double(read(A, a.type, transposes_a ? i * a.leading + l : l * a.leading + i)) *
                 read(B, b.type, transposes_b ? l * b.leading + j : j * b.leading + l);
        float value = static_cast<float>(alpha * sum);
        if (beta != 0.f) value += beta * read(C, c.type, j * c.leading + i);
        if (epilogue & 4) value += read(bias, d.type, i);
        if (epilogue & 2) value = std::fmax(value, 0.f);
        if (epilogue & 32) value = 0.5f * value * (1.f + std::tanh(0.79788456f * (value + 0.044715f * value * value * value)));
        found[j * m + i] = value;
      }
    for (int64_t j = 0; j < n; ++j)
      for (int64_t i = 0; i < m; ++i) write(D, d.type, j * d.leading + i, found[j * m + i]);
    return 0;
  }
};

static bool fits(const Layout& a, const Layout& b, const Layout& c, const Layout& d, bool at, bool bt) {
  const uint64_t m = at ? a.columns : a.rows, k = at ? a.rows : a.columns;
  const uint64_t k2 = bt ? b.columns : b.rows, n = bt ? b.rows : b.columns;
  for (const Layout* one : {&a, &b, &c, &d})
    if (one->leading < int64_t(one->rows)) return false;
  const bool types = a.type == b.type && a.type != kFloat && c.type == d.type && (d.type == a.type || d.type == kFloat);
  return types && k == k2 && d.rows == m && d.columns == n && c.rows == m && c.columns == n;
}
// What an algorithm was chosen for, so that it is not used for anything else.
static uint64_t key_of(const Description& what, const Layout& a, const Layout& b, const Layout& d) {
  uint64_t key = 17;
  for (uint64_t one : {a.rows, a.columns, b.columns, d.rows, uint64_t(a.type), uint64_t(d.type),
                       uint64_t(attribute<uint32_t>(what.attributes, 7, 1)), uint64_t(attribute<int32_t>(what.attributes, 3, 0))})
    key = key * 1099511628211u + one;
  return key;
}

extern "C" {
void fake_cublaslt_reset(int no_creation, int no_products, size_t workspace) {
  n_products = n_heuristics = 0;
  refuses_creation = no_creation, refuses_products = no_products, wanted_workspace = workspace;
}
int fake_cublaslt_products() { return n_products; }
int fake_cublaslt_heuristics() { return n_heuristics; }
int fake_cublaslt_open() { return n_open; }  // descriptors that were made and not destroyed

size_t cublasLtGetVersion() { return 130102; }
const char* cublasLtGetStatusString(int) { return "the stand-in's text"; }
int cublasLtCreate(void** handle) { return refuses_creation ? kNotInitialized : (*handle = malloc(1), kOk); }
int cublasLtDestroy(void* handle) { return free(handle), kOk; }
int cublasLtMatmulDescCreate(Description** out, int compute, int scale) { return *out = new Description{compute, scale, {}}, ++n_open, kOk; }
int cublasLtMatmulDescDestroy(Description* one) { return delete one, --n_open, kOk; }
int cublasLtMatmulDescSetAttribute(Description* one, int which, const void* value, size_t size) {
  const std::map<int, size_t> sizes = {{3, 4}, {7, 4}, {8, 8}};
  const auto known = sizes.find(which);
  return known == sizes.end() || known->second != size ? kInvalid : set(one->attributes, which, value, size);
}
int cublasLtMatrixLayoutCreate(Layout** out, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  return *out = new Layout{type, rows, columns, leading}, ++n_open, kOk;
}
int cublasLtMatrixLayoutDestroy(Layout* one) { return delete one, --n_open, kOk; }
int cublasLtMatmulPreferenceCreate(Preference** out) { return *out = new Preference, ++n_open, kOk; }
int cublasLtMatmulPreferenceDestroy(Preference* one) { return delete one, --n_open, kOk; }
int cublasLtMatmulPreferenceSetAttribute(Preference* one, int which, const void* value, size_t size) {
  const std::map<int, size_t> sizes = {{1, 8}, {5, 4}, {6, 4}, {7, 4}, {8, 4}};
  const auto known = sizes.find(which);
  return known == sizes.end() || known->second != size ? kInvalid : set(one->attributes, which, value, size);
}
int cublasLtMatmulAlgoGetHeuristic(void* handle, Description* what, Layout* a, Layout* b, Layout* c, Layout* d,
                                   Preference* preference, int wanted, Proposal* found, int* count) {
  ++n_heuristics;
  *count = 0;
  const bool at = attribute<int32_t>(what->attributes, 3, 0), bt = attribute<int32_t>(what->attributes, 4, 0);
  if (!handle || wanted < 1 || what->compute != 68 || what->scale != 0 || !fits(*a, *b, *c, *d, at, bt)) return kInvalid;
  if (refuses_products || attribute<uint64_t>(preference->attributes, 1, 0) < wanted_workspace) return kNotSupported;
  *found = {};
  found->algorithm.data[0] = key_of(*what, *a, *b, *d);
  for (int i = 0; i < 4; ++i) found->algorithm.data[1 + i] = attribute<uint32_t>(preference->attributes, 5 + i, 256);
  found->workspace_bytes = wanted_workspace;
  *count = 1;
  return kOk;
}
int cublasLtMatmul(void* handle, Description* what, const float* alpha, const void* A, Layout* a, const void* B, Layout* b,
                   const float* beta, const void* C, Layout* c, void* D, Layout* d, const Algorithm* algorithm,
                   void* workspace, size_t workspace_bytes, void* stream) {
  const bool at = attribute<int32_t>(what->attributes, 3, 0), bt = attribute<int32_t>(what->attributes, 4, 0);
  const auto bias = attribute<const void*>(what->attributes, 8, nullptr);
  const int epilogue = attribute<uint32_t>(what->attributes, 7, 1);
  const bool is_known = epilogue == 1 || epilogue == 2 || epilogue == 32 || epilogue == 4 || epilogue == 6 || epilogue == 36;
  if (!handle || !is_known || ((epilogue & 4) != 0) != (bias != nullptr) || !fits(*a, *b, *c, *d, at, bt)) return kInvalid;
  if (!algorithm || algorithm->data[0] != key_of(*what, *a, *b, *d)) return kInvalid;
  const void* operands[] = {A, B, C, D};
  for (int i = 0; i < 4; ++i)
    if (!operands[i] || reinterpret_cast<uintptr_t>(operands[i]) % algorithm->data[1 + i]) return kInvalid;
  if (workspace_bytes < wanted_workspace || !workspace) return kInvalid;
  if (C == D && memcmp(c, d, sizeof *c) != 0) return kInvalid;
  memset(workspace, 0x7f, wanted_workspace);  // it is written, as split sums would be
  ++n_products;
  const auto product = new Product{*a, *b, *c, *d, at, bt, *alpha, *beta, epilogue & ~1, A, B, C, bias, D};
  const auto run = [](void* given) { static_cast<Product*>(given)->run(); };  // kept, as a graph may run it again
  if (fake_queue) return fake_queue(stream, run, product);
  run(product);
  delete product;
  return kOk;
}
}
