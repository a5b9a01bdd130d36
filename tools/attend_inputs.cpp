#include "attend_inputs.hpp"

#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

std::string label(const SafetensorsReader& reader, const std::string& name) {
  return reader.file() + ": tensor \"" + name + "\"";
}

}  // namespace

AttendInputs::AttendInputs(const std::string& path)
    : reader_(path),
      q_(&require("q")),
      k_(&require("k")),
      v_(&require("v")),
      gate_(reader_.header().find("gate")) {
  // Keys may have fewer heads; their tokens are the queries' (one sequence).
  check_like(*k_, {q_->shape[0], q_->shape[1], k_->shape[2], q_->shape[3]}, "as q has them");
  check_like(*v_, k_->shape, "as k is");
  if (gate_ != nullptr) check_like(*gate_, q_->shape, "as q is");
}

const TensorEntry& AttendInputs::require(const std::string& name) const {
  const TensorEntry* entry = reader_.header().find(name);
  if (entry == nullptr) refuse(reader_.file(), "a tensor \"" + name + "\"", "none");
  const std::string where = label(reader_, name);
  if (entry->shape.size() != 4) {
    refuse(where, "[batch, tokens, heads, head_dim]", entry->to_string());
  }
  if (!entry->dtype || !is_floating(*entry->dtype)) {
    refuse(where, "BF16, F16, F32 or F64", entry->dtype_name);
  }
  return *entry;
}

void AttendInputs::check_like(const TensorEntry& entry, const std::vector<std::int64_t>& shape,
                              const std::string& as) const {
  if (entry.dtype_name == q_->dtype_name && entry.shape == shape) return;
  TensorEntry wanted = *q_;
  wanted.shape = shape;
  refuse(label(reader_, entry.name), wanted.to_string() + " " + as, entry.to_string());
}

void AttendInputs::fill(Problem& problem) const {
  problem.batch = q_->shape[0];
  problem.heads_q = q_->shape[2];
  problem.heads_kv = k_->shape[2];
  problem.head_dim = q_->shape[3];
  problem.dtype = *q_->dtype;
}

void AttendInputs::check_tokens(std::int64_t tokens) const {
  if (q_->shape[1] != tokens) {
    refuse(
        "--grid",
        "with --prefix " + std::to_string(q_->shape[1]) + " tokens as " + reader_.file() + " has",
        std::to_string(tokens));
  }
}

void AttendInputs::load() {
  const std::array<const TensorEntry*, 4> entries{q_, k_, v_, gate_};
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const TensorEntry* entry = entries[i];
    if (entry == nullptr) continue;
    const auto& shape = entry->shape;
    tensors_[i] = OwnedTensor(
        TensorView::dense(nullptr, *entry->dtype, 4, {shape[0], shape[1], shape[2], shape[3]}));
    reader_.read(*entry, tensors_[i].memory.bytes());
  }
}

}  // namespace vidsparse::tools
