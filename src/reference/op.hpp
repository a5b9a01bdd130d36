#pragma once

#include <cstddef>

#include "core/backend.hpp"
#include "reference/arithmetic.hpp"

namespace vidsparse::reference {

/// The whole op in one arithmetic: the stages of docs/numerics.md, one file each. Arguments are
/// those of Plan, taken as valid; tensors may be of any floating dtype, whatever the problem's, so
/// that results can be had unrounded.
template <class Arithmetic>
class Op {
 public:
  using Scalar = typename Arithmetic::Scalar;

  /// `setting` is kept by reference.
  explicit Op(const core::Setting& setting, Arithmetic arithmetic = {})
      : setting_(setting), round_(arithmetic) {}

  std::size_t workspace_bytes(const PoolArgs& args) const;
  std::size_t workspace_bytes(const SelectArgs& args) const;
  std::size_t workspace_bytes(const AttendArgs& args) const;
  std::size_t workspace_bytes(const ForwardArgs& args) const;
  std::size_t workspace_bytes(const BackwardArgs& args) const;

  void pool(const PoolArgs& args, Workspace workspace) const;
  void select(const SelectArgs& args, Workspace workspace) const;
  void attend(const AttendArgs& args, Workspace workspace) const;
  void forward(const ForwardArgs& args, Workspace workspace) const;
  void backward(const BackwardArgs& args, Workspace workspace) const;

 private:
  const core::Setting& setting_;
  Arithmetic round_;
};

/// The caller's scale or D^-0.5.
double scale_of(const Problem& problem, const std::optional<double>& given);

}  // namespace vidsparse::reference
