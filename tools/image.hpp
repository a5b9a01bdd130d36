#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace vidsparse::tools {

/// Red, green, blue, 0..255.
using Colour = std::array<std::uint8_t, 3>;

/// A picture in RGB, rows from the top, [height, width, 3].
class Image {
 public:
  Image() = default;
  Image(int width, int height, Colour fill = {0, 0, 0});
  /// Takes over `rgb`, width * height * 3 bytes.
  Image(std::vector<std::uint8_t> rgb, int width, int height);

  int width() const { return width_; }
  int height() const { return height_; }
  const std::uint8_t* data() const { return rgb_.data(); }
  Colour at(int x, int y) const;

  /// Drawing clips at the borders.
  void set(int x, int y, Colour colour);
  void fill(int x, int y, int width, int height, Colour colour);
  /// Hollow rectangle, `thickness` pixels wide, growing outwards from the given box.
  void outline(int x, int y, int width, int height, int thickness, Colour colour);
  void paste(const Image& other, int x, int y);
  /// Text of stb's pixel font, 12 * `scale` pixels a line; (x, y) is the top left corner.
  void text(int x, int y, const std::string& line, int scale, Colour colour);

 private:
  std::size_t index(int x, int y) const {
    return (static_cast<std::size_t>(y) * static_cast<std::size_t>(width_) +
            static_cast<std::size_t>(x)) *
           3;
  }

  int width_ = 0;
  int height_ = 0;
  std::vector<std::uint8_t> rgb_;
};

/// Pixels text() needs for a line.
int text_width(const std::string& line, int scale);

/// Each pixel becomes factor x factor pixels.
Image enlarge(const Image& image, int factor);

/// a + (b - a) * share, per channel.
Colour mix(Colour a, Colour b, double share);

/// Perceived brightness, 0..255.
double luma(Colour colour);

/// The colour map of all heat maps: dark violet, red, orange, pale yellow with rising brightness,
/// so that it reads the same in grey. `value` is clamped to [0, 1].
Colour heat(double value);

/// The picture as a PNG file.
std::string encode_png(const Image& image);

/// For data URLs.
std::string base64(const std::string& bytes);

}  // namespace vidsparse::tools
