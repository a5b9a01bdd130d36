#pragma once

#include "video.hpp"

namespace vidsparse::tools {

/// Peak signal-to-noise ratio in dB over all frames and channels; infinite for equal clips.
double psnr(const Clip& clip, const Clip& truth);

/// Structural similarity (Wang et al. 2004) of the luma: 11x11 Gaussian window of sigma 1.5 where
/// it fits into the frame (smaller in smaller frames), K1 = 0.01, K2 = 0.03; mean over positions
/// and frames.
double ssim(const Clip& clip, const Clip& truth);

struct Quality {
  double psnr = 0;
  double ssim = 0;
};
Quality quality(const Clip& clip, const Clip& truth);

}  // namespace vidsparse::tools
