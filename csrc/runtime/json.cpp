#include "json.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "error.h"

namespace mrisr::runtime {
namespace {

constexpr std::size_t kDepth = 16;  // of nested objects and lists
constexpr std::size_t kValues = 100000;
constexpr std::size_t kNames = 256;  // of an object: they are compared one by one

// What nlohmann-json finds, as a Json, within the limits above. Its own tree is not used: its destructor allocates.
class Builder {
 public:
  Builder(Json& document, const std::string& where) : document_(document), where_(where) {}

  bool null() { return put({}); }
  bool boolean(bool value) {
    Json node;
    node.kind = Json::Kind::boolean;
    node.boolean = value;
    return put(std::move(node));
  }
  bool number_integer(std::int64_t value) { return put(whole(value)); }
  bool number_unsigned(std::uint64_t value) {
    constexpr auto most = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
    return put(value <= most ? whole(static_cast<std::int64_t>(value)) : real(static_cast<double>(value)));
  }
  bool number_float(double value, const std::string&) { return put(real(value)); }
  bool string(std::string& value) {
    Json node;
    node.kind = Json::Kind::text;
    node.text = std::move(value);
    return put(std::move(node));
  }
  bool binary(std::vector<std::uint8_t>&) { return false; }  // JSON has none

  bool start_object(std::size_t) { return open(Json::Kind::object); }
  bool start_array(std::size_t) { return open(Json::Kind::list); }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool key(std::string& name) {
    const Json& object = *open_.back();
    if (object.find(name) != nullptr) {
      Json twice;
      twice.kind = Json::Kind::text;
      twice.text = name;
      MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": the name " << shown(twice) << " stands twice in one object");
    }
    if (object.object.size() >= kNames)
      MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": an object of more than " << kNames << " names");
    name_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t at, const std::string&, const nlohmann::json::exception& error) {
    const bool large = error.id == 406;
    MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": not JSON (" << (large ? "a number beyond what a double holds, " : "")
                                         << "at byte " << at << ")");
  }

 private:
  static Json whole(std::int64_t value) {
    Json node = real(static_cast<double>(value));
    node.whole = true;
    node.integer = value;
    return node;
  }

  static Json real(double value) {
    Json node;
    node.kind = Json::Kind::number;
    node.number = value;
    return node;
  }

  // Where the value is kept: parents do not grow while a child is open, so that pointers into them hold.
  Json& keep(Json&& value) {
    if (++values_ > kValues) MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": more than " << kValues << " values");
    if (open_.empty()) return document_ = std::move(value);
    Json& parent = *open_.back();
    if (parent.kind == Json::Kind::list) return parent.list.emplace_back(std::move(value));
    return parent.object.emplace_back(std::move(name_), std::move(value)).second;
  }

  bool put(Json&& value) {
    keep(std::move(value));
    return true;
  }

  bool open(Json::Kind kind) {
    if (open_.size() >= kDepth)
      MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": nests more than " << kDepth << " levels deep");
    Json node;
    node.kind = kind;
    open_.push_back(&keep(std::move(node)));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  Json& document_;
  const std::string& where_;
  std::vector<Json*> open_;
  std::string name_;
  std::size_t values_ = 0;
};

bool alphanumeric(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

}  // namespace

const Json* Json::find(std::string_view name) const {
  for (const auto& entry : object)
    if (entry.first == name) return &entry.second;
  return nullptr;
}

Json parse_json(std::string_view text, const std::string& where) {
  // nlohmann-json takes a NUL for the end of the text, and skips a byte order mark.
  const std::size_t nul = text.find('\0');
  if (nul != std::string_view::npos) MRISR_FAIL(MRISR_ERROR_MODEL, where << ": not JSON (NUL at byte " << nul << ")");
  if (text.substr(0, 3) == "\xef\xbb\xbf") MRISR_FAIL(MRISR_ERROR_MODEL, where << ": not JSON (a byte order mark)");
  Json node;
  Builder builder(node, where);
  nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
  return node;
}

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
  const Json* entry = value_->kind == Json::Kind::object ? value_->find(name) : nullptr;
  if (entry == nullptr) MRISR_FAIL(MRISR_ERROR_MODEL, where_ << ": lacks " << name);
  return {*entry, where_ + "." + name};
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

bool Field::flag() const {
  if (value_->kind != Json::Kind::boolean) wrong("true or false");
  return value_->boolean;
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
  const std::string& word = value_->text;
  const auto fits = [&](char c) { return alphanumeric(c) || marks.find(c) != std::string_view::npos; };
  if (!text || word.empty() || word.size() > longest || !alphanumeric(word[0]) ||
      !std::all_of(word.begin(), word.end(), fits))
    wrong(meaning);
  return word;
}

const std::string& Field::line() const {
  const bool text = value_->kind == Json::Kind::text && value_->text.size() <= 1600;
  const auto control = [](unsigned char c) { return c < 0x20 || c == 0x7f; };  // char has no sign on Arm
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
  std::vector<Field> fields;
  for (std::size_t i = 0; i < value_->list.size(); ++i)
    fields.emplace_back(value_->list[i], where_ + "[" + std::to_string(i) + "]");
  return fields;
}

std::vector<std::pair<std::string, Field>> Field::table(std::size_t fewest, std::size_t most) const {
  if (value_->kind != Json::Kind::object || value_->object.size() < fewest || value_->object.size() > most)
    wrong("an object of " + std::to_string(fewest) + " to " + std::to_string(most) + " entries");
  std::vector<std::pair<std::string, Field>> fields;
  for (const auto& entry : value_->object)
    fields.emplace_back(entry.first, Field(entry.second, where_ + "." + entry.first));
  return fields;
}

}  // namespace mrisr::runtime
