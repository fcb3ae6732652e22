// Text to token ids and back, for bundles whose tokenizer is built on sentencepiece models: OPUS-MT's and Marian's, M2M100's,
// and those of other toolkits. runtime/text/ is the definition; a bundle whose tokenizer is of another kind is refused.
//
// The library is compiled with it where sentencepiece's C++ is there (S2S_SENTENCEPIECE).
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "json.h"

#ifdef S2S_SENTENCEPIECE
#include <sentencepiece_processor.h>
#endif

namespace s2s_library {

using Ids = std::vector<int64_t>;
using Codes = std::u32string;  // a text by its characters, as tokens are cut out of it

inline Codes characters(const std::string& text) {
  Codes found;
  for (size_t at = 0; at < text.size();) {
    const auto byte = [&](size_t i) { return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u; };
    const unsigned first = byte(0);
    const size_t n = first < 0x80 ? 1 : first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    char32_t code = n == 1 ? first : first & (0xFFu >> (n + 1));
    bool is_right = n > 0;
    for (size_t i = 1; i < n; i++) {
      is_right &= (byte(i) & 0xC0) == 0x80;
      code = code << 6 | (byte(i) & 63);
    }
    is_right &= !(n == 3 && (code < 0x800 || (code >= 0xD800 && code < 0xE000))) && !(n == 4 && (code < 0x10000 || code > 0x10FFFF));
    if (!is_right) throw std::runtime_error("byte " + std::to_string(at) + " of the text is not UTF-8; convert it to UTF-8");
    found += code;
    at += n;
  }
  return found;
}

inline std::string utf8(const Codes& text) {
  std::string out;
  for (char32_t code : text) {
    const int more = code < 0x80 ? 0 : code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    out += char(more ? (0xFF00 >> (more + 1) & 0xFF) | code >> 6 * more : code);
    for (int i = more - 1; i >= 0; i--) out += char(0x80 | (code >> 6 * i & 63));
  }
  return out;
}

inline bool is_space(char32_t c) {  // as Python's str.isspace
  return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}
inline Codes stripped(const Codes& text, bool left, bool right) {
  size_t begin = 0, end = text.size();
  while (left && begin < end && is_space(text[begin])) begin++;
  while (right && end > begin && is_space(text[end - 1])) end--;
  return text.substr(begin, end - begin);
}
inline std::string replaced(std::string text, const std::string& old, const std::string& by) {
  for (size_t at = 0; (at = text.find(old, at)) != std::string::npos; at += by.size()) text.replace(at, old.size(), by);
  return text;
}

// Cuts a text at tokens that must not become pieces. runtime/text/added.py, whose steps these are.
class AddedTokens {
 public:
  struct Token {
    int64_t id;
    bool lstrip, rstrip, single_word;
  };
  std::map<Codes, Token> by_content;

  void add(const Codes& content, const Token& token) {
    if (content.empty()) return;
    by_content[content] = token;
    Node* node = &root;
    for (char32_t c : content) node = &node->next[c];
    node->ends = true;
  }

  std::vector<Codes> split(const Codes& text) const {
    std::vector<Codes> parts = cut(text);
    for (size_t i = 0; i < parts.size(); i++) {
      const auto at = by_content.find(parts[i]);
      if (at == by_content.end()) continue;
      const Token& token = at->second;
      const Codes part = parts[i], left = i ? parts[i - 1] : Codes(), right = i + 1 < parts.size() ? parts[i + 1] : Codes();
      if (token.rstrip && !right.empty()) parts[i + 1] = stripped(right, true, false);
      if (token.lstrip && !left.empty()) parts[i - 1] = stripped(left, false, true);
      if (token.single_word && !left.empty() && left.back() != U' ') {
        parts[i - 1] += part;
        parts[i].clear();
      } else if (token.single_word && !right.empty() && right.front() != U' ') {
        parts[i + 1] = part + parts[i + 1];
        parts[i].clear();
      }
    }
    parts.erase(std::remove_if(parts.begin(), parts.end(), [](const Codes& part) { return part.empty(); }), parts.end());
    return parts;
  }

