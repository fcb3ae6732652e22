// Decodes token ids with libs2s: a line of ids from stdin is a source, a line to stdout an output.
//
//     decode_cpp BUNDLE TARGET [LIBONNXRUNTIME [OPTIONS]] < ids
//
// LIBONNXRUNTIME: its path, or "" for what the system's loader finds. OPTIONS: JSON, such as '{"num_beams": 4}'. All lines
// are one batch. An output is its source's number, its score and its ids; those of a source follow each other, best first.
#include <s2s.h>

#include <cstdio>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

static int failed() {
  std::cerr << "decode_cpp: " << s2s_last_error() << "\n";
  return 1;
}

int main(int n, char** arguments) {
  if (n < 3 || n > 5) {
    std::cerr << "usage: decode_cpp BUNDLE TARGET [LIBONNXRUNTIME [OPTIONS]] < ids\n";
    return 2;
  }
  std::vector<int64_t> ids;
  std::vector<int32_t> lengths;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    lengths.push_back(0);
    for (int64_t id; words >> id; lengths.back()++) ids.push_back(id);
    if (!words.eof()) {
      std::cerr << "decode_cpp: line " << lengths.size() << " is not a list of token ids; expected integers\n";
      return 1;
    }
  }
  if (lengths.empty()) return 0;
  const char* onnxruntime = n > 3 && *arguments[3] ? arguments[3] : nullptr;
  S2SModel* model = s2s_open(arguments[1], arguments[2], onnxruntime, 1);
  if (!model) return failed();
  S2SResult* result = s2s_generate(model, ids.data(), lengths.data(), int32_t(lengths.size()), n > 4 ? arguments[4] : "");
  if (!result) {
    const int status = failed();
    s2s_close(model);
    return status;
  }
  for (int32_t source = 0; source < int32_t(lengths.size()); source++)
    for (int32_t k = 0; k < s2s_n_outputs(result); k++) {
      int32_t length;
      double score;
      const int64_t* output = s2s_output(result, source, k, &length, &score);
      std::printf("%d %.17g", source, score);
      for (int32_t t = 0; t < length; t++) std::printf(" %lld", static_cast<long long>(output[t]));
      std::printf("\n");
    }
  s2s_free(result);
  s2s_close(model);
}
