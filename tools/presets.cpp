#include "presets.hpp"

#include "refuse.hpp"

namespace vidsparse::tools {
namespace {

// Grids are what the model's transformer sees: after the VAE and its patch embedding.
constexpr std::array<Preset, 9> kPresets{{
    {"wan1.3b-480p", "Wan2.1 1.3B, 480p, 81 frames", 12, 128, {21, 30, 52}},
    {"wan1.3b-448x832", "Wan2.1 1.3B, 448x832, 77 frames", 12, 128, {20, 28, 52}},
    {"33k", "33 280 tokens, no padding", 12, 128, {20, 32, 52}},
    {"wan14b-720p", "Wan2.1 14B, 720p, 81 frames", 40, 128, {21, 45, 80}},
    {"hunyuan-720p", "HunyuanVideo, 720p, 129 frames", 24, 128, {33, 45, 80}},
    {"123k", "122 880 tokens, no padding", 24, 128, {32, 48, 80}},
    {"wan5b-704p", "Wan2.2 5B, 704x1280, 121 frames", 24, 128, {31, 22, 40}},
    {"ltx2-1088p", "LTX-2, 1088x1920, 121 frames", 32, 128, {16, 34, 60}},
    {"h3-5s", "FastH3, 768x1344, 124 frames; text comes as --prefix", 56, 128, {37, 24, 42}},
}};

}  // namespace

std::span<const Preset> presets() { return kPresets; }

const Preset& find_preset(const std::string& option, const std::string& name) {
  for (const Preset& preset : kPresets) {
    if (name == preset.name) return preset;
  }
  refuse(option, "one of " + preset_names(), "\"" + printable(name) + "\"");
}

std::string preset_names() {
  std::string names;
  for (const Preset& preset : kPresets)
    names += (names.empty() ? "" : ", ") + std::string(preset.name);
  return names;
}

}  // namespace vidsparse::tools
