#include "precision.h"

#include <cmath>
#include <fstream>
#include <limits>
#include <sstream>

#include "error.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

std::string percent(double share) {
  std::ostringstream text;
  text.precision(3);
  text << 100 * share << " %";
  return text.str();
}

}  // namespace

FixedTile::FixedTile(const Config& config) : edge(shared::kTile) {
  const auto voxels = static_cast<std::size_t>(edge * edge * edge);
  x.assign(voxels, 0.0f);
  y.reserve(voxels);
  const auto at = [this](std::int64_t i) { return 2.0 * static_cast<double>(i) / static_cast<double>(edge - 1) - 1; };
  for (std::int64_t i = 0; i < edge; ++i)
    for (std::int64_t j = 0; j < edge; ++j)
      for (std::int64_t k = 0; k < edge; ++k) {
        const double a = at(i), b = at(j), c = at(k), radius = std::sqrt(a * a + b * b + c * c);
        const double folds = 0.5 + 0.25 * std::sin(19 * a) * std::sin(17 * b) * std::sin(15 * c);
        y.push_back(static_cast<float>(radius < 0.8 ? folds : radius < 0.9 ? 0.9 : 0.0));
      }
  const auto& v = config.vector;
  vector.assign(static_cast<std::size_t>(v.length), 0.0f);
  vector[v.log_sigma.first] = static_cast<float>(std::log(shared::kTileSigmaRatio) / v.log_sigma_unit);
  vector[v.mode.first] = static_cast<float>(v.mode_mean);
  vector[v.noise.first] = static_cast<float>(shared::kTileNoise / v.noise_unit);
  vector[v.noise_known.first] = 1;
  for (int axis = 0; axis < 3; ++axis) {
    vector[v.width.first + axis] = static_cast<float>(shared::kTileWidth);
    vector[v.spacing.first + axis] = static_cast<float>(shared::kTileWidth);
    vector[v.width_known.first + axis] = 1;
    for (std::size_t p = 0; p < v.profiles.size(); ++p)
      if (v.profiles[p] == "kspace")
        vector[v.profile.first + axis * static_cast<int>(v.profiles.size()) + static_cast<int>(p)] = 1;
  }
  const std::int64_t coarse = edge / config.guidance.stride;
  guidance.assign(static_cast<std::size_t>(config.guidance.channels * coarse * coarse * coarse), 0.0f);
}

std::string bfloat16_instructions() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::string names;
    std::istringstream flags(line);
    for (std::string flag; flags >> flag;)
      if (flag == "amx_bf16" || flag == "avx512_bf16")
        names += (names.empty() ? "" : ", ") + std::string(flag == "amx_bf16" ? "AMX-BF16" : "AVX512-BF16");
    return names;
  }
  return {};
}

double difference(const std::vector<float>& values, const std::vector<float>& expected) {
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (!std::isfinite(values[i])) return std::numeric_limits<double>::infinity();
    const double d = static_cast<double>(values[i]) - expected[i];
    apart += d * d;
    size += static_cast<double>(expected[i]) * expected[i];
  }
  return size > 0 ? std::sqrt(apart / size) : std::numeric_limits<double>::infinity();
}

Precision decide(mrisr_precision request, const std::string& missing, const std::function<double()>& measure) {
  if (request == MRISR_PRECISION_FLOAT32) return {MRISR_PRECISION_FLOAT32, "asked for"};
  const bool must = request == MRISR_PRECISION_BFLOAT16;
  if (!missing.empty()) {
    if (must)
      MRISR_FAIL(MRISR_ERROR_ENGINE, "precision: bfloat16 was asked for, but " << missing << "; use float32, or auto");
    return {MRISR_PRECISION_FLOAT32, "auto: " + missing};
  }
  const double rms = measure();
  if (rms <= shared::kTolerance)
    return {MRISR_PRECISION_BFLOAT16,
            (must ? "asked for, which this processor has (" : "auto, which this processor has (") +
                bfloat16_instructions() + "); differs from float32 by " + percent(rms) + " of a tile's residual (RMS)"};
  const std::string wrong = "bfloat16 differs from float32 by " + percent(rms) +
                            " of a tile's residual (RMS), at most " + percent(shared::kTolerance) + " expected";
  if (must) MRISR_FAIL(MRISR_ERROR_ENGINE, "precision: " << wrong << "; use float32, or auto");
  return {MRISR_PRECISION_FLOAT32, "auto: " + wrong};
}

}  // namespace mrisr::runtime
