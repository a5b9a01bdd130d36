// The command as a whole, and its subcommands without tensors: info, plan, bench.
#include <gtest/gtest.h>

#include <csignal>
#include <nlohmann/json.hpp>
#include <string>

#include "tools_command.hpp"

namespace vidsparse::tools {
namespace {

using Json = nlohmann::json;

void expect_refused(const std::string& arguments, const std::string& argument) {
  SCOPED_TRACE(arguments);
  const CommandResult result = run_command(arguments);
  EXPECT_EQ(result.exit_code, 2) << result.output;
  EXPECT_EQ(result.error_lines(), 1) << result.errors;
  EXPECT_NE(result.errors.find(argument), std::string::npos) << result.errors;
}

Json run_json(const std::string& arguments) {
  const CommandResult result = run_command(arguments);
  EXPECT_EQ(result.exit_code, 0) << arguments << result.errors;
  EXPECT_EQ(result.errors, "");
  return Json::parse(result.output, nullptr, false);
}

TEST(Command, HelpAndVersion) {
  EXPECT_EQ(run_command("--help").exit_code, 0);
  EXPECT_EQ(run_command("--version").exit_code, 0);
  for (const char* name : {"info", "plan", "attend", "bench", "denoise", "inspect"}) {
    const CommandResult help = run_command(std::string(name) + " --help");
    EXPECT_EQ(help.exit_code, 0) << name;
    EXPECT_NE(help.output.find("--"), std::string::npos) << name;
  }
}

TEST(Command, RefusesUnknownWords) {
  expect_refused("", "subcommand");
  expect_refused("nonsense", "nonsense");
  expect_refused("--nonsense", "--nonsense");
  expect_refused("info plan extra", "plan");
  expect_refused("denoise missing.mp4 -o out.mp4 --sigma nan", "--sigma");
}

TEST(Command, RefusesAFolderThatCannotBeBeforeAnyWork) {
  const TemporaryFolder folder;
  write_text(folder.file("plain"), "old");
  // The missing clip would be noticed later.
  const std::string pictures = folder.file("plain") + "/pictures";
  expect_refused("denoise missing.mp4 -o " + folder.file("out.mp4") + " --pictures " + pictures,
                 "--pictures");
  expect_refused("inspect missing.mp4 -o " + pictures, "--out");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"plain"});
}

TEST(InfoCommand, ListsBackendsAndInstructionSets) {
  const Json info = run_json("info --json");
  ASSERT_TRUE(info.is_object());
  bool cpu = false;
  bool reference = false;
  for (const Json& row : info["backends"]) {
    cpu = cpu || (row["name"] == "cpu" && row["can_run"].get<bool>());
    reference = reference || row["name"] == "reference";
    EXPECT_TRUE(row["can_run"].get<bool>() || row["reason"] != "") << row["name"];
  }
  EXPECT_TRUE(cpu);
  EXPECT_TRUE(reference);
  ASSERT_GE(info["cpu_isas"].size(), 2U);
  EXPECT_EQ(info["cpu_isas"].back()["name"], "scalar");
  for (const Json& isa : info["cpu_isas"]) {
    EXPECT_TRUE(isa["can_run"].get<bool>() || isa["reason"] != "") << isa["name"];
  }
  const CommandResult forced = run_command("info", "export VIDSPARSE_CPU_ISA=scalar; ");
  EXPECT_EQ(forced.exit_code, 0);
  EXPECT_NE(forced.output.find("forces scalar"), std::string::npos) << forced.output;
}

TEST(PlanCommand, KnowsTheSpecifiedNumbers) {
  const Json plan = run_json("plan --preset wan14b-720p --sparsity 0.9 --json");
  EXPECT_EQ(plan["tokens"], 75600);
  EXPECT_EQ(plan["tile"]["tiles"], 1440);
  EXPECT_NEAR(plan["tile"]["padding_waste"].get<double>(), 0.219, 1e-3);
  EXPECT_EQ(plan["top_k"], 144);
  EXPECT_EQ(plan["heads"], 40);
  EXPECT_DOUBLE_EQ(plan["flops"]["dense"].get<double>(), 4.0 * 128 * 40 * 75600.0 * 75600.0);
  EXPECT_DOUBLE_EQ(plan["flops"]["attend_full_tiles"].get<double>(),
                   4.0 * 128 * 40 * 64 * 64 * 1440.0 * 144);
  EXPECT_FALSE(plan["better_tiles"].empty());
  EXPECT_GT(plan["extra_memory_bytes"]["forward"].get<double>(), 0);

  EXPECT_EQ(run_json("plan --preset wan1.3b-480p --sparsity 0.8 --json")["top_k"], 125);
  EXPECT_EQ(run_json("plan --preset wan1.3b-480p --json")["top_k"], 63);
  const Json prefixed =
      run_json("plan --grid 4x8x20 --heads 3 --head-dim 64 --prefix 77,12 --top-k 2 --json");
  EXPECT_EQ(prefixed["prefix_tiles"], 3);
  EXPECT_EQ(prefixed["tokens"], 4 * 8 * 20 + 89);
  const CommandResult text = run_command("plan --preset wan14b-720p");
  EXPECT_NE(text.output.find("trained checkpoint"), std::string::npos) << text.output;
}

