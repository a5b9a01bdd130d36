#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "commands.hpp"
#include "machine.hpp"
#include "pool.hpp"
#include "text.hpp"
#include "vidsparse/backend.hpp"
#include "vidsparse/version.hpp"

namespace vidsparse::tools {
namespace {

using Json = nlohmann::ordered_json;

/// What can override the library's own choices.
constexpr std::array<const char*, 2> kVariables{"VIDSPARSE_BACKEND", "VIDSPARSE_CPU_ISA"};

/// The oldest driver that runs the CUDA kernels, null where none were built.
Json driver_floor() {
#ifdef VIDSPARSE_CUDA_MAJOR
  return VIDSPARSE_CUDA_MAJOR >= 13 ? "580" : "525";
#else
  return nullptr;
#endif
}

Json to_json(const std::vector<BackendInfo>& list) {
  Json rows = Json::array();
  for (const BackendInfo& info : list) {
    rows.push_back({{"name", info.name},
                    {"summary", info.summary},
                    {"on_request", info.on_request},
                    {"can_run", info.verdict.ok},
                    {"reason", info.verdict.reason}});
  }
  return rows;
}

/// Every backend on the first device of its kind.
std::vector<BackendInfo> all_backends() {
  std::vector<BackendInfo> list = backends(Device{});
  const std::vector<BackendInfo> on_gpu = backends(Device{Device::Kind::cuda, 0});
  for (std::size_t i = 0; i < list.size(); ++i) {
    if (list[i].kind == Device::Kind::cuda) list[i] = on_gpu[i];
  }
  return list;
}

Json describe() {
  Json variables = Json::object();
  for (const char* name : kVariables) {
    const char* value = std::getenv(name);
    variables[name] = value == nullptr ? Json(nullptr) : Json(value);
  }
  return {{"version", version()},
          {"compiler", compiler_text()},
          {"cpu", cpu_name()},
          {"threads", available_threads()},
          {"cuda_driver", driver_floor()},
          {"backends", to_json(all_backends())},
          {"cpu_isas", to_json(cpu_isas())},
          {"environment", variables}};
}

void print_rows(const char* title, const Json& rows) {
  std::printf("\n%s, in order of preference\n", title);
  for (const Json& row : rows) {
    const auto reason = row["reason"].get<std::string>();
    std::string verdict = row["can_run"].get<bool>() ? "yes" : "no";
    if (!reason.empty()) verdict += ": " + reason;
    if (row["on_request"].get<bool>()) verdict += " (only when named)";
    std::printf("  %-12s %-44s %s\n", row["name"].get<std::string>().c_str(),
                row["summary"].get<std::string>().c_str(), verdict.c_str());
  }
}

void print(const Json& info) {
  std::printf("vidsparse %s, compiled by %s\n%s, %d threads\n",
              info["version"].get<std::string>().c_str(),
              info["compiler"].get<std::string>().c_str(), info["cpu"].get<std::string>().c_str(),
              info["threads"].get<int>());
  if (!info["cuda_driver"].is_null()) {
    std::printf("CUDA kernels need driver %s or newer\n",
                info["cuda_driver"].get<std::string>().c_str());
  }
  print_rows("backends", info["backends"]);
  print_rows("instruction sets of the cpu backend", info["cpu_isas"]);
  std::printf("\nenvironment\n");
  for (const auto& [name, value] : info["environment"].items()) {
    std::printf("  %-18s %s\n", name.c_str(),
                value.is_null() ? "not set" : ("forces " + value.get<std::string>()).c_str());
  }
}

}  // namespace

void register_info(CLI::App& app) {
  CLI::App* command = app.add_subcommand("info", "What was built, and what can run here");
  const auto json = std::make_shared<bool>(false);
  command->add_flag("--json", *json, "Print JSON");
  command->callback([json] {
    const Json info = describe();
    if (*json) {
      std::printf("%s\n", json_text(info).c_str());
    } else {
      print(info);
    }
  });
}

}  // namespace vidsparse::tools
