#include "reference/backend.hpp"

#include "reference/op.hpp"

namespace vidsparse::reference {
namespace {

class ReferenceKernels final : public KernelSet {
 public:
  explicit ReferenceKernels(const core::Setting& setting) : op_(setting) {}

  std::size_t workspace_bytes(const PoolArgs& args) const override {
    return op_.workspace_bytes(args);
  }
  std::size_t workspace_bytes(const SelectArgs& args) const override {
    return op_.workspace_bytes(args);
  }
  std::size_t workspace_bytes(const AttendArgs& args) const override {
    return op_.workspace_bytes(args);
  }
  std::size_t workspace_bytes(const ForwardArgs& args) const override {
    return op_.workspace_bytes(args);
  }
  std::size_t workspace_bytes(const BackwardArgs& args) const override {
    return op_.workspace_bytes(args);
  }

  void pool(const PoolArgs& args, Workspace workspace, void*) const override {
    op_.pool(args, workspace);
  }
  void select(const SelectArgs& args, Workspace workspace, void*) const override {
    op_.select(args, workspace);
  }
  void attend(const AttendArgs& args, Workspace workspace, void*) const override {
    op_.attend(args, workspace);
  }
  void forward(const ForwardArgs& args, Workspace workspace, void*) const override {
    op_.forward(args, workspace);
  }
  void backward(const BackwardArgs& args, Workspace workspace, void*) const override {
    op_.backward(args, workspace);
  }

 private:
  Op<ExactArithmetic<double>> op_;
};

class ReferenceBackend final : public core::Backend {
 public:
  const char* name() const override { return "reference"; }
  const char* summary() const override { return "plain fp64 loops on the CPU: the arbiter"; }
  bool on_request() const override { return true; }

  Verdict can_run(const Device& device) const override {
    if (device.kind == Device::Kind::cpu) return Verdict::yes("fp64");
    return Verdict::no("runs on the CPU only, got device " + device.to_string());
  }
  Verdict can_run(const Problem&, const Device&) const override { return Verdict::yes("fp64"); }
  std::unique_ptr<const KernelSet> prepare(const core::Setting& setting) const override {
    return std::make_unique<ReferenceKernels>(setting);
  }
};

}  // namespace

const core::Backend& backend() {
  static const ReferenceBackend instance;
  return instance;
}

}  // namespace vidsparse::reference
