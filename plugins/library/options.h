// Generation options: JSON by generate()'s names over the bundle's defaults, checked, as what the search is made from.
#pragma once

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "../search/search.h"
#include "json.h"

namespace s2s_library {

// What says nothing about a decode, of the bundle's defaults.
inline const std::set<std::string> UNREAD = {"transformers_version", "use_cache", "_from_model_config", "bos_token_id",
                                             "output_attentions", "output_hidden_states", "return_dict_in_generate"};
inline const std::set<std::string> READ = {
    "num_beams", "num_return_sequences", "max_length", "max_new_tokens", "min_length", "min_new_tokens", "length_penalty",
    "early_stopping", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "repetition_penalty",
    "encoder_repetition_penalty", "frequency_penalty", "sequence_bias", "bad_words_ids", "suppress_tokens",
    "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty",
    "renormalize_logits", "decoder_start_token_id", "eos_token_id", "pad_token_id"};
constexpr int MOST_BEAMS = 128, MOST_LENGTH = 1 << 16, MOST_RULES = 32;

class Options {
 public:
  int num_beams, num_return_sequences, max_length;
  double length_penalty;

  // defaults: manifest's `generation`. limit: positions that the decoder has, 0 for no limit. Throws what is wrong.
  Options(const Json& defaults, const Json& given, int vocabulary, int limit) : vocabulary(vocabulary) {
    for (const auto& [name, value] : defaults.object) take(name, value, true);
    for (const auto& [name, value] : given.object) take(name, value, false);
    if (given.find("max_length") && !given.find("max_new_tokens")) all.erase("max_new_tokens");
    num_beams = integer("num_beams", 1, 1, MOST_BEAMS);
    num_return_sequences = integer("num_return_sequences", 1, 1, MOST_BEAMS);
    if (num_return_sequences > num_beams)
      throw std::runtime_error("num_return_sequences is " + std::to_string(num_return_sequences) +
                               "; expected at most num_beams, which is " + std::to_string(num_beams));
    if (!all.count("decoder_start_token_id"))
      throw std::runtime_error("there is no decoder_start_token_id; expected one among the options");
    prompt = {token("decoder_start_token_id")};
    max_length = all.count("max_new_tokens") ? 1 + integer("max_new_tokens", 1, 1, MOST_LENGTH)
                                             : integer("max_length", 20, 2, MOST_LENGTH);
    if (limit && max_length > limit + 1)
      throw std::runtime_error("outputs may have " + std::to_string(max_length) + " tokens, but the decoder has " +
                               std::to_string(limit) + " positions; give a smaller max_length or max_new_tokens");
    length_penalty = number("length_penalty", 1.0);
    for (int id : ids("eos_token_id")) end_ids.push_back(id);
    if (std::max<size_t>(2, 1 + end_ids.size()) > size_t(vocabulary))
      throw std::runtime_error("nearly all tokens are end tokens; give fewer as eos_token_id");
    fill = all.count("pad_token_id") ? token("pad_token_id") : end_ids.empty() ? 0 : int(end_ids[0]);
    divisor = {1.f};
    for (int n = 1; n < max_length; n++) {
      divisor.push_back(float(std::pow(double(n), length_penalty)));
      if (!std::isfinite(std::pow(double(n), length_penalty)))
        throw std::runtime_error("length_penalty takes lengths out of a float's range; give a smaller one");
    }
    read_early_stopping();
    make_rules();
  }

  bool reads_sources = false;  // whether some rule does

  // What a search of so many sources is made from; it points into these options. sources [B, S], padded with -1, where a
  // rule reads them.
  S2SSettings settings(int n_sources, const std::vector<int32_t>& sources) const {
    S2SSettings s{};
    s.prompt = prompt.data();
    s.end_ids = end_ids.data();
    s.length_divisor = divisor.data();
    s.rules = rules.data();
    s.ids = rule_ids.data();
    s.amounts = amounts.data();
    s.sources = sources.data();
    s.n_sources = n_sources;
    s.n_rows = num_beams;
    s.vocabulary = vocabulary;
    s.prompt_length = int32_t(prompt.size());
    s.n_end = int32_t(end_ids.size());
    s.max_length = max_length;
    s.n_rules = int32_t(rules.size());
    s.n_ids = int32_t(rule_ids.size());
    s.n_amounts = int32_t(amounts.size());
    s.source_width = reads_sources ? int32_t(sources.size() / size_t(n_sources)) : 0;
    s.is_beam_search = num_beams > 1;
    s.early_stopping = stops_early;
    s.bound_at_limit = never_stops && length_penalty > 0;
    s.edits_logits = num_beams == 1 && changes_choice;
    s.keeps_history = 1;
    s.fill = fill;
    return s;
  }

  std::vector<int64_t> prompt;

 private:
  const int vocabulary;
  std::map<std::string, Json> all;
  std::vector<int64_t> end_ids;
  std::vector<float> divisor;
  std::vector<DeviceRule> rules;
  std::vector<int32_t> rule_ids;
  std::vector<float> amounts;
  int fill;
  bool stops_early = false, never_stops = false, changes_choice = false;