 private:
  struct Node {
    std::map<char32_t, Node> next;
    bool ends = false;
  };
  Node root;
  using Open = std::map<size_t, const Node*>;  // where a match began, and how far it has come

  static const Node* step(const Node* node, char32_t c) {
    const auto at = node->next.find(c);
    return at == node->next.end() ? nullptr : &at->second;
  }

  std::vector<Codes> cut(const Codes& text) const {
    std::vector<size_t> cuts = {0};
    Open open;
    size_t skip = 0;
    for (size_t at = 0; at < text.size(); at++) {
      if (at < skip) continue;
      std::vector<size_t> dead;
      bool is_found = false;
      for (auto& [start, node] : open) {
        if (node->ends) {
          const auto [begin, end] = longest(text, open, start, at);
          cuts.push_back(begin);
          cuts.push_back(end);
          skip = std::max(skip, end);
          is_found = true;
          break;
        }
        if (const Node* next = step(node, text[at])) node = next;
        else dead.push_back(start);
      }
      if (is_found) open.clear();
      for (size_t start : dead) open.erase(start);
      if (at >= skip)
        if (const Node* next = step(&root, text[at])) open[at] = next;
    }
    for (const auto& [start, node] : open)
      if (node->ends) {
        cuts.push_back(start);
        cuts.push_back(text.size());
        break;
      }
    cuts.push_back(text.size());
    std::vector<Codes> parts;
    size_t begin = 0;
    for (size_t end : cuts)
      if (end > begin) {
        parts.push_back(text.substr(begin, end - begin));
        begin = end;
      }
    return parts;
  }
  // The longest completion of the earliest open match, once one that began at `start` has ended before `at`.
  static std::pair<size_t, size_t> longest(const Codes& text, const Open& open, size_t start, size_t at) {
    size_t begin = start, end = at;
    for (auto [other, node] : open) {
      if (other > begin) break;
      size_t ahead = other < begin ? at + 1 : at;
      end = ahead;
      if (node->ends) begin = other, end = ahead;
      while (ahead < text.size() && (node = step(node, text[ahead]))) {
        ahead++;
        if (node->ends) begin = other, end = ahead;
      }
    }
    return {begin, end};
  }
};

#ifdef S2S_SENTENCEPIECE

class Text {
 public:
  // entry: the manifest's `tokenizer`. read: the contents of a file of the folder tokenizer/, by its name.
  Text(const Json& entry, const std::function<std::string(const std::string&)>& read) {
    kind = text_of(entry, "kind");
    const Json& files = object_of(entry, "files");
    const Json& options = object_of(entry, "options");
    if (kind == "marian") {
      source = model(files, "source", read);
      target = model(files, "target", read);
      joiner = text_of(options, "decode_with", "target") == "source" ? source : target;
      codes = text_of(options, "language_codes", "first");
      if (codes != "first" && codes != "none") refuse("the way '" + codes + "' of reading language codes");
      unlisted_is_piece = text_of(options, "unlisted_ids", "unk") == "piece";
    } else if (kind == "spm_vocab") {
      source = target = joiner = model(files, "model", read);
      for (const auto& [token, id] : object_of(options, "language_tokens").object) {
        language_tokens[token] = id_of(id);
        languages_of[id_of(id)] = token;
      }
    } else if (kind == "sentencepiece") {
      source = target = joiner = model(files, "model", read);
      if (files.find("target_model")) target = joiner = model(files, "target_model", read);
      if (const Json* found = options.find("offset")) offset = id_of(*found);
    } else {
      refuse("a tokenizer of kind '" + kind + "'");
    }
    if (kind != "sentencepiece") {
      ids_of = vocabulary(files, "vocab", read);
      const auto of_target = files.find("target_vocab") ? vocabulary(files, "target_vocab", read) : ids_of;
      for (const auto& [piece, id] : of_target)
        if (!pieces_of.emplace(id, piece).second) damaged("two pieces with the id " + std::to_string(id));
      unknown = text_of(options, "unk_token", "<unk>");
      if (!ids_of.count(unknown)) damaged("no unknown token in its vocabulary");
      read_added(options);
    }
    for (const auto& [language, id] : object_of(entry, "languages").object) languages[language] = id_of(id);
    default_source = text_of(entry, "source_lang", "");
    target_by = text_of(entry, "target_language_by", "");
    const Json& sides = object_of(entry, "template");
    prefix = side_of(sides, "prefix");
    suffix = side_of(sides, "suffix");
    const Json& decode = object_of(entry, "decode");
    for (const Json& id : list_of(decode, "skip_ids")) skipped.insert(id_of(id));
    cleans_up = is_true(decode, "clean_up_tokenization_spaces");
    spaces_between = is_true(decode, "spaces_between_special_tokens");
  }

