// JSON values, read strictly and written exactly as Python's json.dumps(..., ensure_ascii=False) writes them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace mlpdeploy {

// Numbers keep what Python keeps: integers of any length as their digits, everything else as a double.
struct Json {
  enum class Type { null, boolean, integer, number, string, array, object };

  Type type = Type::null;
  bool boolean = false;
  double number = 0.0;
  std::string text;  // of a string, or the digits of an integer
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;  // in the order of the file; a name stands once

  Json() = default;
  Json(bool value) : type(Type::boolean), boolean(value) {}
  Json(double value) : type(Type::number), number(value) {}
  Json(int value) : Json(static_cast<std::int64_t>(value)) {}
  Json(std::int64_t value) : type(Type::integer), text(std::to_string(value)) {}
  Json(std::string value) : type(Type::string), text(std::move(value)) {}
  Json(std::string_view value) : Json(std::string(value)) {}
  Json(const char* value) : Json(std::string(value)) {}

  static Json array() { return of(Type::array); }
  static Json object() { return of(Type::object); }

  bool is(Type wanted) const noexcept { return type == wanted; }
  const Json* find(std::string_view name) const noexcept;  // null where this is no object or has no such member
  void set(std::string name, Json value);
  void add(Json value) { items.push_back(std::move(value)); }

 private:
  static Json of(Type type) {
    Json value;
    value.type = type;
    return value;
  }
};

// Nesting deeper than this is refused: no manifest comes near, and Python's limit is of the same order.
constexpr int max_json_depth = 200;

// Throws std::runtime_error with the reason: no JSON, NaN or infinity, too deep.
Json parse_json(std::string_view text);

// As json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")): what checksums are taken of.
std::string canonical_json(const Json& value);

// As json.dumps(value, indent=1, ensure_ascii=False); a byte that is no UTF-8 is \udcXX, as os.fsdecode has it.
std::string indented_json(const Json& value);

// As json.dumps(value, ensure_ascii=False), on one line.
std::string json_line(const Json& value);

// As Python's repr(float): the shortest digits that give the same double again.
std::string python_float(double value);

}  // namespace mlpdeploy
