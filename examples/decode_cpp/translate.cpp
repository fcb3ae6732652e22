// Translates with libs2s: a line of text from stdin is a source, and its translation a line to stdout. UTF-8.
//
//     translate BUNDLE TARGET [LIBONNXRUNTIME [OPTIONS]] < lines
//
// LIBONNXRUNTIME: its path, or "" for what the system's loader finds. OPTIONS: JSON, such as '{"target_lang": "deu"}'.
// So many lines are decoded together as BATCH says; blank ones stay blank.
#include <s2s.h>

#include <iostream>
#include <string>
#include <vector>

static const size_t BATCH = 16;

static int failed() {
  std::cerr << "translate: " << s2s_last_error() << "\n";
  return 1;
}

// The translations of lines, in their order. Returns whether there are any.
static bool translate(S2SModel* model, const std::vector<std::string>& lines, const char* options) {
  std::vector<const char*> texts;
  for (const std::string& line : lines)
    if (line.find_first_not_of(" \t\r") != std::string::npos) texts.push_back(line.c_str());
  S2SResult* result = texts.empty() ? nullptr : s2s_translate(model, texts.data(), int32_t(texts.size()), options);
  if (!texts.empty() && !result) return false;
  int32_t n = 0;
  for (const std::string& line : lines) {
    const bool is_blank = line.find_first_not_of(" \t\r") == std::string::npos;
    std::cout << (is_blank ? "" : s2s_text(result, n++, 0)) << "\n";
  }
  std::cout.flush();
  s2s_free(result);
  return true;
}

int main(int n, char** arguments) {
  if (n < 3 || n > 5) {
    std::cerr << "usage: translate BUNDLE TARGET [LIBONNXRUNTIME [OPTIONS]] < lines\n";
    return 2;
  }
  S2SModel* model = s2s_open(arguments[1], arguments[2], n > 3 && *arguments[3] ? arguments[3] : nullptr, 1);
  if (!model) return failed();
  std::vector<std::string> lines;
  bool goes_on = true;
  for (std::string line; goes_on && std::getline(std::cin, line);) {
    lines.push_back(line);
    if (lines.size() < BATCH) continue;
    goes_on = translate(model, lines, n > 4 ? arguments[4] : "");
    lines.clear();
  }
  if (goes_on && !lines.empty()) goes_on = translate(model, lines, n > 4 ? arguments[4] : "");
  const int status = goes_on ? 0 : failed();
  s2s_close(model);
  return status;
}
