#ifndef VIDSPARSE_VIDSPARSE_TYPES_H_
#define VIDSPARSE_VIDSPARSE_TYPES_H_

/*
 * Tensors, masks and problems of the C interface; include vidsparse/vidsparse.h, which has the
 * rules. The structs here without struct_size never change.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vidsparse_dtype {
  VIDSPARSE_F64 = 0,
  VIDSPARSE_F32 = 1,
  VIDSPARSE_F16 = 2,
  VIDSPARSE_BF16 = 3,
  VIDSPARSE_I32 = 4, /* sizes and index lists */
  VIDSPARSE_I64 = 5, /* words of bitmaps */
  VIDSPARSE_U8 = 6   /* bool maps */
} vidsparse_dtype;

/* A tensor of up to four dimensions that somebody else owns. Strides count elements and may be
 * anything (views of a fused qkv too), except that the last dimension is contiguous. rank 0 means
 * absent. Inputs are only read. */
typedef struct vidsparse_tensor {
  void* data;
  int32_t dtype; /* vidsparse_dtype */
  int32_t rank;
  int64_t shape[4];
  int64_t strides[4];
} vidsparse_tensor;

/* Row-major, dense; sides past `rank` are ignored. */
static inline vidsparse_tensor vidsparse_dense(void* data, vidsparse_dtype dtype, int32_t rank,
                                               int64_t side0, int64_t side1, int64_t side2,
                                               int64_t side3) {
  vidsparse_tensor tensor;
  const int64_t sides[4] = {side0, side1, side2, side3};
  int64_t step = 1;
  memset(&tensor, 0, sizeof tensor);
  tensor.data = data;
  tensor.dtype = (int32_t)dtype;
  tensor.rank = rank;
  for (int32_t i = rank - 1; i >= 0 && i < 4; --i) {
    tensor.shape[i] = sides[i];
    tensor.strides[i] = step;
    step *= sides[i];
  }
  return tensor;
}

/* A bitmap over tiles, one row per (batch, head, query tile): bit j%64 of little-endian word j/64
 * is key tile j; tail bits are zero. A row has row_words(key_tiles) words, rows of a head follow
 * one another; heads and batch entries lie head_stride and batch_stride words apart, 0 where they
 * share one mask. words NULL means absent. */
typedef struct vidsparse_mask {
  uint64_t* words;
  int64_t batch;
  int64_t heads;
  int64_t query_tiles;
  int64_t key_tiles;
  int64_t head_stride;
  int64_t batch_stride;
} vidsparse_mask;

/* 64-bit words of a row: enough for key_tiles bits, rounded up to 16 bytes. */
static inline int64_t vidsparse_mask_row_words(int64_t key_tiles) {
  return (key_tiles + 127) / 128 * 2;
}

/* Dense: batch * heads * query_tiles rows of words, in that order. */
static inline vidsparse_mask vidsparse_dense_mask(uint64_t* words, int64_t batch, int64_t heads,
                                                  int64_t query_tiles, int64_t key_tiles) {
  vidsparse_mask mask;
  mask.words = words;
  mask.batch = batch;
  mask.heads = heads;
  mask.query_tiles = query_tiles;
  mask.key_tiles = key_tiles;
  mask.head_stride = query_tiles * vidsparse_mask_row_words(key_tiles);
  mask.batch_stride = heads * mask.head_stride;
  return mask;
}

typedef enum vidsparse_segment_kind {
  VIDSPARSE_PLAIN = 0, /* `length` tokens without a grid, cut into chunks of E of their own */
  VIDSPARSE_VIDEO = 1  /* t x h x w tokens in raster order: token (t*H + h)*W + w */
} vidsparse_segment_kind;

typedef struct vidsparse_segment {
  int32_t kind; /* vidsparse_segment_kind */
  int32_t reserved;
  int64_t length;  /* plain: 0 or more */
  int64_t t, h, w; /* video: 0 or more */
} vidsparse_segment;

static inline vidsparse_segment vidsparse_plain(int64_t length) {
  vidsparse_segment segment;
  memset(&segment, 0, sizeof segment);
  segment.kind = VIDSPARSE_PLAIN;
  segment.length = length;
  return segment;
}

static inline vidsparse_segment vidsparse_video(int64_t t, int64_t h, int64_t w) {
  vidsparse_segment segment;
  memset(&segment, 0, sizeof segment);
  segment.kind = VIDSPARSE_VIDEO;
  segment.t = t;
  segment.h = h;
  segment.w = w;
  return segment;
}

/* How the tokens of one side lie in memory: `segment_count` segments in order, or, where
 * packed_slots is not 0, packed: packed_tiles tiles stored one after the other, packed_slots (= E)
 * tokens each, of which the first n_j are valid; n_j come at run time (vidsparse_lengths). */
