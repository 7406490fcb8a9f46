// The manifest's parser: any text as it is, and again with a checksum that fits, so that the fields are read, too.
#include <string_view>

#include "json.h"
#include "manifest.h"
#include "sha256.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  using namespace mlpdeploy;
  const std::string_view text(reinterpret_cast<const char*>(data), bytes);
  try {
    manifest_from(text, "manifest.json");
  } catch (const Error&) {
  }
  try {
    Json body = parse_json(text);
    if (!body.is(Json::Type::object)) return 0;
    const std::string canonical = canonical_json(body);
    if (canonical_json(parse_json(canonical)) != canonical) __builtin_trap();
    for (auto member = body.members.begin(); member != body.members.end(); ++member) {
      if (member->first == "sha256") {
        body.members.erase(member);
        break;
      }
    }
    body.set("format", "mlpdeploy-artifact");
    body.set("version", 1);
    body.set("sha256", sha256_of(canonical_json(body)));
    manifest_from(json_line(body), "manifest.json");
  } catch (const Error&) {
  } catch (const std::runtime_error&) {
  }
  return 0;
}
