#include "json.h"

#include <algorithm>
#include <charconv>

#include "error.h"

namespace mrisr::runtime {
namespace {

constexpr int kDepth = 16;
constexpr int kValues = 100000;
constexpr std::size_t kNames = 256;  // of an object: they are compared one by one

class Parser {
 public:
  Parser(std::string_view text, const std::string& where) : text_(text), where_(where) {}

  Json document() {
    Json found = value(0);
    space();
    if (at_ != text_.size()) fail("something follows the document");
    return found;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": not JSON (" << what << " at byte " << at_ << ")");
  }

  void space() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\t' || text_[at_] == '\n' || text_[at_] == '\r'))
      ++at_;
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void expect(char mark) {
    if (peek() != mark || at_ >= text_.size()) fail(std::string("expected '") + mark + "'");
    ++at_;
  }

  bool take(char mark) {
    if (at_ >= text_.size() || text_[at_] != mark) return false;
    ++at_;
    return true;
  }

  Json value(int depth) {
    if (depth > kDepth) MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": nests more than " << kDepth << " levels deep");
    if (++values_ > kValues) MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": more than " << kValues << " values");
    space();
    Json found;
    const char mark = peek();
    if (mark == '{') {
      object(found, depth);
    } else if (mark == '[') {
      list(found, depth);
    } else if (mark == '"') {
      found.kind = Json::Kind::text;
      found.text = string();
    } else if (word("true") || word("false")) {
      found.kind = Json::Kind::boolean;
      found.boolean = mark == 't';
    } else if (!word("null")) {
      number(found);
    }
    return found;
  }

  bool word(std::string_view expected) {
    if (text_.substr(at_, expected.size()) != expected) return false;
    at_ += expected.size();
    return true;
  }

  void object(Json& found, int depth) {
    found.kind = Json::Kind::object;
    expect('{');
    space();
    if (take('}')) return;
    do {
      space();
      std::string name = string();
      if (found.find(name) != nullptr)
        MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": the name '" << name << "' stands twice in one object");
      if (found.object.size() >= kNames)
        MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": an object of more than " << kNames << " names");
      space();
      expect(':');
      found.object.emplace_back(std::move(name), value(depth + 1));
      space();
    } while (take(','));
    expect('}');
  }

  void list(Json& found, int depth) {
    found.kind = Json::Kind::list;
    expect('[');
    space();
    if (take(']')) return;
    do {
      found.list.push_back(value(depth + 1));
      space();
    } while (take(','));
    expect(']');
  }

  std::size_t digits() {
    const std::size_t from = at_;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
    return at_ - from;
  }

  void number(Json& found) {
    const std::size_t from = at_;
    take('-');
    const std::size_t first = at_, count = digits();
    if (count == 0) fail("expected a value");
    if (count > 1 && text_[first] == '0') fail("a number with a leading zero");
    bool whole = true;
    if (take('.')) {
      whole = false;
      if (digits() == 0) fail("a number that ends in its point");
    }
    if (peek() == 'e' || peek() == 'E') {
      whole = false;
      ++at_;
      if (!take('+')) take('-');
      if (digits() == 0) fail("a number without its exponent");
    }
    const char *begin = text_.data() + from, *end = text_.data() + at_;
    found.kind = Json::Kind::number;
    if (std::from_chars(begin, end, found.number).ec != std::errc()) fail("a number beyond what a double holds");
    found.whole = whole && std::from_chars(begin, end, found.integer).ec == std::errc();
  }

  unsigned hex() {
    unsigned code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = peek();
      const int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit < 0) fail("an escape without its four digits");
      code = code * 16 + static_cast<unsigned>(digit);
    }
    return code;
  }

  static void put(std::string& to, unsigned code) {
    if (code < 0x80) {
      to += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static constexpr unsigned lead[] = {0, 0xc0, 0xe0, 0xf0};
    to += static_cast<char>(lead[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) to += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3f));
  }

  unsigned escaped_code() {
    unsigned code = hex();
    if (code >= 0xdc00 && code < 0xe000) fail("half a surrogate pair");
    if (code < 0xd800 || code >= 0xdc00) return code;
    if (!take('\\') || !take('u')) fail("half a surrogate pair");
    const unsigned low = hex();
    if (low < 0xdc00 || low >= 0xe000) fail("half a surrogate pair");
    return 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
  }

  void escape(std::string& to) {
    const char mark = peek();
    ++at_;
    static constexpr char from[] = "\"\\/bfnrt", as[] = "\"\\/\b\f\n\r\t";
    if (mark == 'u') return put(to, escaped_code());
    for (int i = 0; i < 8; ++i)
      if (mark == from[i]) {
        to += as[i];
        return;
      }
    fail("an unknown escape");
  }

  // One character of more than one byte, checked: no overlong form, no surrogate, nothing above U+10FFFF.
  void wide(std::string& to) {
    const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text_[i]); };
    const unsigned lead = byte(at_);
    const std::size_t more = lead >= 0xf0 && lead < 0xf5 ? 3 : lead >= 0xe0 && lead < 0xf0 ? 2 : lead >= 0xc2 && lead < 0xe0 ? 1 : 0;
    if (more == 0 || text_.size() - at_ <= more) fail("a text that is not UTF-8");
    unsigned code = lead & (0x3fu >> more);
    for (std::size_t i = 1; i <= more; ++i) {
      if ((byte(at_ + i) & 0xc0) != 0x80) fail("a text that is not UTF-8");
      code = (code << 6) | (byte(at_ + i) & 0x3f);
    }
    static constexpr unsigned least[] = {0, 0x80, 0x800, 0x10000};
    if (code < least[more] || (code >= 0xd800 && code < 0xe000) || code > 0x10ffff) fail("a text that is not UTF-8");
    to.append(text_.substr(at_, more + 1));
    at_ += more + 1;
  }

  std::string string() {
    expect('"');
    std::string found;
    for (;;) {
      if (at_ >= text_.size()) fail("a text without its end");
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') break;
      if (c < 0x20) fail("a control character in a text");
      if (c == '\\') {
        ++at_;
        escape(found);
      } else if (c < 0x80) {
        found += static_cast<char>(c);
        ++at_;
      } else {
        wide(found);
      }
    }
    ++at_;
    return found;
  }

  std::string_view text_;
  const std::string& where_;
  std::size_t at_ = 0;
  int values_ = 0;
};

