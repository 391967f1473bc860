#include "fade.h"

#include <algorithm>

#include "foreground.h"

namespace mrisr::runtime {
namespace {

constexpr Index kGrain = 1 << 16;

// How much of the network's answer counts, on the target, into w.fade.weights.
void fill_weights(const Job& job, const Workspace& w) {
  const Triple &coarse = job.source.shape, &fine = job.target.shape;
  bool open[3];
  for (int d = 0; d < 3; ++d) open[d] = !job.psf[d].slice();
  cpu::tissue(w.fade.tissue, w.lr, coarse.data(), open, job.model->config.fade.tissue, w.fade.mean, w.fade.spare,
              job.threads);
  std::copy_n(w.fade.tissue, product(coarse), w.fade.head);
  job.linear.apply(w.fade.weights, w.fade.head, coarse, w.fade.a, w.fade.b, w.scratch, job.threads);
  const auto end = [&](int axis, Index i) {
    return job.ends[axis].empty() ? 1.0f : job.ends[axis][static_cast<std::size_t>(i)];
  };
  parallel_for(fine[0] * fine[1], 64, job.threads, [&](Index begin, Index stop) {
    for (Index row = begin; row < stop; ++row) {
      float* const line = w.fade.weights + row * fine[2];
      const float x = end(0, row / fine[1]), y = end(1, row % fine[1]);
      for (Index k = 0; k < fine[2]; ++k) line[k] = std::clamp(line[k], 0.0f, 1.0f) * x * y * end(2, k);
    }
  });
}

// What values a result may have: mrisr/infer/fade.py, Limits.
struct Limits {
  float floor, ceiling, least;

  Limits(const Job& job, const Workspace& w, float zero) {
    const auto [lowest, highest] = std::minmax_element(w.lr, w.lr + product(job.source.shape));
    floor = std::min(zero, *lowest);
    ceiling = *highest + static_cast<float>(job.model->config.fade.most) * (*highest - floor);
    least = static_cast<float>(job.model->config.fade.least);
  }
  float hold(float answer, float plain) const {
    const float lower = std::min(plain, (plain - floor) * least + floor);
    return std::min(std::max(answer, lower), std::max(plain, ceiling));
  }
};

}  // namespace

void fade(const Job& job, const Workspace& w, float zero) {
  const Limits limits(job, w, zero);
  fill_weights(job, w);
  float* const plain = w.residual;
  job.plain.apply(plain, w.lr, job.source.shape, w.fade.a, w.fade.b, w.scratch, job.threads);
  parallel_for(product(job.target.shape), kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      w.y[i] = (limits.hold(w.y[i], plain[i]) - plain[i]) * w.fade.weights[i] + plain[i];
      if (job.samples > 1) w.spread[i] *= w.fade.weights[i];
    }
  });
}

void resample_background(const Job& job, const Workspace& w) {
  std::copy_n(w.background, product(job.source.shape), w.fade.head);
  job.linear.apply(w.fade.weights, w.fade.head, job.source.shape, w.fade.a, w.fade.b, w.scratch, job.threads);
}

}  // namespace mrisr::runtime
