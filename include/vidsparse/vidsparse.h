#ifndef VIDSPARSE_VIDSPARSE_H_
#define VIDSPARSE_VIDSPARSE_H_

/*
 * vidsparse, the C interface (C99): Video Sparse Attention forward and backward, and its stages
 * alone. A program makes a plan for a problem once and runs it many times:
 *
 *     vidsparse_segment video = vidsparse_video(21, 30, 52);
 *     vidsparse_problem problem = vidsparse_problem_init();
 *     problem.query.segments = &video;
 *     problem.query.segment_count = 1;
 *     problem.heads_q = 12;
 *     vidsparse_plan* plan = NULL;
 *     int status = vidsparse_plan_create(&problem, NULL, &plan);
 *     if (status != VIDSPARSE_OK) puts(vidsparse_last_error());
 *
 * then fills a vidsparse_forward_args, asks vidsparse_forward_workspace for the scratch it needs
 * and calls vidsparse_forward. examples/ has whole programs.
 *
 * Rules of every function
 * - Returns a vidsparse_status; VIDSPARSE_OK is 0. After any other, vidsparse_last_error() has one
 *   line "ARGUMENT: expected X, got Y". Nothing is thrown, printed or aborted.
 * - A required pointer that is NULL is VIDSPARSE_INVALID_ARGUMENT with the parameter's name.
 * - Refused arguments leave all outputs untouched.
 * - Different threads may call anything at once, the same plan too, each with a workspace of its
 *   own. Only vidsparse_plan_destroy must be the last call on its plan.
 *
 * Rules of every struct that begins with struct_size
 * - Set it to sizeof of the struct as you were compiled; the *_init() functions below do, and fill
 *   in the defaults written beside the fields (zero, NULL, absent where nothing is written).
 * - A smaller struct, from a program older than the library, is taken: fields it lacks have their
 *   defaults. A larger one, from a newer program, is taken as long as all that this library does
 *   not know is zero, else refused. `reserved` fields are zero.
 * - The structs without struct_size (tensor, mask, ...) never change.
 *
 * Shapes below: B batch, H query heads, G key/value heads, Sq and Sk tokens of the query and key
 * sequence (pad slots included), D head_dim, Nq and Nk their tiles. "acc" is f32, or f64 where the
 * problem's dtype is f64. "T" is the problem's dtype.
 */

#include "vidsparse/export.hpp" /* VIDSPARSE_API; preprocessor lines only */
#include "vidsparse/vidsparse_types.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vidsparse_status {
  VIDSPARSE_OK = 0,
  VIDSPARSE_INVALID_ARGUMENT = 1, /* a value breaks the rules of the op */
  VIDSPARSE_UNSUPPORTED = 2,      /* legal, but no backend (or not the forced one) can run it */
  VIDSPARSE_OUT_OF_MEMORY = 3,
  VIDSPARSE_INTERNAL = 4 /* a bug in this library or in the driver below it */
} vidsparse_status;

/* The last failure of the calling thread: its text, and the offending argument as the caller wrote
 * it ("top_k"; "" if there is none). Both stay until the thread's next failure; a success leaves
 * them. Never NULL. */
VIDSPARSE_API const char* vidsparse_last_error(void);
VIDSPARSE_API const char* vidsparse_last_error_argument(void);

/* "ok", "invalid argument", ...; "unknown status" for any other number. */
VIDSPARSE_API const char* vidsparse_status_name(int status);

/* "MAJOR.MINOR.PATCH" of the library that is loaded. */
VIDSPARSE_API const char* vidsparse_version(void);

typedef enum vidsparse_device_kind { VIDSPARSE_CPU = 0, VIDSPARSE_CUDA = 1 } vidsparse_device_kind;

typedef struct vidsparse_device {
  int32_t kind; /* vidsparse_device_kind */
  int32_t index;
} vidsparse_device;

/* A row of a list; the strings live until the visitor returns. */
typedef struct vidsparse_backend_info {
  size_t struct_size;  /* the library's: look at fields past it no further */
  const char* name;    /* as plan_options.backend and VIDSPARSE_BACKEND (or _CPU_ISA) take it */
  const char* summary; /* one line */
  const char* reason;  /* why it cannot run; where it can, what will be used */
  int32_t can_run;     /* 1 or 0 */
  int32_t on_request;  /* 1: never chosen unless named (the reference) */
} vidsparse_backend_info;

