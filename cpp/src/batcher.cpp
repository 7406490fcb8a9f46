#include "batcher.h"

#include <algorithm>
#include <iterator>

namespace mlpdeploy {

void Batcher::add(std::shared_ptr<Pending> pending) {
  const auto [group, made] = groups_.try_emplace(pending->shape, 1, pending);
  if (!made) group->second.push_back(std::move(pending));
  ++waiting_;
  ++open_;
  peaks_[epoch_] = std::max(peaks_[epoch_], open_);
}

bool Batcher::cancel(const std::shared_ptr<Pending>& pending) {
  const auto group = groups_.find(pending->shape);
  if (group == groups_.end()) return false;
  const auto place = std::find(group->second.begin(), group->second.end(), pending);
  if (place == group->second.end()) return false;
  group->second.erase(place);
  if (group->second.empty()) groups_.erase(group);
  --waiting_;
  --open_;
  return true;
}

Batch Batcher::take(Clock::time_point now, Clock::time_point since) {
  const bool together = closed_ || open_ >= *std::max_element(std::begin(peaks_), std::end(peaks_));
  auto chosen = groups_.end();
  for (auto at = groups_.begin(); at != groups_.end(); ++at) {
    const Group& group = at->second;
    if (!together && group.size() < max_batch_ && now < due(group, since)) continue;
    if (chosen == groups_.end() || group.front()->arrived < chosen->second.front()->arrived) chosen = at;
  }
  if (chosen == groups_.end()) return {};
  Group& group = chosen->second;
  const auto stop = group.begin() + static_cast<std::ptrdiff_t>(std::min(group.size(), max_batch_));
  Batch batch(std::make_move_iterator(group.begin()), std::make_move_iterator(stop));
  group.erase(group.begin(), stop);
  if (group.empty()) groups_.erase(chosen);
  waiting_ -= batch.size();
  epoch_ = (epoch_ + 1) % epochs;
  peaks_[epoch_] = open_;
  return batch;
}

Clock::time_point Batcher::wake_at(Clock::time_point since) const {
  auto first = Clock::time_point::max();
  for (const auto& [shape, group] : groups_) first = std::min(first, due(group, since));
  return first;
}

// When a group has been held back long enough: not when it came, but since a worker could take it.
Clock::time_point Batcher::due(const Group& group, Clock::time_point since) const {
  return std::max(group.front()->arrived, since) + max_delay_;
}

}  // namespace mlpdeploy