  Ids encode(std::string text, const std::string& source_lang, const std::string& target_lang) const {
    characters(text);  // throws where it is not UTF-8
    if (!source_lang.empty()) language(source_lang, "source");
    if (!target_lang.empty()) {
      language(target_lang, "target");
      if (target_by == "source_prefix") text = asking(target_lang, text);
    }
    const Ids inner = kind == "sentencepiece" ? encoded_whole(text) : encoded(text);
    Ids found;
    for (int64_t id : prefix) found.push_back(id < 0 ? of_source(source_lang) : id);
    found.insert(found.end(), inner.begin(), inner.end());
    for (int64_t id : suffix) found.push_back(id < 0 ? of_source(source_lang) : id);
    return found;
  }

  // The generation option that selects a target language, and its token; no name where the source says it.
  std::pair<std::string, int64_t> chosen(const std::string& target_lang) const {
    if (target_lang.empty()) return {"", 0};
    const int64_t token = language(target_lang, "target");
    return {target_by == "source_prefix" ? "" : target_by, token};
  }

  // Without special tokens.
  std::string decode(const Ids& ids) const {
    std::string text = kind == "sentencepiece" ? decoded_whole(ids) : decoded(ids);
    if (!cleans_up) return text;
    for (const auto& [old, by] : {std::pair{" .", "."}, {" ?", "?"}, {" !", "!"}, {" ,", ","}, {" ' ", "'"}, {" n't", "n't"},
                                  {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}})
      text = replaced(std::move(text), old, by);
    return text;
  }

 private:
  using Model = std::shared_ptr<sentencepiece::SentencePieceProcessor>;
  using Pieces = std::vector<std::string>;
  std::string kind, codes, unknown, default_source, target_by;
  Model source, target, joiner;
  int64_t offset = 0;
  bool unlisted_is_piece = false, splits_special = false, is_set_apart = false, cleans_up = false, spaces_between = false;
  std::map<std::string, int64_t> ids_of, language_tokens, languages;
  std::map<int64_t, std::string> pieces_of, added_of, languages_of;
  AddedTokens added;
  std::set<std::string> specials, set_apart;
  std::set<int64_t> skipped;
  Ids prefix, suffix;  // -1 stands for the source's language