typedef void (*vidsparse_backend_visitor)(void* context, const vidsparse_backend_info* info);

/* Visits every backend that was built, in order of preference, with its verdict on the machine
 * (problem NULL) or on the problem. device NULL: the CPU. */
VIDSPARSE_API int vidsparse_list_backends(const vidsparse_device* device,
                                          const vidsparse_problem* problem,
                                          vidsparse_backend_visitor visit, void* context);

/* Visits the instruction sets of the CPU backend, as VIDSPARSE_CPU_ISA takes them. */
VIDSPARSE_API int vidsparse_list_cpu_isas(vidsparse_backend_visitor visit, void* context);

/* Calls task(arg, i) once for every i in [0, count), in any order, on any threads, and returns when
 * all are done. Called from several threads at once where a plan is shared. Results of the library
 * do not depend on it. */
typedef void (*vidsparse_parallel_for)(void* context, int64_t count,
                                       void (*task)(void* arg, int64_t index), void* arg);

typedef struct vidsparse_plan_options {
  size_t struct_size;
  vidsparse_device device;
  const char*
      backend; /* forces one by name; without it VIDSPARSE_BACKEND does, else the first fit */
  vidsparse_parallel_for parallel_for; /* threads of the CPU; default NULL: the calling one alone */
  void* parallel_context;              /* outlives the plan */
  int32_t concurrency;                 /* tasks that can run at once, at least 1; default 1 */
  int32_t reserved;
} vidsparse_plan_options;

static inline vidsparse_plan_options vidsparse_plan_options_init(void) {
  vidsparse_plan_options options;
  memset(&options, 0, sizeof options);
  options.struct_size = sizeof options;
  options.concurrency = 1;
  return options;
}

/* A problem validated, tiled and bound to a backend. Immutable. */
typedef struct vidsparse_plan vidsparse_plan;

/* `options` NULL: the defaults. On failure *plan is untouched: VIDSPARSE_INVALID_ARGUMENT names
 * what is wrong with the problem, VIDSPARSE_UNSUPPORTED has every backend's reason. There is no
 * silent fall-back. */
VIDSPARSE_API int vidsparse_plan_create(const vidsparse_problem* problem,
                                        const vidsparse_plan_options* options,
                                        vidsparse_plan** plan);
/* NULL is fine. */
VIDSPARSE_API void vidsparse_plan_destroy(vidsparse_plan* plan);

/* What a plan holds, one side each in query_* and key_*. */
typedef struct vidsparse_plan_info {
  size_t struct_size;
  const char* backend;              /* "cpu", "reference", ...; lives as long as the plan */
  const char* backend_detail;       /* what it chose, e.g. the instruction set; likewise */
  int64_t query_tokens, key_tokens; /* Sq, Sk */
  int64_t query_tiles, key_tiles;   /* Nq, Nk */
  int64_t query_plain_tiles, key_plain_tiles;       /* of them, chunks of plain segments */
  int64_t query_length_columns, key_length_columns; /* of vidsparse_lengths */
  double query_padding_waste, key_padding_waste;    /* slots per token, less one; packed 0 */
  vidsparse_mask mask;    /* shape and strides of the dense selection; words NULL */
  int64_t mask_row_words; /* words of a row */
  int64_t mask_words;     /* words of the whole selection: what to allocate */
} vidsparse_plan_info;

static inline vidsparse_plan_info vidsparse_plan_info_init(void) {
  vidsparse_plan_info info;
  memset(&info, 0, sizeof info);
  info.struct_size = sizeof info;
  return info;
}

/* Fills in *info up to its struct_size (zero past what this library knows). */
VIDSPARSE_API int vidsparse_plan_get_info(const vidsparse_plan* plan, vidsparse_plan_info* info);

typedef enum vidsparse_side { VIDSPARSE_QUERY = 0, VIDSPARSE_KEY = 1 } vidsparse_side;

/* One tile: a box in the raster of its segment. Plain chunks and packed tiles are boxes of one
 * row. Its tokens, w fastest, are the slots of the packed layout. */
