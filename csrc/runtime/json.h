// JSON as RFC 8259 has it, from a source that nobody trusts: UTF-8, finite numbers, no name twice in an object, bounded
// depth and number of values. Every error names its place.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mrisr::runtime {

class Json {
 public:
  enum class Kind { null, boolean, number, text, list, object };

  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;
  bool whole = false;  // written without point or exponent, and within int64
  std::int64_t integer = 0;
  std::string text;
  std::vector<Json> list;
  std::vector<std::pair<std::string, Json>> object;

  const Json* find(std::string_view name) const;
};

// `where` begins every error text. Raises Error (MRISR_ERROR_MODEL).
Json parse_json(std::string_view text, const std::string& where);

// What an error says of a value: short, printable, one line.
std::string shown(const Json& value);

// A value and its place, read by what it should be; anything else is an Error (MRISR_ERROR_MODEL) that names the place.
class Field {
 public:
  Field(const Json& value, std::string where) : value_(&value), where_(std::move(where)) {}

  const std::string& where() const { return where_; }
  const Json& value() const { return *value_; }

  // An object with exactly these fields.
  void exactly(std::initializer_list<const char*> names) const;
  Field operator[](const char* name) const;

  double number(double low, double high, bool above = false) const;
  std::int64_t whole(std::int64_t low, std::int64_t high) const;
  const std::string& text() const;
  // Letters, digits and the marks in `marks`; the first is a letter or a digit.
  const std::string& word(std::size_t longest, std::string_view marks, const char* meaning) const;
  const std::string& line() const;
  const std::string& one_of(std::initializer_list<const char*> values) const;
  std::vector<Field> list(std::size_t fewest, std::size_t most) const;
  std::vector<std::pair<std::string, Field>> table(std::size_t fewest, std::size_t most) const;
  bool flag() const;
  bool is_null() const { return value_->kind == Json::Kind::null; }

  [[noreturn]] void wrong(const std::string& expected) const;

 private:
  const Json* value_;
  std::string where_;
};

}  // namespace mrisr::runtime
