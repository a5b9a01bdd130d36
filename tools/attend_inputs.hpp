#pragma once

#include <string>

#include "buffers.hpp"
#include "safetensors.hpp"
#include "vidsparse/problem.hpp"

namespace vidsparse::tools {

/// q, k, v and, if the file has one, gate of a safetensors file, checked against each other. The
/// constructor reads the header alone, so that everything is refused before the data is read.
class AttendInputs {
 public:
  explicit AttendInputs(const std::string& path);

  /// Batch, heads, head_dim and dtype of the tensors; `query` and the tile are the caller's.
  void fill(Problem& problem) const;
  /// Refuses --grid and --prefix that do not add up to the file's tokens.
  void check_tokens(std::int64_t tokens) const;

  bool has_gate() const { return gate_ != nullptr; }
  /// Leaves a tensor gate of the file unread.
  void ignore_gate() { gate_ = nullptr; }

  /// Reads the data.
  void load();
  const OwnedTensor& q() const { return tensors_[0]; }
  const OwnedTensor& k() const { return tensors_[1]; }
  const OwnedTensor& v() const { return tensors_[2]; }
  const OwnedTensor& gate() const { return tensors_[3]; }

 private:
  const TensorEntry& require(const std::string& name) const;
  void check_like(const TensorEntry& entry, const std::vector<std::int64_t>& shape,
                  const std::string& as) const;

  SafetensorsReader reader_;
  const TensorEntry* q_;
  const TensorEntry* k_;
  const TensorEntry* v_;
  const TensorEntry* gate_;
  std::array<OwnedTensor, 4> tensors_;
};

}  // namespace vidsparse::tools
