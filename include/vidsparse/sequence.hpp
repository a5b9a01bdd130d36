#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <variant>
#include <vector>

#include "vidsparse/export.hpp"

namespace vidsparse {

/// Sides of a tile in tokens along time, height and width. The product is the tile's E, a positive
/// multiple of 64. A tile may exceed the grid (an image: T = 1).
struct TileShape {
  std::int64_t t = 4;
  std::int64_t h = 4;
  std::int64_t w = 4;

  /// E, the tokens (slots) of a full tile.
  constexpr std::int64_t tokens() const { return t * h * w; }
  bool operator==(const TileShape&) const = default;
};

/// Tokens without a grid (text, conditioning, audio): cut into chunks of E tokens of their own, the
/// last may be short; every video query attends them under PrefixMode::exempt.
struct Plain {
  std::int64_t length = 0;
  bool operator==(const Plain&) const = default;
};

/// T x H x W tokens in raster order: token p = (t*H + h)*W + w.
struct Video {
  std::int64_t t = 0;
  std::int64_t h = 0;
  std::int64_t w = 0;
  bool operator==(const Video&) const = default;
};

/// Tiles stored one after the other, `slots` tokens each, of which the first n_j are valid; the n_j
/// come at run time (`Lengths`). Pad slots may hold anything, NaN too.
struct Packed {
  std::int64_t tiles = 0;
  std::int64_t slots = 64;  ///< equals TileShape::tokens() of the problem
  bool operator==(const Packed&) const = default;
};

using Segment = std::variant<Plain, Video>;

/// How the tokens of one side (query or key) lie in memory: an ordered list of segments, or packed
/// tiles. Lengths may be zero; text may stand before or after the video.
class VIDSPARSE_API Sequence {
 public:
  Sequence() = default;
  Sequence(std::initializer_list<Segment> segments) : segments_(segments) {}
  explicit Sequence(std::vector<Segment> segments) : segments_(std::move(segments)) {}
  Sequence(Packed packed) : packed_(packed), is_packed_(true) {}  // NOLINT: reads as a literal

  /// Sugar for the common case: plain segments of the given lengths, then one video.
  static Sequence grid(Video video, const std::vector<std::int64_t>& prefix = {});

  bool is_packed() const { return is_packed_; }
  const Packed& packed() const { return packed_; }
  /// Empty when packed.
  const std::vector<Segment>& segments() const { return segments_; }

  /// "Plain(77) + Video(21x30x52)", "Packed(624 x 64)".
  std::string to_string() const;

  bool operator==(const Sequence&) const = default;

 private:
  std::vector<Segment> segments_;
  Packed packed_;
  bool is_packed_ = false;
};

}  // namespace vidsparse
