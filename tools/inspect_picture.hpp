#pragma once

#include "inspection.hpp"

namespace vidsparse::tools {

/// One row per query tile. With several tile planes in time a panel each, showing what was chosen;
/// with one plane two panels: all scores, and what was chosen.
Image selection_picture(const Inspection& inspection);

/// Clips side by side at frame `index`, with names above and, below, an enlarged detail of each
/// from the place with most contrast.
struct NamedClip {
  std::string name;
  const Clip* clip = nullptr;
};
Image comparison_picture(const std::vector<NamedClip>& clips, int index);

}  // namespace vidsparse::tools
