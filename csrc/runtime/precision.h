// bfloat16 on processors that have it, checked against float32: mrisr/infer/engines/precision.py.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bundle.h"
#include "mrisr.h"

namespace mrisr::runtime {

struct Precision {
  mrisr_precision value = MRISR_PRECISION_AUTO;  // AUTO: an engine of the caller's, whose affair it is
  std::string why;
};

// Inputs of the network for one fixed tile, of which bfloat16 has to give what float32 gives.
struct FixedTile {
  explicit FixedTile(const Config& config);
  std::int64_t edge;
  std::vector<float> x, y, vector, guidance;
};

// "AMX-BF16, AVX512-BF16", as the processor states itself; empty where it has neither.
std::string bfloat16_instructions();

// Root mean square of values - expected, as a share of that of expected; infinite where something is not finite.
double difference(const std::vector<float>& values, const std::vector<float>& expected);

// What to compute in, and why. `missing`: why bfloat16 cannot be had, or empty; `measure`: its difference from float32 on
// the fixed tile, called where it decides. Raises MRISR_ERROR_ENGINE where bfloat16 was asked for and cannot be had.
Precision decide(mrisr_precision request, const std::string& missing, const std::function<double()>& measure);

}  // namespace mrisr::runtime
