#include "image.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "stb_single_file.hpp"

namespace vidsparse::tools {

Image::Image(int width, int height, Colour colour)
    : width_(width),
      height_(height),
      rgb_(static_cast<std::size_t>(width) * static_cast<std::size_t>(height) * 3) {
  fill(0, 0, width, height, colour);
}

Image::Image(std::vector<std::uint8_t> rgb, int width, int height)
    : width_(width), height_(height), rgb_(std::move(rgb)) {}

Colour Image::at(int x, int y) const {
  const std::uint8_t* pixel = rgb_.data() + index(x, y);
  return {pixel[0], pixel[1], pixel[2]};
}

void Image::set(int x, int y, Colour colour) {
  if (x < 0 || y < 0 || x >= width_ || y >= height_) return;
  std::copy(colour.begin(), colour.end(), rgb_.begin() + static_cast<std::ptrdiff_t>(index(x, y)));
}

void Image::fill(int x, int y, int width, int height, Colour colour) {
  for (int row = std::max(y, 0); row < std::min(y + height, height_); ++row) {
    for (int column = std::max(x, 0); column < std::min(x + width, width_); ++column) {
      set(column, row, colour);
    }
  }
}

void Image::outline(int x, int y, int width, int height, int thickness, Colour colour) {
  const int outer_width = width + 2 * thickness;
  fill(x - thickness, y - thickness, outer_width, thickness, colour);
  fill(x - thickness, y + height, outer_width, thickness, colour);
  fill(x - thickness, y, thickness, height, colour);
  fill(x + width, y, thickness, height, colour);
}

void Image::paste(const Image& other, int x, int y) {
  for (int row = 0; row < other.height_; ++row) {
    for (int column = 0; column < other.width_; ++column) {
      set(x + column, y + row, other.at(column, row));
    }
  }
}

void Image::text(int x, int y, const std::string& line, int scale, Colour colour) {
  for (const TextQuad& quad : text_quads(line)) {
    fill(x + quad.x * scale, y + quad.y * scale, quad.width * scale, quad.height * scale, colour);
  }
}

int text_width(const std::string& line, int scale) { return text_extent(line) * scale; }

Image enlarge(const Image& image, int factor) {
  Image large(image.width() * factor, image.height() * factor);
  for (int y = 0; y < image.height(); ++y) {
    for (int x = 0; x < image.width(); ++x) {
      large.fill(x * factor, y * factor, factor, factor, image.at(x, y));
    }
  }
  return large;
}

Colour mix(Colour a, Colour b, double share) {
  Colour result{};
  for (std::size_t i = 0; i < 3; ++i) {
    result[i] =
        static_cast<std::uint8_t>(std::lround(a[i] + (static_cast<double>(b[i]) - a[i]) * share));
  }
  return result;
}

double luma(Colour colour) { return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]; }

Colour heat(double value) {
  // Brightness rises by about the same step from stop to stop.
  constexpr std::array<Colour, 7> kStops{{{18, 10, 50},
                                          {74, 18, 108},
                                          {140, 30, 110},
                                          {205, 50, 75},
                                          {243, 105, 40},
                                          {253, 175, 60},
                                          {255, 245, 190}}};
  const double place = std::clamp(value, 0.0, 1.0) * (kStops.size() - 1);
  const auto stop = std::min(static_cast<std::size_t>(place), kStops.size() - 2);
  return mix(kStops[stop], kStops[stop + 1], place - static_cast<double>(stop));
}

std::string encode_png(const Image& image) {
  return png_bytes(image.data(), image.width(), image.height());
}

std::string base64(const std::string& bytes) {
  static constexpr char kDigits[] =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    unsigned group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    }
    for (int shift = 18; shift >= 0; shift -= 6) text += kDigits[group >> shift & 63];
    for (std::size_t j = bytes.size() - i; j < 3; ++j) text[text.size() + j - 3] = '=';
  }
  return text;
}

}  // namespace vidsparse::tools
