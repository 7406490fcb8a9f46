#include <doctest/doctest.h>

#include <limits>
#include <string>

#include "json.h"
#include "manifest.h"
#include "text.h"

using namespace mlpdeploy;

TEST_CASE("floats are written as Python's repr writes them") {
  const std::pair<double, const char*> samples[] = {{1.0, "1.0"},
                                                    {-0.0, "-0.0"},
                                                    {1e-5, "1e-05"},
                                                    {1e-4, "0.0001"},
                                                    {123456789.0, "123456789.0"},
                                                    {1e16, "1e+16"},
                                                    {1e15, "1000000000000000.0"},
                                                    {1.5e300, "1.5e+300"},
                                                    {0.1, "0.1"},
                                                    {5e-324, "5e-324"},
                                                    {1.0 / 3, "0.3333333333333333"},
                                                    {1e22, "1e+22"},
                                                    {2.5, "2.5"},
                                                    {9007199254740993.0, "9007199254740992.0"}};
  for (const auto& [value, text] : samples) CHECK(python_float(value) == text);
}

TEST_CASE("canonical form: sorted, without spaces, characters as they are") {
  CHECK(canonical_json(parse_json(R"({"b": [1, 2.50, null], "a": {"é": "\u00e9\n\u0001\/"}})")) ==
        "{\"a\":{\"é\":\"é\\n\\u0001/\"},\"b\":[1,2.5,null]}");
  CHECK(canonical_json(parse_json("[123456789012345678901234567890, -0, 18446744073709551615]")) ==
        "[123456789012345678901234567890,0,18446744073709551615]");
  CHECK(canonical_json(parse_json(R"({"a": 1, "b": 2, "a": 3})")) == R"({"a":3,"b":2})");
}

TEST_CASE("what is no JSON is refused") {
  for (const char* text : {"", "{", "[1,]", "NaN", "[Infinity]", "1e999", "\"\\ud800\"", "\xEF\xBB\xBF{}", "{} {}",
                           "\"\xFF\"", "01", "{\"a\"}", "'a'"}) {
    CAPTURE(text);
    CHECK_THROWS_AS(parse_json(text), std::runtime_error);
  }
  CHECK_THROWS_AS(parse_json(std::string(100'000, '[')), std::runtime_error);
  CHECK_NOTHROW(parse_json(std::string(150, '[') + std::string(150, ']')));
}

TEST_CASE("a manifest that refers to itself or elsewhere ends in an error") {
  CHECK_THROWS_AS(manifest_from(R"({"format": "mlpdeploy-artifact", "version": 1, "sha256": ""})", "m"), Error);
  Manifest manifest;
  FileEntry entry;
  entry.name = "../secret";
  entry.role = "canonical";
  manifest.files.push_back(entry);
  CHECK_THROWS_AS(checked_file(".", manifest, "../secret"), Error);
}

TEST_CASE("the nearest name") {
  CHECK(closest("canonica", {"cpu", "canonical"}) == "did you mean canonical?");
  CHECK(closest("xyz", {"cpu", "canonical"}) == "one of: canonical, cpu");
  CHECK(repr("it's") == "\"it's\"");
}

TEST_CASE("an error has three parts, and reads as in Python") {
  const Error error(ErrorKind::usage, "it came. ", "that", "do this.");
  CHECK(std::string(error.what()) == "it came; wanted that; do this");
  CHECK(error.exit_code() == 2);
  CHECK(Error(ErrorKind::image, "x").exit_code() == 1);
}