typedef struct vidsparse_tile {
  size_t struct_size;
  int64_t segment; /* index of the segment; 0 when packed */
  int32_t plain;   /* 1: a chunk of a plain segment */
  int32_t reserved;
  int64_t origin[3];   /* t, h, w of the first token inside its segment */
  int64_t extent[3];   /* sides after clipping at the grid's edge */
  int64_t first_token; /* of the box, counted from the sequence's start */
  int64_t stride_t;    /* tokens from one frame of the box to the next */
  int64_t stride_h;    /* tokens from one row of the box to the next */
  int64_t capacity;    /* tokens inside the grid: n_j, unless run-time lengths make it less */
} vidsparse_tile;

static inline vidsparse_tile vidsparse_tile_init(void) {
  vidsparse_tile tile;
  memset(&tile, 0, sizeof tile);
  tile.struct_size = sizeof tile;
  return tile;
}

/* The box of tile `index` in [0, Nq) or [0, Nk). */
VIDSPARSE_API int vidsparse_plan_tile(const vidsparse_plan* plan, int side, /* vidsparse_side */
                                      int64_t index, vidsparse_tile* tile);

/* The tile that holds token t, h, w of video segment `segment`. */
VIDSPARSE_API int vidsparse_plan_tile_at(const vidsparse_plan* plan, int side, /* vidsparse_side */
                                         int64_t segment, int64_t t, int64_t h, int64_t w,
                                         int64_t* index);

/* k for a selection's rule, counted among video key tiles; 0 if there are none. */
VIDSPARSE_API int vidsparse_plan_top_k(const vidsparse_plan* plan,
                                       const vidsparse_selection* selection, int64_t* top_k);

/* max(1, min(ceil((1 - sparsity) * tiles), tiles)); 0 for no tiles. */
VIDSPARSE_API int vidsparse_top_k_of(double sparsity, int64_t tiles, int64_t* top_k);

/*
 * The calls. Each takes its arguments in a struct, scratch memory and the device's stream
 * (cudaStream_t; ignored on the CPU, where a call returns when its work is done). The scratch is
 * the caller's: 64-byte aligned, on the plan's device, at least as many bytes as the call's
 * *_workspace function says for the same arguments (NULL is fine where that is 0); it holds nothing
 * between calls. The amount depends on which arguments are present, not on what they hold. A call
 * neither allocates nor, on a GPU, synchronises. Outputs overlap no other tensor of the call,
 * except that gradients may be views of one fused buffer.
 */

/* Compression: means over the valid tokens of each tile, accumulated and kept in acc; 0 for empty
 * tiles. Absent outputs are not computed, and their inputs may be absent. */
typedef struct vidsparse_pool_args {
  size_t struct_size;
  vidsparse_tensor q; /* T [B, Sq, H, D] */
  vidsparse_tensor k; /* T [B, Sk, G, D] */
  vidsparse_tensor v; /* T [B, Sk, G, D] */
  vidsparse_lengths lengths;
  vidsparse_tensor qc; /* out: acc [B, H, Nq, D] */
  vidsparse_tensor kc; /* out: acc [B, G, Nk, D] */
  vidsparse_tensor vc; /* out: acc [B, G, Nk, D] */
} vidsparse_pool_args;

/* Scores s = (qc . kc) * scale, the exact top k as a bitmap (ties to the lowest tile) and, if `oc`
 * is given, the coarse output softmax(s) . vc. Pooled tensors may be the caller's own. */
typedef struct vidsparse_select_args {
  size_t struct_size;
  vidsparse_tensor qc;                  /* acc [B, H, Nq, D] */
  vidsparse_tensor kc;                  /* acc [B, G, Nk, D] */
  vidsparse_tensor vc;                  /* acc [B, G, Nk, D]; only with `oc` */
  vidsparse_lengths lengths;            /* tell which tiles are empty */
  const vidsparse_selection* selection; /* required */
  vidsparse_scale scale;
  vidsparse_mask mask;         /* out: [B, H, Nq, Nk], written whole */
  vidsparse_tensor oc;         /* out, optional: acc [B, H, Nq, D] */
  vidsparse_tensor coarse_max; /* out, with `oc` only: acc [B, H, Nq], max_j s_ij */
  vidsparse_tensor coarse_sum; /* out, with `oc` only: acc [B, H, Nq], sum_j exp(s_ij - max) */
} vidsparse_select_args;

/* Block-sparse attention over a mask, with the pooled branch added where there is a gate. Rows
 * without a selected token are 0 with lse -inf; pad slots are written likewise. */