  [[noreturn]] static void refuse(const std::string& what) {
    throw std::runtime_error("the bundle has " + what + ", which this library does not read; give token ids, or use s2s");
  }
  [[noreturn]] static void damaged(const std::string& what) {
    throw std::runtime_error("the bundle's tokenizer has " + what + "; export the bundle again");
  }
  static const Json& object_of(const Json& all, const std::string& name) {
    static const Json nothing;
    const Json* found = all.find(name);
    if (!found || found->kind == Json::NONE) return nothing;
    if (found->kind != Json::OBJECT) damaged("'" + name + "' in another form");
    return *found;
  }
  static const std::vector<Json>& list_of(const Json& all, const std::string& name) {
    static const std::vector<Json> nothing;
    const Json* found = all.find(name);
    if (!found || found->kind == Json::NONE) return nothing;
    if (found->kind != Json::LIST) damaged("'" + name + "' in another form");
    return found->list;
  }
  static std::string text_of(const Json& all, const std::string& name, const char* otherwise = nullptr) {
    const Json* found = all.find(name);
    if ((!found || found->kind == Json::NONE) && otherwise) return otherwise;
    if (!found || found->kind != Json::STRING) damaged("no '" + name + "', or it in another form");
    return found->text;
  }
  static bool is_true(const Json& all, const std::string& name) {
    const Json* found = all.find(name);
    return found && found->is_true;
  }
  static int64_t id_of(const Json& value) {
    if (!value.is_integer() || value.number < 0 || value.number > 1e9) damaged("a token id that is none");
    return int64_t(value.number);
  }
  Ids side_of(const Json& sides, const std::string& name) const {
    Ids found;
    for (const Json& one : list_of(sides, name)) {
      const bool is_language = one.kind == Json::STRING && one.text == "source_lang";
      if (is_language && !languages.count(default_source)) damaged("no default source language");
      found.push_back(is_language ? -1 : id_of(one));
    }
    return found;
  }
  static Model model(const Json& files, const char* role, const std::function<std::string(const std::string&)>& read) {
    const Model made = std::make_shared<sentencepiece::SentencePieceProcessor>();
    if (!made->LoadFromSerializedProto(read(text_of(files, role))).ok()) damaged(std::string("a damaged file as '") + role + "'");
    return made;
  }
  static std::map<std::string, int64_t> vocabulary(const Json& files, const char* role, const std::function<std::string(const std::string&)>& read) {
    std::map<std::string, int64_t> found;
    const Json all = JsonReader::read(read(text_of(files, role)));
    if (all.kind != Json::OBJECT) damaged(std::string("a damaged file as '") + role + "'");
    for (const auto& [piece, id] : all.object) found[piece] = id_of(id);
    return found;
  }
  void read_added(const Json& options) {
    for (const Json& token : list_of(options, "added_tokens")) {
      const int64_t id = id_of(token.find("id") ? *token.find("id") : Json());
      const std::string content = text_of(token, "content");
      added.add(characters(content), {id, is_true(token, "lstrip"), is_true(token, "rstrip"), is_true(token, "single_word")});
      added_of[id] = content;
    }
    for (const Json& token : list_of(options, "special_tokens")) specials.insert(token.text);
    splits_special = is_true(options, "split_special_tokens");
    const Json* apart = options.find("separate_added_tokens");
    is_set_apart = apart && apart->kind == Json::LIST;
    if (is_set_apart)
      for (const Json& token : apart->list) set_apart.insert(token.text);
  }

  int64_t language(const std::string& code, const std::string& side) const {
    const auto at = languages.find(code);
    if (at == languages.end())
      throw std::runtime_error(languages.empty() ? "a " + side + " language ('" + code + "') was given, but this model's tokenizer has no languages; leave it out"
                                                 : "the tokenizer has no " + side + " language '" + code + "'");
    return at->second;
  }
  int64_t of_source(const std::string& given) const { return languages.at(given.empty() ? default_source : given); }
  static std::string asking(const std::string& language, const std::string& text) {
    const std::string code = ">>" + language + "<<";
    if (text.rfind(code, 0) == 0) return text;
    const size_t end = text.rfind(">>", 0) == 0 ? text.find("<<") : std::string::npos;
    if (end != std::string::npos)
      throw std::runtime_error("the text asks for " + text.substr(0, end + 2) + ", the options for '" + language + "'; name the target language once");
    return code + " " + text;
  }

