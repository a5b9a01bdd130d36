#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "errors.hpp"

namespace vidsparse::torch_ops {

/// Objects by handle, so that a stale one is an error and not a crash. `noun`: what error texts
/// call them. Thread-safe.
template <class T>
class Registry {
 public:
  explicit Registry(const char* noun) : noun_(noun) {}

  std::int64_t add(T object) {
    auto shared = std::make_shared<const T>(std::move(object));
    const std::unique_lock lock(mutex_);
    objects_.emplace(++last_, std::move(shared));
    return last_;
  }
  void remove(std::int64_t handle) {
    const std::unique_lock lock(mutex_);
    objects_.erase(handle);
  }
  std::shared_ptr<const T> find(std::int64_t handle) const {
    const std::shared_lock lock(mutex_);
    const auto found = objects_.find(handle);
    if (found == objects_.end()) {
      refuse(noun_, "a " + std::string(noun_) + "'s handle", std::to_string(handle));
    }
    return found->second;
  }

 private:
  const char* noun_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<std::int64_t, std::shared_ptr<const T>> objects_;
  std::int64_t last_ = 0;
};

}  // namespace vidsparse::torch_ops
