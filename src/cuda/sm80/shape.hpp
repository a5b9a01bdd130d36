#pragma once

namespace vidsparse::cuda::sm80 {

/// Kernels come in two sets of shapes, by the shared memory of a multiprocessor: the large ones
/// need 160 KB (sm_80, sm_87, sm_90, sm_100), the small ones run in the 100 KB of sm_86, sm_89 and
/// sm_120. Each set is compiled for its architectures only, and for sm_90, where both are tested.
enum class Shape { large, small };

/// Which of them a device takes that gives a block `shared_bytes` at most. VIDSPARSE_SM80_SHAPE
/// (large or small) says otherwise, for tests.
Shape choose_shape(int shared_bytes);

}  // namespace vidsparse::cuda::sm80