  Ids encoded_whole(const std::string& text) const {
    Ids found;
    for (int id : source->EncodeAsIds(text)) found.push_back(id + offset);
    return found;
  }
  Ids encoded(const std::string& text) const {
    Ids found;
    const std::vector<Codes> parts = splits_special ? std::vector<Codes>{characters(text)} : added.split(characters(text));
    for (const Codes& part : parts) {
      const std::string word = utf8(part);
      const bool is_whole = !splits_special && (added.by_content.count(part) || specials.count(word));
      for (const std::string& piece : is_whole ? Pieces{word} : pieces(word)) {
        const auto at = added.by_content.find(characters(piece));
        found.push_back(at == added.by_content.end() ? id_of_piece(piece) : at->second.id);
      }
    }
    return found;
  }
  Pieces pieces(const std::string& text) const {
    size_t end = std::string::npos;
    if (codes == "first" && text.rfind(">>", 0) == 0) end = text.find("<<");
    if (end == std::string::npos) return source->EncodeAsPieces(text);
    Pieces found = source->EncodeAsPieces(text.substr(end + 2));
    found.insert(found.begin(), text.substr(0, end + 2));
    return found;
  }
  int64_t id_of_piece(const std::string& piece) const {
    if (const auto at = language_tokens.find(piece); at != language_tokens.end()) return at->second;
    const auto at = ids_of.find(piece);
    return at == ids_of.end() ? ids_of.at(unknown) : at->second;
  }

  std::string decoded_whole(const Ids& ids) const {
    std::vector<int> kept;
    for (int64_t id : ids)
      if (!skipped.count(id) && id >= offset && id - offset < joiner->GetPieceSize()) kept.push_back(int(id - offset));
    return joiner->DecodeIds(kept);
  }
  std::string decoded(const Ids& ids) const {
    Pieces all;
    for (int64_t id : ids)
      if (!skipped.count(id)) all.push_back(piece_of(id));
    if (!is_set_apart) return join(all);
    std::vector<std::string> texts;
    Pieces run;
    for (const std::string& piece : all) {
      if (specials.count(piece)) continue;
      if (!set_apart.count(piece)) {
        run.push_back(piece);
        continue;
      }
      if (std::string text = run.empty() ? "" : join(run); !text.empty()) texts.push_back(text);
      run.clear();
      texts.push_back(piece);
    }
    if (!run.empty()) texts.push_back(join(run));
    std::string found;
    for (size_t i = 0; i < texts.size(); i++) found += (i && spaces_between ? " " : "") + texts[i];
    return found;
  }
  std::string piece_of(int64_t id) const {
    if (const auto at = added_of.find(id); at != added_of.end()) return at->second;
    if (const auto at = languages_of.find(id); at != languages_of.end()) return at->second;
    if (const auto at = pieces_of.find(id); at != pieces_of.end()) return at->second;
    if (!unlisted_is_piece) return unknown;
    if (id >= joiner->GetPieceSize()) throw std::runtime_error("token id " + std::to_string(id) + " is outside the tokenizer's vocabulary, expected an id in it");
    const std::string& piece = joiner->IdToPiece(int(id));
    return piece.empty() ? unknown : piece;
  }
  std::string join(const Pieces& all) const {
    const bool is_marian = kind == "marian";
    std::string text;
    Pieces run;
    for (const std::string& piece : all) {
      if (specials.count(piece)) {
        text += joiner->DecodePieces(run) + piece + (is_marian ? " " : "");
        run.clear();
      } else {
        run.push_back(piece);
      }
    }
    text += joiner->DecodePieces(run);
    if (is_marian) text = replaced(std::move(text), "\xE2\x96\x81", " ");
    return utf8(stripped(characters(text), true, true));
  }
};

#else

class Text {
 public:
  Text(const Json&, const std::function<std::string(const std::string&)>&) {
    throw std::runtime_error("this library was built without sentencepiece, and so reads no text; give token ids, or build it where sentencepiece's C++ library is");
  }
  Ids encode(const std::string&, const std::string&, const std::string&) const { return {}; }
  std::pair<std::string, int64_t> chosen(const std::string&) const { return {}; }
  std::string decode(const Ids&) const { return {}; }
};

#endif

}  // namespace s2s_library
