/* Compiled as C99 with -pedantic: the header is plain C, and its helpers are enough for a program.
 */
#include "c_interface_c99.h"

#include <stdlib.h>

/* Threads of a program that has none to lend. */
static void one_after_the_other(void* context, int64_t count,
                                void (*task)(void* arg, int64_t index), void* arg) {
  int64_t* calls = (int64_t*)context;
  for (int64_t i = count; i > 0; --i) task(arg, i - 1);
  *calls += 1;
}

/* malloc promises 16 bytes of alignment, a workspace needs 64. */
static void* align_64(void* block) { return (void*)(((uintptr_t)block + 63) / 64 * 64); }

static int forward_and_backward(const c99_case* run, const vidsparse_plan* plan, void** blocks) {
  vidsparse_plan_info info = vidsparse_plan_info_init();
  vidsparse_selection selection = vidsparse_by_top_k(run->top_k);
  vidsparse_forward_args forward = vidsparse_forward_args_init();
  vidsparse_backward_args backward = vidsparse_backward_args_init();
  size_t bytes = 0;
  int status = vidsparse_plan_get_info(plan, &info);
  if (status != VIDSPARSE_OK) return status;

  const int64_t rows = run->heads * info.query_tiles;
  blocks[0] = malloc((size_t)info.mask_words * 8);
  blocks[1] = malloc((size_t)(run->heads * info.query_tokens) * sizeof(float));
  blocks[2] = malloc((size_t)(rows * run->head_dim) * sizeof(float));
  blocks[3] = malloc((size_t)rows * sizeof(float));
  blocks[4] = malloc((size_t)rows * sizeof(float));

  forward.q =
      vidsparse_dense(run->q, VIDSPARSE_F32, 4, 1, info.query_tokens, run->heads, run->head_dim);
  forward.k = forward.v = forward.out = forward.q;
  forward.k.data = run->k;
  forward.v.data = run->v;
  forward.out.data = run->out;
  forward.selection = &selection;
  forward.gate.kind = VIDSPARSE_GATE_SCALAR;
  forward.gate.value = 1;
  forward.mask = info.mask;
  forward.mask.words = (uint64_t*)blocks[0];
  forward.lse = vidsparse_dense(blocks[1], VIDSPARSE_F32, 3, 1, run->heads, info.query_tokens, 0);
  forward.oc =
      vidsparse_dense(blocks[2], VIDSPARSE_F32, 4, 1, run->heads, info.query_tiles, run->head_dim);
  forward.coarse_max =
      vidsparse_dense(blocks[3], VIDSPARSE_F32, 3, 1, run->heads, info.query_tiles, 0);
  forward.coarse_sum = forward.coarse_max;
  forward.coarse_sum.data = blocks[4];
  status = vidsparse_forward_workspace(plan, &forward, &bytes);
  if (status != VIDSPARSE_OK) return status;
  blocks[5] = malloc(bytes + 64);
  status = vidsparse_forward(plan, &forward, align_64(blocks[5]), bytes, NULL);
  if (status != VIDSPARSE_OK) return status;

  backward.q = forward.q;
  backward.k = forward.k;
  backward.v = forward.v;
  backward.mask = forward.mask;
  backward.gate = forward.gate;
  backward.out = forward.out;
  backward.lse = forward.lse;
  backward.oc = forward.oc;
  backward.coarse_max = forward.coarse_max;
  backward.coarse_sum = forward.coarse_sum;
  backward.dout = backward.dq = backward.dk = backward.dv = forward.q;
  backward.dout.data = run->dout;
  backward.dq.data = run->dq;
  backward.dk.data = run->dk;
  backward.dv.data = run->dv;
  status = vidsparse_backward_workspace(plan, &backward, &bytes);
  if (status != VIDSPARSE_OK) return status;
  blocks[6] = malloc(bytes + 64);
  return vidsparse_backward(plan, &backward, align_64(blocks[6]), bytes, NULL);
}

const char* c99_whole_op(const c99_case* run) {
  vidsparse_segment segments[2];
  vidsparse_problem problem = vidsparse_problem_init();
  vidsparse_plan_options options = vidsparse_plan_options_init();
  vidsparse_plan* plan = NULL;
  void* blocks[7] = {NULL, NULL, NULL, NULL, NULL, NULL, NULL};
  int64_t calls = 0;
  int status;

  segments[0] = vidsparse_plain(run->text);
  segments[1] = vidsparse_video(run->t, run->h, run->w);
  problem.query.segments = segments;
  problem.query.segment_count = 2;
  problem.heads_q = run->heads;
  problem.head_dim = run->head_dim;
  problem.dtype = VIDSPARSE_F32;
  options.backend = run->backend;
  options.parallel_for = one_after_the_other;
  options.parallel_context = &calls;
  options.concurrency = 2;

  status = vidsparse_plan_create(&problem, &options, &plan);
  if (status == VIDSPARSE_OK) status = forward_and_backward(run, plan, blocks);
  vidsparse_plan_destroy(plan);
  for (int i = 0; i < 7; ++i) free(blocks[i]);
  return status == VIDSPARSE_OK ? NULL : vidsparse_last_error();
}