TEST(PlanCommand, RefusesBadProblems) {
  expect_refused("plan", "--grid");
  expect_refused("plan --preset nonsense", "--preset");
  expect_refused("plan --preset 33k --grid 4x4x4", "--preset");
  expect_refused("plan --grid 9223372036854775807x2x2", "--grid");
  expect_refused("plan --grid 2097152x2097152x2097152", "--grid");
  expect_refused("plan --grid 8x8x8 --tile 4x4x5", "--tile");
  expect_refused("plan --grid 8x8x8 --sparsity 1", "--sparsity");
  expect_refused("plan --grid 8x8x8 --top-k 9", "--top-k");
  expect_refused("plan --grid 8x8x8 --heads 0", "--heads");
  expect_refused("plan --grid 8x8x8 --head-dim -1", "--head-dim");
  expect_refused("plan --grid 8x8x8 --dtype int8", "--dtype");
  expect_refused("plan --grid 8x8x8 --batch 9223372036854775807", "--batch");
}

TEST(BenchCommand, TimesEveryStageAndWritesARecord) {
  const TemporaryFolder folder;
  const std::string file = folder.file("bench.json");
  const std::string problem = "bench --grid 4x8x8 --heads 1 --head-dim 64 --seconds 0 ";
  const CommandResult result = run_command(problem + "--gate --json " + file);
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  const Json record = Json::parse(read_text(file), nullptr, false);
  ASSERT_TRUE(record.is_object());
  std::string stages;
  for (const Json& stage : record["stages"]) {
    stages += stage["stage"].get<std::string>() + ";";
    EXPECT_GT(stage["median_ms"].get<double>(), 0);
  }
  EXPECT_EQ(stages, "pool;select;attend;forward;backward;dense forward;dense backward;");
  EXPECT_GT(record["ratio_to_dense"]["forward"].get<double>(), 0);
  EXPECT_EQ(record["problem"]["tokens"], 256);
  EXPECT_EQ(run_command(problem + "--no-dense --no-backward").exit_code, 0);
}

#ifndef _WIN32
TEST(BenchCommand, AnInterruptLeavesNothingBehind) {
  const TemporaryFolder folder;
  const TemporaryFolder other;
  const std::string file = folder.file("bench.json");
  const std::string process = other.file("process");
  write_text(file, "old");
  // The command ignores what its parent does, as under nohup.
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) std::signal(signal, SIG_DFL);
  for (const std::string signal : {"INT", "TERM", "HUP"}) {
    // Sent once the temporary stands beside the old record. The command itself stays in the
    // foreground: a shell lets its background ones ignore an interrupt.
    const std::string setup = "(for i in $(seq 1000); do [ $(ls -A " + folder.file("") +
                              " | wc -l) = 2 ] && break; sleep 0.02; done; kill -s " + signal +
                              " $(cat " + process + ")) & exec sh -c 'echo $$ > " + process +
                              "; exec \"$0\" \"$@\"' ";
    const CommandResult result =
        run_command("bench --grid 8x16x32 --heads 2 --seconds 60 --json " + file, setup);
    EXPECT_TRUE(result.exit_code == -1 || result.exit_code > 128) << result.exit_code;
    EXPECT_EQ(folder.names().size(), 1U) << signal;
    EXPECT_EQ(read_text(file), "old");
  }
}
#endif

TEST(BenchCommand, LeavesAnOldRecordAloneWhenRefusing) {
  const TemporaryFolder folder;
  const std::string file = folder.file("bench.json");
  write_text(file, "old");
  expect_refused("bench --grid 4x8x8 --top-k 99 --json " + file, "--top-k");
  expect_refused("bench --grid 4x8x8 --seconds nan --json " + file, "--seconds");
  expect_refused("bench --grid 4x8x8 --seconds -1 --json " + file, "--seconds");
  expect_refused("bench --grid 4x8x8 --json " + folder.file("missing/bench.json"), "--json");
  EXPECT_EQ(read_text(file), "old");
  EXPECT_EQ(folder.names().size(), 1U);
}

}  // namespace
}  // namespace vidsparse::tools
