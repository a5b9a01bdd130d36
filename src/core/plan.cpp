#include "vidsparse/plan.hpp"

#include <cstdlib>
#include <utility>
#include <vector>

#include "core/backend.hpp"
#include "core/check.hpp"
#include "core/validate.hpp"

namespace vidsparse {

struct Plan::State {
  core::Setting setting;
  std::string backend;
  std::string detail;
  std::unique_ptr<const KernelSet> kernels;
};

namespace {

Verdict verdict_on(const core::Backend& backend, const Device& device, const Problem* problem) {
  Verdict verdict = backend.can_run(device);
  if (verdict.ok && problem != nullptr) verdict = backend.can_run(*problem, device);
  return verdict;
}

// The name a caller or the environment forces, and which of the two; empty name: free choice.
std::pair<std::string, const char*> forced_backend(const PlanOptions& options) {
  if (!options.backend.empty()) return {options.backend, "backend"};
  const char* variable = std::getenv("VIDSPARSE_BACKEND");
  return {variable == nullptr ? "" : variable, "VIDSPARSE_BACKEND"};
}

std::string names_of_all() {
  std::string names;
  for (const core::Backend* backend : core::backend_list()) {
    names += (names.empty() ? "" : ", ") + std::string(backend->name());
  }
  return names;
}

const core::Backend& choose(const Problem& problem, const PlanOptions& options,
                            std::string& detail) {
  const auto [forced, origin] = forced_backend(options);
  std::string refusals;
  bool known = false;
  for (const core::Backend* backend : core::backend_list()) {
    if (forced.empty() ? backend->on_request() : forced != backend->name()) continue;
    known = true;
    Verdict verdict = verdict_on(*backend, options.device, &problem);
    if (verdict.ok) {
      detail = std::move(verdict.reason);
      return *backend;
    }
    refusals +=
        (refusals.empty() ? "" : "; ") + std::string(backend->name()) + ": " + verdict.reason;
  }
  if (!forced.empty() && !known) core::refuse(origin, "one of " + names_of_all(), forced);
  throw Error(ErrorCode::unsupported, "backend",
              "expected one that can run this problem on " + options.device.to_string() +
                  ", got refusals from all tried: " + refusals);
}

}  // namespace

std::vector<BackendInfo> backends(const Device& device, const Problem* problem) {
  if (problem != nullptr) core::check_problem(*problem);
  std::vector<BackendInfo> list;
  for (const core::Backend* backend : core::backend_list()) {
    list.push_back({backend->name(), backend->summary(), backend->on_request(),
                    verdict_on(*backend, device, problem), backend->kind()});
  }
  return list;
}

Plan::Plan(const Problem& problem, const PlanOptions& options) {
  core::check_problem(problem);
  std::string detail;
  const core::Backend& backend = choose(problem, options, detail);
  auto state =
      std::make_unique<State>(State{core::Setting{problem, TileLayout(problem.query, problem.tile),
                                                  TileLayout(problem.key_sequence(), problem.tile),
                                                  options.device, options.parallel},
                                    backend.name(), std::move(detail), nullptr});
  // The setting has its final address now; kernels keep a reference to it.
  state->kernels = backend.prepare(state->setting);
  state_ = std::move(state);
}

Plan::~Plan() = default;
Plan::Plan(Plan&&) noexcept = default;
Plan& Plan::operator=(Plan&&) noexcept = default;

const Problem& Plan::problem() const { return state_->setting.problem; }
const TileLayout& Plan::query_layout() const { return state_->setting.query; }
const TileLayout& Plan::key_layout() const { return state_->setting.key; }
const std::string& Plan::backend() const { return state_->backend; }
const std::string& Plan::backend_detail() const { return state_->detail; }
const Device& Plan::device() const { return state_->setting.device; }

MaskShape Plan::mask_shape() const {
  return {problem().batch, problem().heads_q, query_layout().tiles(), key_layout().tiles()};
}

std::int64_t Plan::resolve_top_k(const Selection& selection) const {
  return core::resolve_top_k(selection, key_layout());
}

std::size_t Plan::workspace_bytes(const PoolArgs& args) const {
  return state_->kernels->workspace_bytes(args);
}
std::size_t Plan::workspace_bytes(const SelectArgs& args) const {
  return state_->kernels->workspace_bytes(args);
}
std::size_t Plan::workspace_bytes(const AttendArgs& args) const {
  return state_->kernels->workspace_bytes(args);
}
std::size_t Plan::workspace_bytes(const ForwardArgs& args) const {
  return state_->kernels->workspace_bytes(args);
}
std::size_t Plan::workspace_bytes(const BackwardArgs& args) const {
  return state_->kernels->workspace_bytes(args);
}

void Plan::pool(const PoolArgs& args, Workspace workspace, void* stream) const {
  core::check(state_->setting, args);
  core::check_workspace(workspace, workspace_bytes(args));
  state_->kernels->pool(args, workspace, stream);
}

void Plan::select(const SelectArgs& args, Workspace workspace, void* stream) const {
  core::check(state_->setting, args);
  core::check_workspace(workspace, workspace_bytes(args));
  state_->kernels->select(args, workspace, stream);
}

void Plan::attend(const AttendArgs& args, Workspace workspace, void* stream) const {
  core::check(state_->setting, args);
  core::check_workspace(workspace, workspace_bytes(args));
  state_->kernels->attend(args, workspace, stream);
}

void Plan::forward(const ForwardArgs& args, Workspace workspace, void* stream) const {
  core::check(state_->setting, args);
  core::check_workspace(workspace, workspace_bytes(args));
  state_->kernels->forward(args, workspace, stream);
}

void Plan::backward(const BackwardArgs& args, Workspace workspace, void* stream) const {
  core::check(state_->setting, args);
  core::check_workspace(workspace, workspace_bytes(args));
  state_->kernels->backward(args, workspace, stream);
}

}  // namespace vidsparse
