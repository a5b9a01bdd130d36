#include "boundary.hpp"
#include "convert.hpp"
#include "vidsparse/backend.hpp"

using vidsparse::c::guarded;
using vidsparse::c::refuse;

namespace {

void visit_all(const std::vector<vidsparse::BackendInfo>& list, vidsparse_backend_visitor visit,
               void* context) {
  if (visit == nullptr) refuse("visit", "a function", "NULL");
  for (const vidsparse::BackendInfo& row : list) {
    vidsparse_backend_info info{};
    info.struct_size = sizeof info;
    info.name = row.name.c_str();
    info.summary = row.summary.c_str();
    info.reason = row.verdict.reason.c_str();
    info.can_run = row.verdict.ok ? 1 : 0;
    info.on_request = row.on_request ? 1 : 0;
    visit(context, &info);
  }
}

}  // namespace

int vidsparse_list_backends(const vidsparse_device* device, const vidsparse_problem* problem,
                            vidsparse_backend_visitor visit, void* context) {
  return guarded([&] {
    const vidsparse::Device where =
        device == nullptr ? vidsparse::Device{} : vidsparse::c::device_of(*device, "device");
    if (problem == nullptr) {
      visit_all(vidsparse::backends(where), visit, context);
    } else {
      const vidsparse::Problem given = vidsparse::c::problem_of(problem);
      visit_all(vidsparse::backends(where, &given), visit, context);
    }
  });
}

int vidsparse_list_cpu_isas(vidsparse_backend_visitor visit, void* context) {
  return guarded([&] { visit_all(vidsparse::cpu_isas(), visit, context); });
}
