#include "json.h"

#include <locale.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <unordered_map>

namespace mlpdeploy {

namespace {

// This thread's numbers have a decimal point while it lives: the library reads them in the program's locale, which may
// have a comma.
class DecimalPoint {
 public:
  DecimalPoint() : plain_(newlocale(LC_ALL_MASK, "C", nullptr)) {
    if (!plain_) throw std::bad_alloc();
    before_ = uselocale(plain_);
  }
  DecimalPoint(const DecimalPoint&) = delete;
  DecimalPoint& operator=(const DecimalPoint&) = delete;
  ~DecimalPoint() {
    uselocale(before_);
    freelocale(plain_);
  }

 private:
  locale_t plain_, before_;
};

// As Python's dict does: the place of the first, the value of the last.
void keep_last_of_equal_names(std::vector<std::pair<std::string, Json>>& members) {
  std::unordered_map<std::string, std::size_t> places;
  std::vector<std::pair<std::string, Json>> kept;
  kept.reserve(members.size());
  for (auto& member : members) {
    const auto [place, is_new] = places.emplace(member.first, kept.size());
    if (is_new) {
      kept.push_back(std::move(member));
    } else {
      kept[place->second].second = std::move(member.second);
    }
  }
  members = std::move(kept);
}

// Builds the tree from the library's events, which tell a number's characters: its own tree has no long integers.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Json root;
  std::string reason;

  bool null() override { return put(Json()); }
  bool boolean(bool value) override { return put(Json(value)); }
  bool number_integer(std::int64_t value) override { return put(Json(value)); }
  bool number_unsigned(std::uint64_t value) override { return put_integer(std::to_string(value)); }
  bool number_float(double value, const std::string& characters) override {
    // The library reports integers that exceed 64 bits as floats.
    if (characters.find_first_of(".eE") == std::string::npos) return put_integer(characters);
    return put(Json(value));
  }
  bool string(std::string& value) override { return put(Json(std::move(value))); }
  bool binary(nlohmann::json::binary_t&) override { return refuse("binary data"); }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool key(std::string& name) override {
    names_.back() = std::move(name);
    return true;
  }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ...": the part that says what.
    const std::string text = error.what();
    const auto colon = text.find("] ");
    reason = colon == std::string::npos ? "byte " + std::to_string(position) : text.substr(colon + 2);
    return false;
  }

 private:
  std::vector<Json> open_;
  std::vector<std::string> names_;

  bool put_integer(std::string digits) {
    Json value;
    value.type = Json::Type::integer;
    value.text = digits == "-0" ? "0" : std::move(digits);
    return put(std::move(value));
  }

  bool open(Json container) {
    if (open_.size() >= static_cast<std::size_t>(max_json_depth)) return refuse("nested too deeply");
    open_.push_back(std::move(container));
    names_.emplace_back();
    return true;
  }

  bool close() {
    Json value = std::move(open_.back());
    keep_last_of_equal_names(value.members);
    open_.pop_back();
    names_.pop_back();
    return put(std::move(value));
  }

  bool put(Json value) {
    if (open_.empty()) {
      root = std::move(value);
    } else if (open_.back().is(Json::Type::array)) {
      open_.back().add(std::move(value));
    } else {
      // Not set(): that searches, and a hostile file with very many names would take for ever.
      open_.back().members.emplace_back(std::move(names_.back()), std::move(value));
    }
    return true;
  }

  bool refuse(const char* why) {
    reason = why;
    return false;
  }
};

// By bytes of UTF-8, which is Python's order of code points.
std::vector<const std::pair<std::string, Json>*> sorted_members(const Json& value) {
  std::vector<const std::pair<std::string, Json>*> members;
  members.reserve(value.members.size());
  for (const auto& member : value.members) members.push_back(&member);
  std::sort(members.begin(), members.end(), [](auto* one, auto* other) { return one->first < other->first; });
  return members;
}

// Bytes of the character that the text begins with; 0 where it begins with none (RFC 3629, 4).
std::size_t utf8_bytes(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
  const unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  const std::size_t bytes = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
  const unsigned least = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned most = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  if (second < least || second > most) return 0;
  for (std::size_t i = 2; i < bytes; ++i) {
    if (byte(i) >> 6 != 2) return 0;
  }
  return bytes;
}

// A byte that is no UTF-8, as in the name of a file, is a lone surrogate, as Python writes it.
void write_string(std::string_view text, std::string& out) {
  constexpr char digits[] = "0123456789abcdef";
  out += '"';
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (byte >= 0x80) {
      const std::size_t bytes = utf8_bytes(text.substr(i));
      if (bytes) {
        out += text.substr(i, bytes);
        i += bytes - 1;
      } else {
        out += "\\udc";
        out += digits[byte >> 4];
        out += digits[byte & 15];
      }
      continue;
    }
    switch (text[i]) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\f':
        out += "\\f";
        break;
      case '\b':
        out += "\\b";
        break;
      default:
        if (byte < 0x20) {
          out += "\\u00";
          out += digits[byte >> 4];
          out += digits[byte & 15];
        } else {
          out += text[i];
        }
    }
  }
  out += '"';
}