bool alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& entry : object)
    if (entry.first == name) return &entry.second;
  return nullptr;
}

Json parse_json(std::string_view text, const std::string& where) { return Parser(text, where).document(); }

std::string shown(const Json& value) {
  switch (value.kind) {
    case Json::Kind::null:
      return "null";
    case Json::Kind::boolean:
      return value.boolean ? "true" : "false";
    case Json::Kind::number: {
      std::ostringstream text;
      value.whole ? text << value.integer : text << value.number;
      return text.str();
    }
    case Json::Kind::text: {
      std::string text = "'";
      for (char c : value.text.substr(0, 60)) text += c >= 0x20 && c < 0x7f ? c : '?';
      return text + (value.text.size() > 60 ? "...'" : "'");
    }
    case Json::Kind::list:
      return "a list";
    default:
      return "an object";
  }
}

void Field::wrong(const std::string& expected) const {
  MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": expected " << expected << ", found " << shown(*value_));
}

void Field::exactly(std::initializer_list<const char*> names) const {
  if (value_->kind != Json::Kind::object) wrong("an object");
  for (const char* name : names)
    if (value_->find(name) == nullptr) MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": lacks " << name);
  for (const auto& entry : value_->object)
    if (std::none_of(names.begin(), names.end(), [&](const char* name) { return entry.first == name; })) {
      Json name;
      name.kind = Json::Kind::text;
      name.text = entry.first;
      MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": has the unknown field " << shown(name));
    }
}

Field Field::operator[](const char* name) const {
  const Json* found = value_->kind == Json::Kind::object ? value_->find(name) : nullptr;
  if (found == nullptr) MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": lacks " << name);
  return {*found, where_ + "." + name};
}

double Field::number(double low, double high, bool above) const {
  if (value_->kind != Json::Kind::number) wrong("a number");
  const double v = value_->number;
  if (!(v >= low && v <= high) || (above && v == low)) {
    std::ostringstream range;
    range << (above ? "above " : "at least ") << low << " and at most " << high;
    wrong(range.str());
  }
  return v;
}

std::int64_t Field::whole(std::int64_t low, std::int64_t high) const {
  if (value_->kind != Json::Kind::number || !value_->whole || value_->integer < low || value_->integer > high)
    wrong("a whole number from " + std::to_string(low) + " to " + std::to_string(high));
  return value_->integer;
}

const std::string& Field::text() const {
  if (value_->kind != Json::Kind::text) wrong("a text");
  return value_->text;
}

const std::string& Field::word(std::size_t longest, std::string_view marks, const char* meaning) const {
  const bool text = value_->kind == Json::Kind::text;
  const std::string& found = value_->text;
  const auto fits = [&](char c) { return alphanumeric(c) || marks.find(c) != std::string_view::npos; };
  if (!text || found.empty() || found.size() > longest || !alphanumeric(found[0]) ||
      !std::all_of(found.begin(), found.end(), fits))
    wrong(meaning);
  return found;
}

const std::string& Field::line() const {
  const bool text = value_->kind == Json::Kind::text && value_->text.size() <= 1600;
  const auto control = [](char c) { return (c >= 0 && c < 0x20) || c == 0x7f; };
  if (!text || std::any_of(value_->text.begin(), value_->text.end(), control)) wrong("one line of text");
  return value_->text;
}

const std::string& Field::one_of(std::initializer_list<const char*> values) const {
  std::string all;
  for (const char* v : values) {
    if (value_->kind == Json::Kind::text && value_->text == v) return value_->text;
    all += (all.empty() ? "'" : " or '") + std::string(v) + "'";
  }
  wrong(all);
}

std::vector<Field> Field::list(std::size_t fewest, std::size_t most) const {
  if (value_->kind != Json::Kind::list || value_->list.size() < fewest || value_->list.size() > most)
    wrong("a list of " + std::to_string(fewest) + " to " + std::to_string(most) + " entries");
  std::vector<Field> found;
  for (std::size_t i = 0; i < value_->list.size(); ++i)
    found.emplace_back(value_->list[i], where_ + "[" + std::to_string(i) + "]");
  return found;
}

std::vector<std::pair<std::string, Field>> Field::table(std::size_t fewest, std::size_t most) const {
  if (value_->kind != Json::Kind::object || value_->object.size() < fewest || value_->object.size() > most)
    wrong("an object of " + std::to_string(fewest) + " to " + std::to_string(most) + " entries");
  std::vector<std::pair<std::string, Field>> found;
  for (const auto& entry : value_->object) found.emplace_back(entry.first, Field(entry.second, where_ + "." + entry.first));
  return found;
}

}  // namespace mrisr::runtime