typedef struct vidsparse_attend_args {
  size_t struct_size;
  vidsparse_tensor q; /* T [B, Sq, H, D] */
  vidsparse_tensor k; /* T [B, Sk, G, D] */
  vidsparse_tensor v; /* T [B, Sk, G, D] */
  vidsparse_lengths lengths;
  vidsparse_scale scale;
  vidsparse_mask mask; /* [B, H, Nq, Nk]; a bit may name an empty tile */
  vidsparse_gate gate;
  vidsparse_tensor oc;  /* with a gate: acc [B, H, Nq, D] */
  vidsparse_tensor out; /* out: T [B, Sq, H, D] */
  vidsparse_tensor lse; /* out, optional: acc [B, H, Sq], natural logarithm */
} vidsparse_attend_args;

/* The whole op: pool, select, attend. */
typedef struct vidsparse_forward_args {
  size_t struct_size;
  vidsparse_tensor q; /* T [B, Sq, H, D] */
  vidsparse_tensor k; /* T [B, Sk, G, D] */
  vidsparse_tensor v; /* T [B, Sk, G, D] */
  vidsparse_lengths lengths;
  const vidsparse_selection* selection; /* required */
  vidsparse_scale scale;
  vidsparse_gate gate;
  vidsparse_tensor out;        /* out: T [B, Sq, H, D] */
  vidsparse_tensor lse;        /* out, optional: acc [B, H, Sq] */
  vidsparse_mask mask;         /* out, optional: the selection, [B, H, Nq, Nk] */
  vidsparse_tensor oc;         /* out, optional, with a gate: acc [B, H, Nq, D] */
  vidsparse_tensor coarse_max; /* out, optional, with a gate: acc [B, H, Nq] */
  vidsparse_tensor coarse_sum; /* out, optional, with a gate: acc [B, H, Nq] */
} vidsparse_forward_args;

/* Gradients of the whole op, or of block-sparse attention on its own (no gate). What the forward
 * saved comes back: out (gate * oc included), lse, mask and, with a gate, oc and the coarse rows.
 * No gradient goes through the selection. */
typedef struct vidsparse_backward_args {
  size_t struct_size;
  vidsparse_tensor q; /* T [B, Sq, H, D] */
  vidsparse_tensor k; /* T [B, Sk, G, D] */
  vidsparse_tensor v; /* T [B, Sk, G, D] */
  vidsparse_lengths lengths;
  vidsparse_scale scale;
  vidsparse_mask mask; /* [B, H, Nq, Nk] */
  vidsparse_gate gate;
  vidsparse_tensor out;        /* T [B, Sq, H, D], of the forward */
  vidsparse_tensor lse;        /* acc [B, H, Sq] */
  vidsparse_tensor oc;         /* with a gate: acc [B, H, Nq, D] */
  vidsparse_tensor coarse_max; /* with a gate: acc [B, H, Nq] */
  vidsparse_tensor coarse_sum; /* with a gate: acc [B, H, Nq] */
  vidsparse_tensor dout;       /* T [B, Sq, H, D] */
  vidsparse_tensor dlse;       /* optional: acc [B, H, Sq] */
  vidsparse_tensor dq;         /* out: T [B, Sq, H, D], strides of its own; likewise below */
  vidsparse_tensor dk;         /* out: T [B, Sk, G, D] */
  vidsparse_tensor dv;         /* out: T [B, Sk, G, D] */
  vidsparse_tensor dgate;      /* out, optional, with a tensor gate: T [B, Sq, H, D] */
} vidsparse_backward_args;

/* Every argument absent. */
static inline vidsparse_pool_args vidsparse_pool_args_init(void) {
  vidsparse_pool_args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  return args;
}
static inline vidsparse_select_args vidsparse_select_args_init(void) {
  vidsparse_select_args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  return args;
}
static inline vidsparse_attend_args vidsparse_attend_args_init(void) {
  vidsparse_attend_args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  return args;
}
static inline vidsparse_forward_args vidsparse_forward_args_init(void) {
  vidsparse_forward_args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  return args;
}
static inline vidsparse_backward_args vidsparse_backward_args_init(void) {
  vidsparse_backward_args args;
  memset(&args, 0, sizeof args);
  args.struct_size = sizeof args;
  return args;
}

