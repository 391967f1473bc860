#include "workspace.h"

#include <algorithm>

#include "fade.h"
#include "shared.h"
#include "wiener.h"

namespace mrisr::runtime {
namespace {

void lay_out_band(Workspace& w, Arena& arena, const Triple& target) {
  const std::int64_t longest = *std::max_element(target.begin(), target.end());
  w.band.matrix = arena.take<double>(longest * longest);
  w.band.work = arena.take<double>(2 * longest + 1);
  w.band.a = arena.take<float>(product(target));
  w.band.b = arena.take<float>(product(target));
}

void lay_out_fade(Workspace& w, Arena& arena, const Job& job) {
  const Triple& coarse = job.source.shape;
  const std::int64_t n = product(coarse), between = job.linear.between(coarse);
  const std::size_t shared = arena.mark();
  w.fade.tissue = arena.take<std::uint8_t>(n);
  w.fade.spare = arena.take<std::uint8_t>(n);
  const std::size_t after = arena.mark();
  w.fade.mean = arena.take<float>(n);
  arena.back_to(after);
  w.fade.scratch = arena.take<float>(fade_scratch(job));
  arena.back_to(shared);
  w.fade.head = arena.take<float>(n);
  w.fade.weights = arena.take<float>(product(job.target.shape));
  w.fade.a = arena.take<float>(between);
  w.fade.b = arena.take<float>(between);
}

void lay_out_restore(Workspace& w, Arena& arena, const Job& job) {
  const Triple &fine = job.target.shape, &coarse = job.source.shape;
  const std::int64_t between = std::max(job.forward.between(fine), job.start.between(coarse));
  w.restore.pilot = arena.take<float>(product(coarse));
  w.restore.kept = arena.take<float>(product(coarse));
  w.restore.a = arena.take<float>(between);
  w.restore.b = arena.take<float>(between);
  if (!job.filters()) return;
  if (job.answer_is_pilot()) w.restore.twice = arena.take<float>(product(coarse));
  w.restore.energies = arena.take<float>(shared::kMostBlocks);
  w.restore.scratch = arena.take<float>(cpu::wiener_scratch(coarse.data(), job.threads));
}

void lay_out_consistency(Workspace& w, Arena& arena, const Job& job) {
  const Triple &fine = job.target.shape, &coarse = job.source.shape;
  const std::int64_t between = std::max({job.forward.between(fine), job.adjoint.between(coarse),
                                         job.to_modes.between(coarse), job.from_modes.between(coarse)});
  w.consistency.residual = arena.take<float>(product(coarse));
  w.consistency.modes = arena.take<float>(product(coarse));
  w.consistency.a = arena.take<float>(between);
  w.consistency.b = arena.take<float>(between);
  w.consistency.partial = arena.take<double>(2 * coarse[0]);
}

}  // namespace

Workspace lay_out(const Job& job, void* base) {
  const Config& config = job.model->config;
  const Triple &target = job.target.shape, &source = job.source.shape;
  const std::int64_t n = product(source), fine = product(target);
  Workspace w{};
  Arena arena(base);
  w.lr = arena.take<float>(n);
  w.y = arena.take<float>(fine);
  w.residual = arena.take<float>(fine);
  if (job.sample) w.state = arena.take<float>(fine);
  if (job.steps > 1) w.following = arena.take<float>(fine), w.before = arena.take<float>(fine);
  if (job.samples > 1) w.mean = arena.take<float>(fine), w.spread = arena.take<float>(fine);
  std::int64_t scratch = 1;
  for (const Axes* axes :
       {&job.start, &job.forward, &job.adjoint, &job.to_modes, &job.from_modes, &job.plain, &job.linear})
    scratch = std::max(scratch, axes->scratch(job.threads));
  for (int d = 0; d < 3; ++d) {
    scratch = std::max<std::int64_t>(scratch, cpu::axis_scratch(target[d], job.threads));
    const std::int64_t longest = job.tile_fixed ? std::max(target[d], job.tile[d]) : target[d];
    w.starts[d] = arena.take<std::int64_t>(most_starts(longest, config));
    w.weights[d] = arena.take<float>(most_weights(longest, config));
    w.band.bands[d] = arena.take<cpu::AxisBand>(cpu::axis_bands(target[d]));
    w.band.coefficients[d] = arena.take<float>(cpu::axis_coefficients(target[d], target[d]));
  }
  w.scratch = arena.take<float>(scratch);
  w.vector = arena.take<float>(config.vector.length);
  w.bricks = arena.take<std::uint8_t>(product(brick_counts(target, config)));
  w.spare_bricks = arena.take<std::uint8_t>(product(brick_counts(target, config)));

  w.background = arena.take<std::uint8_t>(n);

  const std::size_t shared = arena.mark();
  w.start.values = arena.take<float>(n);
  w.start.spare = arena.take<float>(n);
  w.start.sample = arena.take<float>(2 * std::min(config.noise.sample, n));
  arena.back_to(shared);
  w.start.a = arena.take<float>(job.start.between(source));
  w.start.b = arena.take<float>(job.start.between(source));
  arena.back_to(shared);
  w.network.tile_x = arena.take<float>(job.largest_tile);
  w.network.tile_y = arena.take<float>(job.largest_tile);
  w.network.tile_f = arena.take<float>(job.largest_tile);
  w.network.tile_spare = arena.take<float>(job.largest_tile);
  w.network.guidance = arena.take<float>(config.guidance.channels * (job.largest_tile / 512 + 1));
  arena.back_to(shared);
  lay_out_band(w, arena, target);
  arena.back_to(shared);
  lay_out_fade(w, arena, job);
  arena.back_to(shared);
  if (job.restores()) lay_out_restore(w, arena, job);
  arena.back_to(shared);
  if (job.compares()) lay_out_consistency(w, arena, job);
  w.bytes = arena.peak();
  return w;
}

}  // namespace mrisr::runtime
