#pragma once

#include <string>
#include <vector>

#include "inspection.hpp"

namespace vidsparse::tools {

/// A picture as PNG bytes and the text under it.
struct HtmlPicture {
  std::string caption;
  std::string png;
};

/// One page that needs nothing else: pictures inlined, charts as SVG, no script.
std::string html_page(const Inspection& inspection, const std::vector<HeadStatistics>& heads,
                      const std::vector<HtmlPicture>& pictures);

}  // namespace vidsparse::tools
