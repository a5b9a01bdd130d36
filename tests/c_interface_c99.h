#ifndef VIDSPARSE_TESTS_C_INTERFACE_C99_H_
#define VIDSPARSE_TESTS_C_INTERFACE_C99_H_

#include "vidsparse/vidsparse.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A grid with a text segment before it, f32, gate 1. Buffers are dense; the caller's. */
typedef struct c99_case {
  const char* backend;
  int64_t text, t, h, w, heads, head_dim, top_k;
  float *q, *k, *v, *dout; /* [1, tokens, heads, head_dim] */
  float *out, *dq, *dk, *dv;
} c99_case;

/* The whole op forward and backward as a C program writes it. NULL, or the failing call's text. */
const char* c99_whole_op(const c99_case* run);

#ifdef __cplusplus
}
#endif

#endif
