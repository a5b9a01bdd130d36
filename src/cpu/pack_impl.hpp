#pragma once

#include "cpu/kernels.hpp"

// Packing, conversion and per-token rows for the `Vec` of the including ISA file. head_dim is a
// multiple of 16 elements, so rows are whole vectors except where words of two elements meet 16
// lanes. Internal linkage: see vec_avx512.hpp.

namespace vidsparse::cpu {
namespace {

/// How a vector of each dtype is read and written; `with_storage` picks one.
struct F32Storage {
  static Vec load(const void* p, std::int64_t i) {
    return Vec::load(static_cast<const float*>(p) + i);
  }
  static void store(void* p, std::int64_t i, Vec v) { v.store(static_cast<float*>(p) + i); }
};
struct F16Storage {
  static Vec load(const void* p, std::int64_t i) {
    return Vec::load_f16(static_cast<const std::uint16_t*>(p) + i);
  }
  static void store(void* p, std::int64_t i, Vec v) {
    v.store_f16(static_cast<std::uint16_t*>(p) + i);
  }
};
struct Bf16Storage {
  static Vec load(const void* p, std::int64_t i) {
    return Vec::load_bf16(static_cast<const std::uint16_t*>(p) + i);
  }
  static void store(void* p, std::int64_t i, Vec v) {
    v.store_bf16(static_cast<std::uint16_t*>(p) + i);
  }
};

template <class Work>
auto with_storage(DType dtype, Work&& work) {
  if (dtype == DType::f32) return work(F32Storage{});
  if (dtype == DType::f16) return work(F16Storage{});
  return work(Bf16Storage{});
}

constexpr std::size_t bytes_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

inline void copy_bytes(const void* source, void* out, std::size_t bytes) {
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(out);
  for (std::size_t i = 0; i < bytes; ++i) to[i] = from[i];
}

inline void prefetch(const void* data, std::ptrdiff_t bytes) {
  for (std::ptrdiff_t byte = 0; byte < bytes; byte += 64) {
    Vec::prefetch(static_cast<const char*>(data) + byte);
  }
}

/// The tail of an array that fills no vector goes through a vector of its own.
inline void widen(DType dtype, const void* source, float* out, std::int64_t count) {
  with_storage(dtype, [&](auto storage) {
    std::int64_t i = 0;
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) storage.load(source, i).store(out + i);
    if (i == count) return;
    float tail[Vec::kLanes] = {};
    const std::size_t rest = static_cast<std::size_t>(count - i);
    copy_bytes(static_cast<const char*>(source) + static_cast<std::size_t>(i) * bytes_of(dtype),
               tail, rest * bytes_of(dtype));
    storage.load(tail, 0).store(tail);
    copy_bytes(tail, out + i, rest * sizeof(float));
  });
}

inline void narrow(DType dtype, const float* source, void* out, std::int64_t count) {
  with_storage(dtype, [&](auto storage) {
    std::int64_t i = 0;
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) storage.store(out, i, Vec::load(source + i));
    if (i == count) return;
    float tail[Vec::kLanes] = {};
    const std::size_t rest = static_cast<std::size_t>(count - i);
    copy_bytes(source + i, tail, rest * sizeof(float));
    storage.store(tail, 0, Vec::load(tail));
    copy_bytes(tail, static_cast<char*>(out) + static_cast<std::size_t>(i) * bytes_of(dtype),
               rest * bytes_of(dtype));
  });
}

inline void transpose_words(const void* const* rows, int count, int words, std::uint32_t* out,
                            std::ptrdiff_t ldo, int columns, int out_words) {
  constexpr int kLanes = Vec::kLanes;
  std::uint32_t zeros[kLanes] = {};
  const std::uint32_t* source[kLanes];
  for (int first = 0; first < columns; first += kLanes) {
    int word = 0;
    for (; word + kLanes <= words; word += kLanes) {
      for (int i = 0; i < kLanes; ++i) {
        source[i] =
            first + i < count ? static_cast<const std::uint32_t*>(rows[first + i]) + word : zeros;
      }
      Vec::transpose(source, out + word * ldo + first, ldo);
    }
    for (; word < out_words; ++word) {
      for (int i = 0; i < kLanes; ++i) {
        std::uint32_t value = 0;
        if (word < words && first + i < count) {
          copy_bytes(static_cast<const std::uint32_t*>(rows[first + i]) + word, &value, 4);
        }
        out[word * ldo + first + i] = value;
      }
    }
  }
}

