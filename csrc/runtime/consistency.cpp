#include "consistency.h"

#include <algorithm>
#include <cmath>

#include "misfit.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

class Correction {
 public:
  Correction(const Job& job, const Workspace& w, double noise)
      : job_(job),
        w_(w),
        c_(w.consistency),
        coarse_(job.source.shape),
        fine_(job.target.shape),
        level_(static_cast<float>(job.model->config.intensity.foreground)),
        sigma_(std::max(noise, job.model->config.consistency.noise_floor)) {}

  void run(mrisr_run_info& info) {
    info.chi2_before = info.chi2_after = residual();
    if (!job_.corrects() || info.chi2_before <= 1.0) return;
    job_.to_modes.apply(c_.modes, c_.residual, coarse_, c_.a, c_.b, w_.scratch, job_.threads);
    const double damping = discrepancy();
    const float null = static_cast<float>(shared::kNull) * static_cast<float>(top());
    each_mode([&](std::int64_t i, std::int64_t, float spectrum) {
      c_.residual[i] = spectrum > null ? c_.modes[i] / (spectrum + static_cast<float>(damping)) : 0.0f;
    });
    job_.from_modes.apply(c_.modes, c_.residual, coarse_, c_.a, c_.b, w_.scratch, job_.threads);
    job_.adjoint.apply(w_.residual, c_.modes, coarse_, c_.a, c_.b, w_.scratch, job_.threads);
    parallel_for(product(fine_), 1 << 16, job_.threads, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i) w_.y[i] += w_.residual[i];
    });
    info.corrected = 1;
    info.chi2_after = residual();
  }

 private:
  std::int64_t plane() const { return coarse_[1] * coarse_[2]; }

  // c_.residual = (lr - H y) in the foreground, else 0; its chi^2 per degree of freedom.
  double residual() {
    job_.forward.apply(c_.residual, w_.y, fine_, c_.a, c_.b, w_.scratch, job_.threads);
    const Misfit found = cpu::misfit(c_.residual, w_.lr, level_, coarse_[0], plane(), c_.partial, job_.threads);
    inside_ = static_cast<double>(found.voxels);
    return inside_ > 0 ? found.squares / inside_ / (sigma_ * sigma_) : 0.0;
  }

  double value(int axis, std::int64_t i) const { return job_.spectrum[axis].empty() ? 1.0 : job_.spectrum[axis][i]; }

  // call(voxel, plane, eigenvalue) of every mode.
  template <class Call>
  void each_mode(const Call& call) const {
    parallel_for(coarse_[0], 1, job_.threads, [&](Index begin, Index end) {
      for (Index x = begin; x < end; ++x)
        for (Index y = 0; y < coarse_[1]; ++y) {
          const double two = value(0, x) * value(1, y);
          for (Index z = 0; z < coarse_[2]; ++z)
            call((x * coarse_[1] + y) * coarse_[2] + z, x, static_cast<float>(two * value(2, z)));
        }
    });
  }

  // The largest eigenvalue.
  double top() const {
    double product = 1;
    for (int d = 0; d < 3; ++d)
      if (!job_.spectrum[d].empty()) product *= *std::max_element(job_.spectrum[d].begin(), job_.spectrum[d].end());
    return static_cast<float>(product);
  }

  // What is left of the residual's power at a damping.
  double left(double log_damping) {
    const double damping = std::exp(log_damping);
    std::fill_n(c_.partial, coarse_[0], 0.0);
    each_mode([&](std::int64_t i, std::int64_t x, float spectrum) {
      const double share = damping / (static_cast<double>(spectrum) + damping), mode = c_.modes[i];
      c_.partial[x] += mode * mode * share * share;
    });
    double sum = 0;
    for (Index x = 0; x < coarse_[0]; ++x) sum += c_.partial[x];
    return sum;
  }

  // The largest damping with chi^2 = 1 (Morozov's discrepancy principle), by bisection of its logarithm.
  double discrepancy() {
    const double target = sigma_ * sigma_ * inside_;
    double low = std::log(job_.model->config.consistency.smallest_eigenvalue * top()),
           high = std::log(shared::kStrongest * top());
    if (left(low) > target) return std::exp(low);  // modes that H removes cannot be fitted: do what a stable solve can
    for (int round = 0; round < shared::kBisections; ++round) {
      const double middle = 0.5 * (low + high);
      (left(middle) <= target ? low : high) = middle;
    }
    return std::exp(low);
  }

  const Job& job_;
  const Workspace& w_;
  decltype(Workspace::consistency) const& c_;
  const Triple &coarse_, &fine_;
  float level_;
  double sigma_, inside_ = 0;
};

}  // namespace

void make_consistent(const Job& job, const Workspace& w, double noise, mrisr_run_info& info) {
  Correction(job, w, noise).run(info);
}

}  // namespace mrisr::runtime
