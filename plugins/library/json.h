// Reads JSON (RFC 8259) from files that nobody has vouched for: at most MOST_DEPTH levels, every error with its place.
#pragma once

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

namespace s2s_library {

struct Json {
  enum Kind { NONE, BOOLEAN, NUMBER, STRING, LIST, OBJECT } kind = NONE;
  bool is_true = false;
  double number = 0;
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  const Json* find(const std::string& name) const {
    const auto at = object.find(name);
    return at == object.end() ? nullptr : &at->second;
  }
  bool is_integer() const { return kind == NUMBER && number == std::floor(number) && std::fabs(number) < 9e15; }
};

class JsonReader {
 public:
  static Json read(const std::string& text) {
    JsonReader reader(text);
    Json found = reader.value(0);
    reader.space();
    if (reader.at != text.size()) reader.fail("something after its end");
    return found;
  }

 private:
  static constexpr int MOST_DEPTH = 64;
  const std::string& text;
  size_t at = 0;
  explicit JsonReader(const std::string& text) : text(text) {}

  [[noreturn]] void fail(const char* found) const {
    throw std::runtime_error("not JSON: " + std::string(found) + " at byte " + std::to_string(at));
  }
  void space() {
    while (at < text.size() && strchr(" \t\r\n", text[at]) && text[at]) at++;
  }
  bool take(const char* word) {
    const size_t n = strlen(word);
    if (text.compare(at, n, word) != 0) return false;
    at += n;
    return true;
  }
  Json value(int depth) {
    if (depth > MOST_DEPTH) fail("too many levels");
    space();
    Json found;
    if (take("null")) return found;
    if (take("true") || take("false")) {
      found.kind = Json::BOOLEAN;
      found.is_true = text[at - 2] == 'u';
    } else if (at < text.size() && text[at] == '"') {
      found.kind = Json::STRING;
      found.text = string();
    } else if (take("[")) {
      found.kind = Json::LIST;
      space();
      if (take("]")) return found;
      do found.list.push_back(value(depth + 1));
      while (goes_on("]"));
    } else if (take("{")) {
      found.kind = Json::OBJECT;
      space();
      if (take("}")) return found;
      do {
        space();
        if (at >= text.size() || text[at] != '"') fail("no name");
        const std::string name = string();
        space();
        if (!take(":")) fail("no colon");
        found.object[name] = value(depth + 1);
      } while (goes_on("}"));
    } else {
      found.kind = Json::NUMBER;
      found.number = number();
    }
    return found;
  }
  bool goes_on(const char* end) {
    space();
    if (take(",")) return true;
    if (!take(end)) fail("neither a comma nor an end");
    return false;
  }
  double number() {
    const size_t begin = at;
    while (at < text.size() && text[at] && strchr("+-.eE0123456789", text[at])) at++;
    const std::string word = text.substr(begin, at - begin);
    char* end = nullptr;
    const double found = word.empty() || word[0] == '+' ? NAN : strtod(word.c_str(), &end);
    if (!std::isfinite(found) || *end) fail("no value");
    return found;
  }
  unsigned hex4() {
    unsigned found = 0;
    for (int i = 0; i < 4; i++, at++) {
      const char c = at < text.size() ? text[at] : '?';
      const char* digits = "0123456789abcdef";
      const char* place = c ? strchr(digits, c >= 'A' && c <= 'F' ? c + 32 : c) : nullptr;
      if (!place) fail("no code of four digits");
      found = found * 16 + unsigned(place - digits);
    }
    return found;
  }
  std::string string() {
    std::string found;
    at++;
    while (true) {
      if (at >= text.size() || static_cast<unsigned char>(text[at]) < 32) fail("no end of a string");
      const char c = text[at++];
      if (c == '"') return found;
      if (c != '\\') {
        found += c;
        continue;
      }
      if (at >= text.size()) fail("no end of a string");
      const char e = text[at++];
      if (e == 'u') {
        append(found, hex4());
        continue;
      }
      const char* names = "\"\\/bfnrt";
      const char* place = e ? strchr(names, e) : nullptr;
      if (!place) fail("an unknown escape");
      found += "\"\\/\b\f\n\r\t"[place - names];
    }
  }
  void append(std::string& out, unsigned code) {
    if (code >= 0xD800 && code < 0xDC00 && take("\\u")) {
      const unsigned low = hex4();
      if (low < 0xDC00 || low > 0xDFFF) fail("half a character");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      out += char(0xF0 | code >> 18);
      out += char(0x80 | (code >> 12 & 63));
    } else if (code >= 0x800) {
      out += char(0xE0 | code >> 12);
    } else if (code >= 0x80) {
      out += char(0xC0 | code >> 6);
      out += char(0x80 | (code & 63));
      return;
    } else {
      out += char(code);
      return;
    }
    out += char(0x80 | (code >> 6 & 63));
    out += char(0x80 | (code & 63));
  }
};

}  // namespace s2s_library