  void take(const std::string& name, const Json& value, bool is_default) {
    const bool is_off = value.kind == Json::NONE || (value.kind == Json::BOOLEAN && !value.is_true);
    if (READ.count(name)) {
      if (value.kind == Json::NONE)
        all.erase(name);
      else
        all[name] = value;
    } else if (!(is_default && UNREAD.count(name)) && !(is_off && (is_default || name == "do_sample"))) {
      throw std::runtime_error("the library does not have the option '" + name + "'" +
                               (is_default ? " of the bundle's defaults" : "") + "; use s2s or its Python interface");
    }
  }
  [[noreturn]] static void wrong(const std::string& name, const std::string& expected) {
    throw std::runtime_error("the option " + name + " is not as expected: " + expected);
  }
  int integer(const std::string& name, int otherwise, int least, int most) const {
    const auto at = all.find(name);
    if (at == all.end()) return otherwise;
    if (!at->second.is_integer() || at->second.number < least || at->second.number > most)
      wrong(name, "an integer from " + std::to_string(least) + " to " + std::to_string(most));
    return int(at->second.number);
  }
  double number(const std::string& name, double otherwise) const {
    const auto at = all.find(name);
    if (at == all.end()) return otherwise;
    if (at->second.kind != Json::NUMBER) wrong(name, "a number");
    return at->second.number;
  }
  int token_of(const std::string& name, const Json& value) const {
    if (!value.is_integer() || value.number < 0 || value.number >= vocabulary)
      wrong(name, "token ids from 0 to " + std::to_string(vocabulary - 1));
    return int(value.number);
  }
  int token(const std::string& name) const { return token_of(name, all.at(name)); }
  // An id or a list of them, each once, in order.
  std::vector<int> ids(const std::string& name) const {
    std::vector<int> found;
    const auto at = all.find(name);
    if (at == all.end()) return found;
    if (at->second.kind != Json::LIST) return {token_of(name, at->second)};
    for (const Json& value : at->second.list) {
      const int id = token_of(name, value);
      if (std::find(found.begin(), found.end(), id) == found.end()) found.push_back(id);
    }
    return found;
  }
  void read_early_stopping() {
    const auto at = all.find("early_stopping");
    if (at == all.end()) return;
    never_stops = at->second.kind == Json::STRING && at->second.text == "never";
    if (!never_stops && at->second.kind != Json::BOOLEAN) wrong("early_stopping", "true, false or \"never\"");
    stops_early = at->second.is_true;
  }
  void add(int effect, int which, const std::vector<int>& ids, int first = 0, int last = INT32_MAX, int n = 0, float amount = 0) {
    DeviceRule rule{};
    rule.effect = effect;
    rule.which = which;
    rule.first_length = first;
    rule.last_length = last;
    rule.n = n;
    rule.first_id = int32_t(rule_ids.size());
    rule.first_amount = int32_t(amounts.size());
    rule.count = int32_t(ids.size());
    rule.amount = amount;
    rule_ids.insert(rule_ids.end(), ids.begin(), ids.end());
    rules.push_back(rule);
    if (int(rules.size()) > MOST_RULES) throw std::runtime_error("there are more rules than a search has; give fewer options");
    reads_sources |= which == S2S_SOURCE || which == S2S_SOURCE_NGRAM;
  }
  static const std::vector<Json>& pair(const std::string& name, const Json& value, const std::string& expected) {
    if (value.kind != Json::LIST || value.list.size() != 2) wrong(name, expected);
    return value.list;
  }
  void scale(const std::string& name, int which, bool is_inverse) {
    const double penalty = number(name, 1.0);
    if (!(penalty > 0)) wrong(name, "a number above 0");
    if (penalty == 1.0) return;
    add(S2S_SCALE, which, {}, 0, INT32_MAX, 0, float(is_inverse ? 1.0 / penalty : penalty));
    changes_choice = true;
  }
  // In the order of decoding/rules.
  void make_rules() {
    const std::vector<int> ends(end_ids.begin(), end_ids.end());
    bias_sequences();
    scale("encoder_repetition_penalty", S2S_SOURCE, true);
    scale("repetition_penalty", S2S_HISTORY, false);
    if (const double penalty = number("frequency_penalty", 0.0); penalty != 0.0) {
      add(S2S_ADD, S2S_HISTORY, {});
      for (int at = 0; at < max_length; at++) amounts.push_back(at < int(prompt.size()) ? 0.f : float(-penalty));
    }
    if (const int n = integer("no_repeat_ngram_size", 0, 0, MOST_LENGTH)) add(S2S_BAN, S2S_NGRAM, {}, 0, INT32_MAX, n);
    if (const int n = integer("encoder_no_repeat_ngram_size", 0, 0, MOST_LENGTH))
      add(S2S_BAN, S2S_SOURCE_NGRAM, {}, 0, INT32_MAX, n);
    ban_words();
    const int least = all.count("min_new_tokens") ? int(prompt.size()) + integer("min_new_tokens", 0, 0, MOST_LENGTH)
                                                  : integer("min_length", 0, 0, MOST_LENGTH);
    if (least && !ends.empty()) add(S2S_BAN, S2S_LISTED, ends, 0, least - 1);
    if (all.count("forced_bos_token_id")) add(S2S_ONLY, S2S_LISTED, {token("forced_bos_token_id")}, 1, 1);
    if (all.count("forced_eos_token_id"))
      add(S2S_ONLY, S2S_LISTED, ids("forced_eos_token_id"), max_length - 1, max_length - 1);
    grow_ends(ends);
    const std::vector<int> suppressed = ids("suppress_tokens"), at_first = ids("begin_suppress_tokens");
    if (!suppressed.empty()) add(S2S_BAN, S2S_LISTED, suppressed);
    const int first = int(prompt.size()) + int(prompt.size() == 1 && all.count("forced_bos_token_id"));
    if (!at_first.empty()) add(S2S_BAN, S2S_LISTED, at_first, first, first);
    const auto at = all.find("renormalize_logits");
    if (at != all.end() && at->second.kind != Json::BOOLEAN) wrong("renormalize_logits", "true or false");
    if (at != all.end() && at->second.is_true) add(S2S_RENORMALIZE, S2S_LISTED, {});
  }
  // The end tokens' scores grow from some length on.
  void grow_ends(const std::vector<int>& ends) {
    const std::string name = "exponential_decay_length_penalty";
    const auto at = all.find(name);
    if (at == all.end() || ends.empty()) return;
    const std::string expected = "a pair: the number of tokens before the penalty starts, and a factor above 0";
    const std::vector<Json>& given = pair(name, at->second, expected);
    if (!given[0].is_integer() || given[0].number < 0 || given[0].number > MOST_LENGTH || given[1].kind != Json::NUMBER ||
        !(given[1].number > 0))
      wrong(name, expected);
    const int start = int(given[0].number) + int(prompt.size());
    const int n = std::max(max_length - start, 0);
    if (n) add(S2S_GROW, S2S_LISTED, ends, start + 1, start + n);
    for (int i = 1; i <= n; i++) amounts.push_back(float(std::pow(given[1].number, double(i)) - 1.0));
    changes_choice = true;
  }
  void bias_sequences() {
    const std::string name = "sequence_bias", expected = "a list of [token ids, number] pairs";
    const auto at = all.find(name);
    if (at == all.end()) return;
    if (at->second.kind != Json::LIST || at->second.list.empty()) wrong(name, expected);
    std::vector<std::pair<std::vector<int>, double>> words;  // the last number of a repeated sequence holds
    for (const Json& value : at->second.list) {
      const std::vector<Json>& given = pair(name, value, expected);
      if (given[0].kind != Json::LIST || given[0].list.empty() || given[1].kind != Json::NUMBER || std::isnan(given[1].number))
        wrong(name, expected);
      std::vector<int> word;
      for (const Json& one : given[0].list) word.push_back(token_of(name, one));
      const auto known = std::find_if(words.begin(), words.end(), [&](const auto& other) { return other.first == word; });
      if (known == words.end()) words.emplace_back(word, given[1].number);
      else known->second = given[1].number;
    }
    std::vector<std::vector<int>> only;
    for (const auto& [word, bias] : words) only.push_back(word);
    add_sequences(S2S_ADD, only);
    for (const auto& [word, bias] : words) amounts.push_back(float(bias));
  }
  // Each as its length and its tokens, filled up with -1 to the longest.
  void add_sequences(int effect, const std::vector<std::vector<int>>& words) {
    size_t width = 0;
    for (const auto& word : words) width = std::max(width, word.size());
    std::vector<int> records;
    for (const auto& word : words) {
      records.push_back(int(word.size()));
      records.insert(records.end(), word.begin(), word.end());
      records.insert(records.end(), width - word.size(), -1);
    }
    add(effect, S2S_SEQUENCES, records, 0, INT32_MAX, int(width));
    rules.back().count = int32_t(words.size());
  }
  void ban_words() {
    const auto at = all.find("bad_words_ids");
    if (at == all.end()) return;
    if (at->second.kind != Json::LIST) wrong("bad_words_ids", "a list of lists of token ids");
    std::vector<std::vector<int>> words;
    for (const Json& value : at->second.list) {
      if (value.kind != Json::LIST || value.list.empty()) wrong("bad_words_ids", "a list of lists of token ids");
      std::vector<int> word;
      for (const Json& one : value.list) word.push_back(token_of("bad_words_ids", one));
      if (word.size() == 1 && std::find(end_ids.begin(), end_ids.end(), word[0]) != end_ids.end()) continue;
      words.push_back(word);
    }
    if (!words.empty()) add_sequences(S2S_BAN, words);
  }
};

}  // namespace s2s_library
