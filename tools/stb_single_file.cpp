#include "stb_single_file.hpp"

#include <cmath>
#include <cstring>

#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#include <stb/stb_easy_font.h>
#include <stb/stb_image_write.h>

namespace vidsparse::tools {

std::string png_bytes(const std::uint8_t* rgb, int width, int height) {
  std::string bytes;
  const auto append = [](void* context, void* data, int size) {
    static_cast<std::string*>(context)->append(static_cast<const char*>(data),
                                               static_cast<std::size_t>(size));
  };
  stbi_write_png_to_func(append, &bytes, width, height, 3, rgb, width * 3);
  return bytes;
}

std::vector<TextQuad> text_quads(const std::string& line) {
  struct Vertex {  // as stb lays it out
    float x, y, z;
    unsigned char colour[4];
  };
  std::vector<Vertex> vertices(line.size() * 100 + 4);
  std::string text = line;  // stb takes a mutable string
  const int quads = stb_easy_font_print(0, 0, text.data(), nullptr, vertices.data(),
                                        static_cast<int>(vertices.size() * sizeof(Vertex)));
  std::vector<TextQuad> result;
  for (int i = 0; i < quads; ++i) {
    const Vertex& from = vertices[static_cast<std::size_t>(i) * 4];
    const Vertex& to = vertices[static_cast<std::size_t>(i) * 4 + 2];
    result.push_back({static_cast<int>(std::lround(from.x)), static_cast<int>(std::lround(from.y)),
                      static_cast<int>(std::lround(to.x - from.x)),
                      static_cast<int>(std::lround(to.y - from.y))});
  }
  return result;
}

int text_extent(const std::string& line) {
  std::string text = line;
  return stb_easy_font_width(text.data());
}

}  // namespace vidsparse::tools