VIDSPARSE_API int vidsparse_pool_workspace(const vidsparse_plan* plan,
                                           const vidsparse_pool_args* args, size_t* bytes);
VIDSPARSE_API int vidsparse_pool(const vidsparse_plan* plan, const vidsparse_pool_args* args,
                                 void* workspace, size_t workspace_bytes, void* stream);

VIDSPARSE_API int vidsparse_select_workspace(const vidsparse_plan* plan,
                                             const vidsparse_select_args* args, size_t* bytes);
VIDSPARSE_API int vidsparse_select(const vidsparse_plan* plan, const vidsparse_select_args* args,
                                   void* workspace, size_t workspace_bytes, void* stream);

VIDSPARSE_API int vidsparse_attend_workspace(const vidsparse_plan* plan,
                                             const vidsparse_attend_args* args, size_t* bytes);
VIDSPARSE_API int vidsparse_attend(const vidsparse_plan* plan, const vidsparse_attend_args* args,
                                   void* workspace, size_t workspace_bytes, void* stream);

VIDSPARSE_API int vidsparse_forward_workspace(const vidsparse_plan* plan,
                                              const vidsparse_forward_args* args, size_t* bytes);
VIDSPARSE_API int vidsparse_forward(const vidsparse_plan* plan, const vidsparse_forward_args* args,
                                    void* workspace, size_t workspace_bytes, void* stream);

VIDSPARSE_API int vidsparse_backward_workspace(const vidsparse_plan* plan,
                                               const vidsparse_backward_args* args, size_t* bytes);
VIDSPARSE_API int vidsparse_backward(const vidsparse_plan* plan,
                                     const vidsparse_backward_args* args, void* workspace,
                                     size_t workspace_bytes, void* stream);

/*
 * Masks, in host memory. These allocate what they need for the time of the call.
 */

/* `map`: u8 [B, H, Nq, Nk] or [H, Nq, Nk] (then `mask` has batch 1), non-zero selects. `mask` has
 * the same sides and is written whole. */
VIDSPARSE_API int vidsparse_mask_from_bool(const vidsparse_tensor* map, const vidsparse_mask* mask);

/* `indices` i32 [B, H, Nq, M], `counts` i32 [B, H, Nq]: the first `counts` entries of a list;
 * counts are clamped to [0, M], out-of-range indices ignored, duplicates count once. `mask` is
 * written whole. */
VIDSPARSE_API int vidsparse_mask_from_indices(const vidsparse_tensor* indices,
                                              const vidsparse_tensor* counts,
                                              const vidsparse_mask* mask);

/* `map`: u8 [B, H, Nq, Nk], written whole with 0 and 1. */
VIDSPARSE_API int vidsparse_mask_to_bool(const vidsparse_mask* mask, const vidsparse_tensor* map);

/* `indices` i32 [B, H, Nq, M] ascending, unused entries -1; `counts` i32 [B, H, Nq]. Refused when
 * a row has more than M. */
VIDSPARSE_API int vidsparse_mask_to_indices(const vidsparse_mask* mask,
                                            const vidsparse_tensor* indices,
                                            const vidsparse_tensor* counts);

/* Key-major copy: `transposed` has query and key tiles exchanged and is written whole. */
VIDSPARSE_API int vidsparse_mask_transpose(const vidsparse_mask* mask,
                                           const vidsparse_mask* transposed);

/* Always-selected tiles for vidsparse_selection.always: each sets bits in `mask` [any, any, Nq, Nk]
 * and leaves the others, so several can be joined; clear the words first.
 * Each query tile's own tile, where query and key sequences are the same. */
VIDSPARSE_API int vidsparse_mask_add_own_tile(const vidsparse_plan* plan,
                                              const vidsparse_mask* mask);
/* The tiles of the first tile row in time of every key video. */
VIDSPARSE_API int vidsparse_mask_add_first_frame(const vidsparse_plan* plan,
                                                 const vidsparse_mask* mask);
/* Key video tiles within dt, dh, dw tiles of the query tile's place (same segment). */
VIDSPARSE_API int vidsparse_mask_add_window(const vidsparse_plan* plan, int64_t dt, int64_t dh,
                                            int64_t dw, const vidsparse_mask* mask);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VIDSPARSE_VIDSPARSE_H_ */
