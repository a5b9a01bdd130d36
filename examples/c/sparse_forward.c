/* Video sparse attention over random tokens of a small grid with text before it, from plain C. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <vidsparse/vidsparse.h>

static float random_value(void) { return (float)rand() / (float)RAND_MAX * 2.0f - 1.0f; }

static float* random_values(size_t count) {
  float* values = malloc(count * sizeof *values);
  for (size_t i = 0; values != NULL && i < count; ++i) values[i] = random_value();
  return values;
}

/* Runs the op and checks it: attention averages values, so nothing exceeds the largest of them. */
static int forward(const vidsparse_plan* plan, int64_t heads, int64_t head_dim) {
  vidsparse_plan_info info = vidsparse_plan_info_init();
  vidsparse_selection selection = vidsparse_by_top_k(4);
  vidsparse_forward_args args = vidsparse_forward_args_init();
  void* memory = NULL;
  size_t bytes = 0;
  int failed = 1;

  if (vidsparse_plan_get_info(plan, &info) != VIDSPARSE_OK) {
    fprintf(stderr, "%s\n", vidsparse_last_error());
    return 1;
  }
  const size_t count = (size_t)(info.query_tokens * heads * head_dim);
  float* q = random_values(count);
  float* k = random_values(count);
  float* v = random_values(count);
  float* out = malloc(count * sizeof *out);
  if (q == NULL || k == NULL || v == NULL || out == NULL) {
    fprintf(stderr, "out of memory\n");
    goto done;
  }

  args.q = vidsparse_dense(q, VIDSPARSE_F32, 4, 1, info.query_tokens, heads, head_dim);
  args.k = args.v = args.out = args.q;
  args.k.data = k;
  args.v.data = v;
  args.out.data = out;
  args.selection = &selection;
  if (vidsparse_forward_workspace(plan, &args, &bytes) != VIDSPARSE_OK) {
    fprintf(stderr, "%s\n", vidsparse_last_error());
    goto done;
  }
  /* malloc promises 16 bytes of alignment, a workspace needs 64. */
  memory = malloc(bytes + 63);
  if (memory == NULL) {
    fprintf(stderr, "out of memory\n");
    goto done;
  }
  void* workspace = (void*)(((uintptr_t)memory + 63) / 64 * 64);
  if (vidsparse_forward(plan, &args, workspace, bytes, NULL) != VIDSPARSE_OK) {
    fprintf(stderr, "%s\n", vidsparse_last_error());
    goto done;
  }

  float largest = 0;
  for (size_t i = 0; i < count; ++i) largest = fmaxf(largest, fabsf(v[i]));
  failed = 0;
  for (size_t i = 0; i < count && !failed; ++i) failed = !(fabsf(out[i]) <= largest * 1.0001f);
  if (failed) {
    fprintf(stderr, "out exceeds the largest value, %g\n", (double)largest);
  } else {
    printf("vidsparse %s, backend %s: %lld tokens in %lld tiles\n", vidsparse_version(),
           info.backend, (long long)info.query_tokens, (long long)info.query_tiles);
  }

done:
  free(memory);
  free(out);
  free(v);
  free(k);
  free(q);
  return failed;
}

int main(void) {
  vidsparse_segment segments[2];
  vidsparse_problem problem = vidsparse_problem_init();
  vidsparse_plan* plan = NULL;
  const unsigned seed = (unsigned)time(NULL);

  printf("seed %u\n", seed);
  srand(seed);
  segments[0] = vidsparse_plain(77);
  segments[1] = vidsparse_video(4, 10, 13); /* ragged in h and w */
  problem.query.segments = segments;
  problem.query.segment_count = 2;
  problem.heads_q = 2;
  problem.head_dim = 64;
  problem.dtype = VIDSPARSE_F32;
  if (vidsparse_plan_create(&problem, NULL, &plan) != VIDSPARSE_OK) {
    fprintf(stderr, "%s\n", vidsparse_last_error());
    return 1;
  }
  const int failed = forward(plan, problem.heads_q, problem.head_dim);
  vidsparse_plan_destroy(plan);
  return failed;
}
