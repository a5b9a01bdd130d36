#include <limits>

#include "reference/attended.hpp"
#include "reference/lanes.hpp"
#include "reference/op.hpp"

namespace vidsparse::reference {
namespace {

template <class T>
struct AttendLane {
  Attended<T> attended;
  T* scores;  // [n], then weights
  T* query;   // [D]
  T* gate;    // [D]
  T* coarse;  // [D]: oc of the tile
  T* out;     // [D]

  AttendLane(core::Arena& arena, const core::Setting& setting)
      : attended(arena, setting),
        scores(arena.take<T>(setting.key.tokens())),
        query(arena.take<T>(setting.problem.head_dim)),
        gate(arena.take<T>(setting.problem.head_dim)),
        coarse(arena.take<T>(setting.problem.head_dim)),
        out(arena.take<T>(setting.problem.head_dim)) {}
};

}  // namespace

template <class Arithmetic>
std::size_t Op<Arithmetic>::workspace_bytes(const AttendArgs&) const {
  return lanes_bytes<AttendLane<Scalar>>(setting_);
}

template <class Arithmetic>
void Op<Arithmetic>::attend(const AttendArgs& args, Workspace workspace) const {
  const Side query(setting_.query, args.lengths.query);
  const Side key(setting_.key, args.lengths.key);
  const auto scale = static_cast<Scalar>(scale_of(setting_.problem, args.scale));
  const std::int64_t depth = setting_.problem.head_dim;
  const std::int64_t group = setting_.problem.heads_q / setting_.problem.key_heads();
  const bool gated = !args.gate.is_none();

  for_each_key_head<AttendLane<Scalar>>(
      setting_, workspace,
      [&](const AttendLane<Scalar>& lane, std::int64_t batch, std::int64_t key_head) {
        for (std::int64_t head = key_head * group; head < (key_head + 1) * group; ++head) {
          clear_head(args.out, batch, head);
          const std::int64_t lse_offset = args.lse ? args.lse.offset(batch, head) : 0;
          for (std::int64_t token = 0; args.lse && token < args.lse.shape[2]; ++token) {
            store(args.lse, lse_offset + token, -std::numeric_limits<double>::infinity());
          }

          for (std::int64_t tile = 0; tile < query.tiles(); ++tile) {
            if (query.valid(batch, tile) == 0) continue;
            const std::int64_t n =
                lane.attended.gather(key, args.k, args.v, batch, key_head,
                                     args.mask.row(batch, head, tile), args.mask.shape.row_words());
            if (gated) load_row(args.oc, batch, head, tile, lane.coarse);

            query.for_each_token(batch, tile, [&](std::int64_t token) {
              load_row(args.q, batch, token, head, lane.query);
              times_columns(round_, lane.query, lane.attended.key_columns, depth, n, scale,
                            lane.scores);
              const SoftmaxSums<Scalar> sums = softmax(round_, lane.scores, n);
              weighted_sum(round_, lane.scores, lane.attended.values, n, depth, Scalar{1},
                           lane.out);
              // A row without weight is 0 even over infinite values.
              if (sums.sum == Scalar{0}) std::fill_n(lane.out, depth, Scalar{0});
              if (gated) {
                load_gate(args.gate, batch, token, head, depth, lane.gate);
                for (std::int64_t d = 0; d < depth; ++d) {
                  lane.out[d] = round_(lane.out[d] + lane.gate[d] * lane.coarse[d]);
                }
              }
              store_row(args.out, batch, token, head, lane.out);
              if (args.lse) store(args.lse, lse_offset + token, sums.log_sum_exp());
            });
          }
        }
      });
}

template std::size_t Op<ExactArithmetic<double>>::workspace_bytes(const AttendArgs&) const;
template void Op<ExactArithmetic<double>>::attend(const AttendArgs&, Workspace) const;
template std::size_t Op<ExactArithmetic<float>>::workspace_bytes(const AttendArgs&) const;
template void Op<ExactArithmetic<float>>::attend(const AttendArgs&, Workspace) const;
template std::size_t Op<PlainArithmetic>::workspace_bytes(const AttendArgs&) const;
template void Op<PlainArithmetic>::attend(const AttendArgs&, Workspace) const;

}  // namespace vidsparse::reference
