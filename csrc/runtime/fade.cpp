#include "fade.h"

#include <algorithm>

#include "../core/fade.h"
#include "foreground.h"

namespace mrisr::runtime {
namespace {

// What does not depend on the scan.
Fade fade_of(const Job& job) {
  Fade f{};
  for (int d = 0; d < 3; ++d) {
    f.coarse[d] = job.source.shape[d], f.fine[d] = job.target.shape[d];
    f.between.plain[d] = job.plain.matrix(d), f.between.share[d] = job.linear.matrix(d);
    f.ends[d] = job.ends[d].empty() ? nullptr : job.ends[d].data();
  }
  return f;
}

// What values a result may have: mrisr/infer/fade.py, Limits.
Limits limits_of(const Job& job, const Workspace& w, float zero) {
  const auto [lowest, highest] = std::minmax_element(w.lr, w.lr + product(job.source.shape));
  const float floor = std::min(zero, *lowest);
  return {floor, *highest + static_cast<float>(job.model->config.fade.most) * (*highest - floor),
          static_cast<float>(job.model->config.fade.least)};
}

}  // namespace

std::int64_t fade_scratch(const Job& job) { return cpu::fade_scratch(fade_of(job), job.threads); }

void fade(const Job& job, const Workspace& w, float zero) {
  bool open[3];
  for (int d = 0; d < 3; ++d) open[d] = !job.psf[d].slice();
  cpu::tissue(w.fade.tissue, w.lr, job.source.shape.data(), open, job.model->config.fade.tissue, w.fade.mean,
              w.fade.spare, job.threads);
  Fade f = fade_of(job);
  f.limits = limits_of(job, w, zero);
  cpu::fade(w.y, job.samples > 1 ? w.spread : nullptr, w.lr, w.fade.tissue, f, w.fade.scratch, job.threads);
}

void resample_background(const Job& job, const Workspace& w) {
  std::copy_n(w.background, product(job.source.shape), w.fade.head);
  job.linear.apply(w.fade.weights, w.fade.head, job.source.shape, w.fade.a, w.fade.b, w.scratch, job.threads);
}

}  // namespace mrisr::runtime
