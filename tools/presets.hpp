#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

namespace vidsparse::tools {

/// The shape of self-attention in a known model, batch 1.
struct Preset {
  const char* name;
  const char* model;
  std::int64_t heads;
  std::int64_t head_dim;
  std::array<std::int64_t, 3> grid;  ///< T, H, W in latent tokens
};

std::span<const Preset> presets();

/// Refuses `option` with the list of names.
const Preset& find_preset(const std::string& option, const std::string& name);

/// "wan1.3b-480p, 33k, ...", for help texts.
std::string preset_names();

}  // namespace vidsparse::tools
