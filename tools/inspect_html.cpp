#include "inspect_html.hpp"

#include <algorithm>
#include <cstdio>
#include <map>

namespace vidsparse::tools {
namespace {

constexpr const char* kStyle = R"(
body{margin:0;background:#10121a;color:#e1e4eb;font:16px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:2rem 1.5rem 4rem}
h1{font-size:1.7rem;margin:0}h2{font-size:1.2rem;margin:2.5rem 0 .5rem}
p,figcaption{color:#9aa3b5;margin:.3rem 0 .8rem}
figure{margin:1.2rem 0}img{width:100%;height:auto;border-radius:6px}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .9rem;text-align:right;border-bottom:1px solid #262b3a}
th{color:#9aa3b5;font-weight:500}td:first-child,th:first-child{text-align:left}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts svg{background:#171a25;border-radius:6px}
.head{margin:.8rem 0 .2rem;color:#cbd2e0}.bar{fill:#f36928}.blind{fill:none;stroke:#9aa3b5;stroke-width:1.5}
text{fill:#9aa3b5;font:12px system-ui,sans-serif}
)";

std::string number(double value, int digits = 2) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

std::string escape(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '&':
        result += "&amp;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

/// Bars for the chosen tiles, a line for tiles chosen blindly.
std::string histogram_svg(const DistanceHistogram& histogram, const std::string& axis) {
  constexpr int kWidth = 360;
  constexpr int kHeight = 170;
  constexpr int kLeft = 12;
  constexpr int kTop = 30;
  constexpr int kBottom = 26;
  const std::size_t bins = histogram.chosen.size();
  double highest = 1e-12;
  for (std::size_t i = 0; i < bins; ++i) {
    highest = std::max({highest, histogram.chosen[i], histogram.blind[i]});
  }
  const double step = static_cast<double>(kWidth - 2 * kLeft) / static_cast<double>(bins);
  const auto y = [&](double share) {
    return kHeight - kBottom - share / highest * (kHeight - kTop - kBottom);
  };
  std::string svg = "<svg width=\"" + std::to_string(kWidth) + "\" height=\"" +
                    std::to_string(kHeight) + "\"><text x=\"12\" y=\"19\">distance along " + axis +
                    ": mean " + number(histogram.mean) + " tiles, blind " +
                    number(histogram.blind_mean) + "</text>";
  std::string line;
  for (std::size_t i = 0; i < bins; ++i) {
    const double x = kLeft + static_cast<double>(i) * step;
    const double top = y(histogram.chosen[i]);
    svg += "<rect class=\"bar\" x=\"" + number(x) + "\" y=\"" + number(top) + "\" width=\"" +
           number(std::max(1.0, step * 0.85)) + "\" height=\"" + number(kHeight - kBottom - top) +
           "\"/>";
    line += number(x + step * 0.42) + "," + number(y(histogram.blind[i])) + " ";
  }
  svg += "<polyline class=\"blind\" points=\"" + line + "\"/><text x=\"12\" y=\"" +
         std::to_string(kHeight - 8) + "\">0</text><text text-anchor=\"end\" x=\"" +
         std::to_string(kWidth - 12) + "\" y=\"" + std::to_string(kHeight - 8) + "\">" +
         std::to_string(bins - 1) + " tiles</text></svg>";
  return svg;
}

std::string neighbours(const std::string& along) {
  static const std::map<std::string, std::string> kNames{{"w", "side by side (w)"},
                                                         {"h", "one below the other (h)"},
                                                         {"t", "one after the other (t)"},
                                                         {"hw", "2 x 2 block (h, w)"},
                                                         {"order", "consecutive tile numbers"}};
  return kNames.at(along);
}

/// Means over the heads.
std::string overlap_table(const std::vector<HeadStatistics>& heads) {
  std::string table =
      "<table><tr><th>query tiles</th><th>neighbours</th><th>in all lists</th><th>blind</th>"
      "<th>in any list</th><th>blind</th></tr>";
  for (std::size_t i = 0; i < heads.front().overlaps.size(); ++i) {
    Overlap mean = heads.front().overlaps[i];
    mean.common = mean.all = mean.blind_common = mean.blind_all = 0;
    for (const HeadStatistics& head : heads) {
      const auto count = static_cast<double>(heads.size());
      mean.common += head.overlaps[i].common / count;
      mean.all += head.overlaps[i].all / count;
      mean.blind_common += head.overlaps[i].blind_common / count;
      mean.blind_all += head.overlaps[i].blind_all / count;
    }
    table += "<tr><td>" + std::to_string(mean.group) + "</td><td>" + neighbours(mean.along) +
             "</td><td>" + number(100 * mean.common, 1) + " %</td><td>" +
             number(100 * mean.blind_common, 1) + " %</td><td>" + number(mean.all) +
             " lists</td><td>" + number(mean.blind_all) + "</td></tr>";
  }
  return table + "</table>";
}

}  // namespace

std::string html_page(const Inspection& inspection, const std::vector<HeadStatistics>& heads,
                      const std::vector<HtmlPicture>& pictures) {
  std::string page = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>" +
                     escape(inspection.title) + "</title><style>" + kStyle +
                     "</style></head><body><main><h1>" + escape(inspection.title) + "</h1><p>" +
                     escape(inspection.subtitle) + "</p>";
  for (const HtmlPicture& picture : pictures) {
    page += "<figure><img alt=\"\" src=\"data:image/png;base64," + base64(picture.png) +
            "\"><figcaption>" + escape(picture.caption) + "</figcaption></figure>";
  }
  page +=
      "<h2>What neighbouring query tiles have in common</h2><p>Mean over all groups and heads, "
      "relative to the length of a list. \"Blind\" is what independent random lists of that length "
      "would give.</p>" +
      overlap_table(heads) +
      "<h2>How far the chosen tiles lie</h2><p>Share of the chosen tiles at each distance, in "
      "tiles; the line is what a blind choice would give.</p>";
  constexpr std::array<const char*, 3> kAxes{"t", "h", "w"};
  for (std::size_t i = 0; i < heads.size(); ++i) {
    const auto per_batch = static_cast<std::size_t>(inspection.mask.shape.heads);
    page += "<div class=\"head\">";
    if (heads.size() > 1) {
      page += "batch " + std::to_string(i / per_batch) + ", head " + std::to_string(i % per_batch) +
              ": ";
    }
    page += number(heads[i].list_length, 1) + " tiles a list, own tile in " +
            number(100 * heads[i].own_share, 1) + " %</div><div class=\"charts\">";
    for (std::size_t axis = 0; axis < 3; ++axis) {
      if (heads[i].distances[axis].chosen.size() > 1) {
        page += histogram_svg(heads[i].distances[axis], kAxes[axis]);
      }
    }
    page += "</div>";
  }
  return page + "</main></body></html>\n";
}

}  // namespace vidsparse::tools
