#include "restore.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <numeric>

#include "parallel.h"
#include "shared.h"
#include "wiener.h"

namespace mrisr::runtime {
namespace {

constexpr Index kGrain = 1 << 16;

// mrisr/physics/wiener.py `noise_bands`.
std::array<double, 3> noise_bands(const Job& job) {
  std::array<double, 3> band{};
  for (int d = 0; d < 3; ++d) {
    const AxisPsf& psf = job.psf[d];
    const double voxel = job.source.voxel[d];
    band[d] = psf.kind == MRISR_PSF_KSPACE && psf.width > voxel ? 0.5 * std::min(1.0, voxel / psf.width) : 0.5;
  }
  return band;
}

// mrisr/physics/wiener.py `highest`.
std::array<int, shared::kHighest> highest(const std::array<float, kCosines>& shares) {
  std::array<int, shared::kHighest> chosen{};
  std::array<int, kCosines - 1> order;  // without the mean
  std::iota(order.begin(), order.end(), 1);
  const auto sum = [](int k) { return k / 16 + k / 4 % 4 + k % 4; };
  std::sort(order.begin(), order.end(), [&](int a, int b) { return sum(a) != sum(b) ? sum(a) > sum(b) : a < b; });
  std::array<float, kCosines> most = shares;
  std::sort(most.begin() + 1, most.end(), std::greater<>());
  const float held = static_cast<float>(shared::kHeld) * *std::max_element(shares.begin(), shares.end()),
              least = std::min(held, static_cast<float>(shared::kAlike) * most[shared::kHighest]);
  std::size_t count = 0;
  for (int k : order)
    if (shares[k] >= least && count < chosen.size()) chosen[count++] = k;
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

// The quantile of `n` values, between two of them in proportion; they lose their order.
double quantile(float* values, Index n, double share) {
  const double place = share * static_cast<double>(n - 1);
  const Index below = static_cast<Index>(place);
  std::nth_element(values, values + below, values + n);
  const double a = values[below];
  if (below + 1 >= n) return a;
  const double b = *std::min_element(values + below + 1, values + n);
  return a + (b - a) * (place - static_cast<double>(below));
}

// mrisr/physics/wiener.py `anatomy`.
double anatomy(const Job& job, const std::array<double, 3>& band) {
  const bool within = std::any_of(job.psf.begin(), job.psf.end(), [](const AxisPsf& p) { return !p.slice(); });
  double resolved = 1;
  int count = 0;
  for (int d = 0; d < 3; ++d) {
    if (within && job.psf[d].slice()) continue;
    resolved *= job.source.voxel[d] * 0.5 / band[d];
    ++count;
  }
  return shared::kAnatomy * std::pow(resolved, shared::kGrowth / count);
}

// Standard deviation; negative where there is too little foreground.
double noise_level(const Job& job, const Workspace& w, const std::array<float, kCosines>& shares, double least) {
  const auto chosen = highest(shares);
  const auto level = static_cast<float>(job.model->config.intensity.foreground);
  float* const energy = w.restore.energies;
  const Index found = cpu::cosine_energies(energy, shared::kMostBlocks, w.lr, job.source.shape.data(), level,
                                           shares.data(), chosen.data(), static_cast<int>(chosen.size()));
  if (found < shared::kFewestBlocks) return -1;
  const double power = quantile(energy, found, shared::kQuiet) / shared::kQuietEnergy;
  return std::sqrt(std::max(0.0, power - least * least));
}

// The scan without its noise: in w.restore.kept or twice, or a pilot where the noise is not known.
const float* signal_of(const Job& job, const Workspace& w) {
  const auto& r = w.restore;
  const Triple& coarse = job.source.shape;
  std::array<float, kCosines> shares{}, variance{};
  const std::array<double, 3> band = noise_bands(job);
  cosine_shares(shares.data(), band.data());
  const float* const pilot = job.answer_is_pilot() ? r.pilot : w.lr;
  const double sigma = noise_level(job, w, shares, anatomy(job, band));
  if (sigma < 0) {
    char text[200];  // said from the stack: a run allocates nothing
    std::snprintf(text, sizeof text,
                  "denoise: too little foreground to know the noise (64 blocks of 4 x 4 x 4 voxels are needed); %s",
                  job.answer_is_pilot() ? "what of the scan is noise the network alone says" : "all of it stays");
    job.model->say(MRISR_LOG_WARNING, text);
    return pilot;
  }
  if (sigma == 0)
    job.model->say(MRISR_LOG_WARNING,
                   "denoise: no more noise was found than what anatomy alone looks like: nothing is taken out");
  const auto pass = [&](float* out, const float* by, double level) {
    for (Index k = 0; k < kCosines; ++k) variance[k] = static_cast<float>(level * level * shares[k]);
    cpu::wiener(out, w.lr, by, coarse.data(), variance.data(), r.scratch, job.threads);
  };
  pass(r.kept, pilot, sigma);
  if (!job.answer_is_pilot()) return r.kept;
  pass(r.twice, r.kept, shared::kSecond * sigma);
  return r.twice;
}

}  // namespace

void restore_signal(const Job& job, const Workspace& w) {
  const auto& r = w.restore;
  const Triple &fine = job.target.shape, &coarse = job.source.shape;
  job.forward.apply(r.pilot, w.y, fine, r.a, r.b, w.scratch, job.threads);
  const auto share = static_cast<float>(job.back_projection()), gone = static_cast<float>(job.denoise);
  const float* const signal = job.filters() ? signal_of(job, w) : nullptr;
  parallel_for(product(coarse), kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) {
      const float noise = signal != nullptr ? (w.lr[i] - signal[i]) * gone : 0.0f;
      r.kept[i] = (w.lr[i] - r.pilot[i]) * share - noise;
    }
  });
  job.start.apply(w.residual, r.kept, coarse, r.a, r.b, w.scratch, job.threads);
  parallel_for(product(fine), kGrain, job.threads, [&](Index begin, Index end) {
    for (Index i = begin; i < end; ++i) w.y[i] += w.residual[i];
  });
}

}  // namespace mrisr::runtime
