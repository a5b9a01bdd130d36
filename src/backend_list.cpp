#include "core/backend.hpp"
#include "cpu/backend.hpp"
#include "reference/backend.hpp"

namespace vidsparse::core {

const std::vector<const Backend*>& backend_list() {
  static const std::vector<const Backend*> list = {&cpu::backend(), &reference::backend()};
  return list;
}

}  // namespace vidsparse::core
