#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "cpu/isa.hpp"
#include "vidsparse/error.hpp"

namespace {

using namespace vidsparse::cpu;

TEST(CpuIsa, VariableForcesAndErrorsNameIt) {
  const char* before = std::getenv("VIDSPARSE_CPU_ISA");
  const std::string saved = before == nullptr ? "" : before;
  const auto force = [](const char* name) { setenv("VIDSPARSE_CPU_ISA", name, 1); };
  EXPECT_EQ(isas().front().name, std::string("amx"));
  EXPECT_EQ(isas().back().name, std::string("scalar"));
  for (const Isa& isa : isas()) {
    force(isa.name);
    EXPECT_EQ(isa.kernels != nullptr, isa.verdict.ok);
    if (isa.verdict.ok) {
      EXPECT_EQ(choose_kernels().name, std::string(isa.name));
      continue;
    }
    EXPECT_FALSE(isa.verdict.reason.empty());
    try {
      choose_kernels();
      ADD_FAILURE() << isa.name << " was accepted";
    } catch (const vidsparse::Error& error) {
      EXPECT_NE(std::string(error.what()).find(isa.verdict.reason), std::string::npos);
    }
  }
  force("sse9");
  try {
    choose_kernels();
    ADD_FAILURE() << "sse9 was accepted";
  } catch (const vidsparse::Error& error) {
    EXPECT_EQ(error.code(), vidsparse::ErrorCode::unsupported);
    EXPECT_EQ(error.argument(), "VIDSPARSE_CPU_ISA");
    EXPECT_EQ(
        std::string(error.what()), "VIDSPARSE_CPU_ISA: expected one of " + [] {
          std::string names;
          for (const Isa& isa : isas())
            names += (names.empty() ? "" : ", ") + std::string(isa.name);
          return names;
        }() + ", got sse9");
  }
  if (saved.empty()) {
    unsetenv("VIDSPARSE_CPU_ISA");
  } else {
    force(saved.c_str());
  }
}

}  // namespace
