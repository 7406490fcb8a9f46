#pragma once

#include <vector>

#include "json.h"
#include "mlpdeploy/session.h"

inline mlpdeploy::Json json_of(const std::vector<mlpdeploy::ClassScore>& scores) {
  using mlpdeploy::Json;
  Json list = Json::array();
  for (const auto& score : scores) {
    Json one = Json::object();
    one.set("index", score.index);
    one.set("label", score.label);
    one.set("probability", score.probability);
    list.add(std::move(one));
  }
  return list;
}