typedef struct vidsparse_sequence {
  const vidsparse_segment* segments; /* NULL when packed; read only during the call */
  int64_t segment_count;
  int64_t packed_tiles;
  int64_t packed_slots;
} vidsparse_sequence;

/* Sides of a tile in tokens. E = t*h*w is a positive multiple of 64. */
typedef struct vidsparse_tile_shape {
  int64_t t, h, w;
} vidsparse_tile_shape;

typedef struct vidsparse_problem {
  size_t struct_size;
  vidsparse_sequence query;
  const vidsparse_sequence* key; /* NULL: the same tokens as `query` */
  vidsparse_tile_shape tile;     /* default 4, 4, 4 */
  int64_t batch;                 /* B; default 1 */
  int64_t heads_q;               /* H; default 1 */
  int64_t heads_kv;              /* G, divides heads_q; default 0: the same as heads_q */
  int64_t head_dim;              /* D; default 128 */
  int32_t dtype;                 /* T, of q, k, v, gate and their gradients; default bf16 */
  int32_t reserved;
} vidsparse_problem;

static inline vidsparse_problem vidsparse_problem_init(void) {
  vidsparse_problem problem;
  memset(&problem, 0, sizeof problem);
  problem.struct_size = sizeof problem;
  problem.tile.t = problem.tile.h = problem.tile.w = 4;
  problem.batch = problem.heads_q = 1;
  problem.head_dim = 128;
  problem.dtype = VIDSPARSE_BF16;
  return problem;
}

/* How a selection is given. */
typedef enum vidsparse_selection_rule {
  VIDSPARSE_BY_SPARSITY = 1,
  VIDSPARSE_BY_TOP_K = 2
} vidsparse_selection_rule;

/* How plain key tiles (P of them) take part in the selection of video query tiles. */
typedef enum vidsparse_prefix_mode {
  VIDSPARSE_EXEMPT = 0, /* all P, plus the top k of the N_v video tiles */
  VIDSPARSE_COMPETE = 1 /* the top k + P of all N_v + P */
} vidsparse_prefix_mode;

/* Which key tiles a query tile keeps; k counts the N_v video key tiles. */
typedef struct vidsparse_selection {
  size_t struct_size;
  int32_t rule;          /* vidsparse_selection_rule; no default */
  int32_t prefix_mode;   /* vidsparse_prefix_mode; default exempt */
  double sparsity;       /* by sparsity: in [0, 1); k = max(1, min(ceil((1-sparsity)*N_v), N_v)) */
  int64_t top_k;         /* by top_k: in [1, N_v] */
  vidsparse_mask always; /* optional [B, H, Nq, Nk]: OR-ed on top of the k */
} vidsparse_selection;

static inline vidsparse_selection vidsparse_by_sparsity(double sparsity) {
  vidsparse_selection selection;
  memset(&selection, 0, sizeof selection);
  selection.struct_size = sizeof selection;
  selection.rule = VIDSPARSE_BY_SPARSITY;
  selection.sparsity = sparsity;
  return selection;
}

static inline vidsparse_selection vidsparse_by_top_k(int64_t top_k) {
  vidsparse_selection selection;
  memset(&selection, 0, sizeof selection);
  selection.struct_size = sizeof selection;
  selection.rule = VIDSPARSE_BY_TOP_K;
  selection.top_k = top_k;
  return selection;
}

typedef enum vidsparse_gate_kind {
  VIDSPARSE_GATE_NONE = 0,   /* pure sparse attention: the pooled branch is not computed at all */
  VIDSPARSE_GATE_SCALAR = 1, /* one number for all; 1 is the ungated sum */
  VIDSPARSE_GATE_TENSOR = 2  /* elementwise */
} vidsparse_gate_kind;

/* The weight of the pooled branch: out = fine + gate * oc. */
typedef struct vidsparse_gate {
  int32_t kind;            /* vidsparse_gate_kind */
  float value;             /* scalar */
  vidsparse_tensor tensor; /* T [B, Sq, H, D] */
} vidsparse_gate;

/* Valid lengths known only at run time, i32: [B, columns] or [columns] (shared by the batch): n_j
 * of every packed tile, or the valid length of every plain segment. Absent: everything is valid.
 * Values are clamped, never trusted. `key` is not taken from `query`: give both where the sequences
 * are the same. */
typedef struct vidsparse_lengths {
  vidsparse_tensor query;
  vidsparse_tensor key;
} vidsparse_lengths;

/* The factor of the scores. */
typedef struct vidsparse_scale {
  int32_t given; /* 0: the default D^-0.5; 1: `value` */
  int32_t reserved;
  double value;
} vidsparse_scale;

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VIDSPARSE_VIDSPARSE_TYPES_H_ */