void write_scalar(const Json& value, std::string& out) {
  switch (value.type) {
    case Json::Type::null:
      out += "null";
      return;
    case Json::Type::boolean:
      out += value.boolean ? "true" : "false";
      return;
    case Json::Type::integer:
      out += value.text;
      return;
    case Json::Type::number:
      out += python_float(value.number);
      return;
    default:
      write_string(value.text, out);
  }
}

void write_canonical(const Json& value, std::string& out) {
  if (value.is(Json::Type::array)) {
    out += '[';
    for (std::size_t i = 0; i < value.items.size(); ++i) {
      if (i) out += ',';
      write_canonical(value.items[i], out);
    }
    out += ']';
  } else if (value.is(Json::Type::object)) {
    out += '{';
    bool first = true;
    for (const auto* member : sorted_members(value)) {
      if (!first) out += ',';
      first = false;
      write_string(member->first, out);
      out += ':';
      write_canonical(member->second, out);
    }
    out += '}';
  } else {
    write_scalar(value, out);
  }
}

// `indent` below 0 writes one line.
void write_readable(const Json& value, int indent, int level, std::string& out) {
  const bool array = value.is(Json::Type::array);
  const std::size_t count = array ? value.items.size() : value.members.size();
  if (!array && !value.is(Json::Type::object)) return write_scalar(value, out);
  out += array ? '[' : '{';
  const auto new_line = [&](int depth) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<std::size_t>(indent * depth), ' ');
  };
  for (std::size_t i = 0; i < count; ++i) {
    if (i) out += indent < 0 ? ", " : ",";
    new_line(level + 1);
    if (!array) {
      write_string(value.members[i].first, out);
      out += ": ";
    }
    write_readable(array ? value.items[i] : value.members[i].second, indent, level + 1, out);
  }
  if (count) new_line(level);
  out += array ? ']' : '}';
}

}  // namespace

const Json* Json::find(std::string_view name) const noexcept {
  for (auto member = members.rbegin(); member != members.rend(); ++member) {
    if (member->first == name) return &member->second;
  }
  return nullptr;
}

void Json::set(std::string name, Json value) {
  for (auto& member : members) {
    if (member.first == name) {
      member.second = std::move(value);
      return;
    }
  }
  members.emplace_back(std::move(name), std::move(value));
}

Json parse_json(std::string_view text) {
  // The library skips a byte order mark; Python refuses it.
  if (text.substr(0, 3) == "\xEF\xBB\xBF") throw std::runtime_error("it begins with a byte order mark");
  Builder builder;
  const DecimalPoint point;
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) throw std::runtime_error(builder.reason);
  return std::move(builder.root);
}

std::string canonical_json(const Json& value) {
  std::string text;
  write_canonical(value, text);
  return text;
}

std::string indented_json(const Json& value) {
  std::string text;
  write_readable(value, 1, 0, text);
  return text;
}

std::string json_line(const Json& value) {
  std::string text;
  write_readable(value, -1, 0, text);
  return text;
}

std::string python_float(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "NaN" : value < 0 ? "-Infinity" : "Infinity";
  // "-d.ddde-05": shortest digits, correctly rounded; how they are laid out is Python's rule and not to_chars'.
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view scientific(buffer, static_cast<std::size_t>(end - buffer));
  const auto mark = scientific.find('e');
  const bool negative = scientific.front() == '-';
  std::string digits;
  for (const char character : scientific.substr(0, mark)) {
    if (character >= '0' && character <= '9') digits += character;
  }
  int exponent = 0;
  const auto first = mark + (scientific[mark + 1] == '+' ? 2 : 1);
  std::from_chars(buffer + first, end, exponent);
  std::string text = negative ? "-" : "";
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    text += digits.front();
    if (count > 1) text += "." + digits.substr(1);
    const std::string magnitude = std::to_string(std::abs(exponent));
    text += std::string("e") + (exponent < 0 ? "-" : "+") + (magnitude.size() < 2 ? "0" : "") + magnitude;
  } else if (exponent < 0) {
    text += "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  } else if (count <= exponent + 1) {
    text += digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  } else {
    text += digits.substr(0, static_cast<std::size_t>(exponent + 1)) + "." +
            digits.substr(static_cast<std::size_t>(exponent + 1));
  }
  return text;
}

}  // namespace mlpdeploy
