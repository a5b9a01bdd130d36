#include "core/backend.hpp"
#include "cpu/backend.hpp"
#include "reference/backend.hpp"
#ifdef VIDSPARSE_HAS_CUDA
#include "cuda/sm80/backend.hpp"
#include "cuda/sm90/backend.hpp"
#endif

namespace vidsparse::core {

const std::vector<const Backend*>& backend_list() {
  static const std::vector<const Backend*> list = {
#ifdef VIDSPARSE_HAS_CUDA
      &cuda::sm90::backend(), &cuda::sm80::backend(),
#endif
      &cpu::backend(), &reference::backend()};
  return list;
}

}  // namespace vidsparse::core
