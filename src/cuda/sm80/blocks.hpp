#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vidsparse::cuda::sm80 {

/// A block for each fragment of each head, numbered as item.cuh reads them; none of any: x is 0.
inline dim3 item_blocks(std::int64_t fragments, std::int64_t heads, std::int64_t batch) {
  if (heads == 0 || batch == 0) fragments = 0;
  return {static_cast<unsigned>(fragments), static_cast<unsigned>(heads),
          static_cast<unsigned>(batch)};
}

}  // namespace vidsparse::cuda::sm80
