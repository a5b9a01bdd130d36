#include "buffers.hpp"

#include <new>

namespace vidsparse::tools {
namespace {

constexpr std::align_val_t kAlignment{64};

std::size_t bytes_of(const TensorView& tensor) {
  return static_cast<std::size_t>(tensor.elements()) * size_of(tensor.dtype);
}

DType accumulator(const Plan& plan) { return accumulator_of(plan.problem().dtype); }

}  // namespace

// At least one byte, so that an empty tensor has an address.
Buffer::Buffer(std::size_t bytes)
    : data_(::operator new(bytes == 0 ? 1 : bytes, kAlignment)), bytes_(bytes) {}

Buffer::Buffer(const TensorView& tensor) : Buffer(bytes_of(tensor)) {}

void Buffer::Free::operator()(void* data) const { ::operator delete(data, kAlignment); }

OwnedTensor::OwnedTensor(const TensorView& shape)
    : memory(shape), ref(TensorRef::dense(memory.data(), shape.dtype, shape.rank, shape.shape)) {}

TensorRef query_tensor(const Plan& plan, void* data) {
  const Problem& problem = plan.problem();
  return TensorRef::dense(
      data, problem.dtype, 4,
      {problem.batch, plan.query_layout().tokens(), problem.heads_q, problem.head_dim});
}

TensorRef key_tensor(const Plan& plan, void* data) {
  const Problem& problem = plan.problem();
  return TensorRef::dense(
      data, problem.dtype, 4,
      {problem.batch, plan.key_layout().tokens(), problem.key_heads(), problem.head_dim});
}

TensorRef token_rows(const Plan& plan, void* data) {
  const Problem& problem = plan.problem();
  return TensorRef::dense(data, accumulator(plan), 3,
                          {problem.batch, problem.heads_q, plan.query_layout().tokens()});
}

TensorRef query_pooled(const Plan& plan, void* data) {
  const Problem& problem = plan.problem();
  return TensorRef::dense(
      data, accumulator(plan), 4,
      {problem.batch, problem.heads_q, plan.query_layout().tiles(), problem.head_dim});
}

TensorRef key_pooled(const Plan& plan, void* data) {
  const Problem& problem = plan.problem();
  return TensorRef::dense(
      data, accumulator(plan), 4,
      {problem.batch, problem.key_heads(), plan.key_layout().tiles(), problem.head_dim});
}

TensorRef query_tile_rows(const Plan& plan, void* data) {
  const Problem& problem = plan.problem();
  return TensorRef::dense(data, accumulator(plan), 3,
                          {problem.batch, problem.heads_q, plan.query_layout().tiles()});
}

}  // namespace vidsparse::tools