inline void interleave_rows(const void* const* rows, int count, int d, std::uint32_t* out,
                            int pairs) {
  std::uint16_t zeros[kMaxHeadDim] = {};
  for (int pair = 0; pair < pairs; ++pair) {
    const int row = 2 * pair;
    const auto* a = row < count ? static_cast<const std::uint16_t*>(rows[row]) : zeros;
    const auto* b = row + 1 < count ? static_cast<const std::uint16_t*>(rows[row + 1]) : zeros;
    for (int first = 0; first < d; first += kPanel) {
      const int width = d - first < kPanel ? d - first : kPanel;
      std::uint32_t* to = out + first * pairs + pair * width;
      for (int i = 0; i < width; i += Vec::kLanes) {
        Vec::interleave(a + first + i, b + first + i, to + i);
      }
    }
  }
}

inline void expand_pairs(DType dtype, const std::uint32_t* words, int pairs, int n, float* out) {
  for (int first = 0; first < n; first += kPanel) {
    const int width = n - first < kPanel ? n - first : kPanel;
    const std::uint32_t* from = words + first * pairs;
    float* to = out + 2 * first * pairs;
    for (int pair = 0; pair < pairs; ++pair, from += width, to += 2 * width) {
      for (int i = 0; i < width; i += Vec::kLanes) {
        Vec low;
        Vec high;
        if (dtype == DType::bf16) {
          Vec::split_bf16(from + i, low, high);
        } else {
          Vec::split_f16(from + i, low, high);
        }
        low.store(to + i);
        high.store(to + width + i);
      }
    }
  }
}

inline void sum_rows(DType dtype, const void* const* rows, int count, int d, float* out) {
  with_storage(dtype, [&](auto storage) {
    constexpr int kStep = 2 * Vec::kLanes;  // d is a multiple of 16 but not always of two vectors
    int i = 0;
    for (; i + kStep <= d; i += kStep) {
      Vec low = Vec::zero();
      Vec high = low;
      for (int row = 0; row < count; ++row) {
        low = low + storage.load(rows[row], i);
        high = high + storage.load(rows[row], i + Vec::kLanes);
      }
      low.store(out + i);
      high.store(out + i + Vec::kLanes);
    }
    for (; i < d; i += Vec::kLanes) {
      Vec sum = Vec::zero();
      for (int row = 0; row < count; ++row) sum = sum + storage.load(rows[row], i);
      sum.store(out + i);
    }
  });
}

inline void finish_row(const FinishRow& row) {
  with_storage(row.dtype, [&](auto storage) {
    const Vec factor = Vec::set1(row.factor);
    const Vec scalar = Vec::set1(row.gate_scalar);
    for (int i = 0; i < row.d; i += Vec::kLanes) {
      Vec x = Vec::load(row.acc + i) * factor;
      if (row.coarse != nullptr) {
        const Vec gate = row.gate != nullptr ? storage.load(row.gate, i) : scalar;
        x = Vec::fma(gate, Vec::load(row.coarse + i), x);
      }
      storage.store(row.out, i, x);
    }
  });
}

inline float prepare_row(const PrepareRow& row) {
  return with_storage(row.dtype, [&](auto storage) {
    const Vec scalar = Vec::set1(row.gate_scalar);
    Vec delta = Vec::zero();
    for (int i = 0; i < row.d; i += Vec::kLanes) {
      const Vec dout = storage.load(row.dout, i);
      Vec fine = storage.load(row.out, i);  // out - gate * coarse, the fine branch alone
      if (row.coarse != nullptr) {
        const Vec coarse = Vec::load(row.coarse + i);
        const Vec gate = row.gate != nullptr ? storage.load(row.gate, i) : scalar;
        fine = fine - gate * coarse;
        if (row.dgate != nullptr) storage.store(row.dgate, i, dout * coarse);
        if (row.dcoarse != nullptr) {
          Vec::fma(dout, gate, Vec::load(row.dcoarse + i)).store(row.dcoarse + i);
        }
      }
      delta = Vec::fma(dout, fine, delta);
    }
    return delta.reduce_add();
  });
}

inline float dot(const float* a, const float* b, std::int64_t count) {
  Vec sum = Vec::zero();
  std::int64_t i = 0;
  for (; i + Vec::kLanes <= count; i += Vec::kLanes) {
    sum = Vec::fma(Vec::load(a + i), Vec::load(b + i), sum);
  }
  float tail = 0.0f;
  for (; i < count; ++i) tail += a[i] * b[i];
  return sum.reduce_add() + tail;
}

}  // namespace
}  // namespace vidsparse::cpu
