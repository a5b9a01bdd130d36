#pragma once

#include <cstdint>
#include <string>
#include <vector>

// What we use of stb. Its single-file libraries are compiled once, in stb_single_file.cpp, where
// their warnings are nobody's business.

namespace vidsparse::tools {

/// A PNG file of width x height RGB pixels.
std::string png_bytes(const std::uint8_t* rgb, int width, int height);

/// One filled rectangle of a line of text.
struct TextQuad {
  int x = 0;
  int y = 0;
  int width = 0;
  int height = 0;
};

/// The rectangles of a line in stb's pixel font, 12 pixels high, from its top left corner.
std::vector<TextQuad> text_quads(const std::string& line);
int text_extent(const std::string& line);

}  // namespace vidsparse::tools
