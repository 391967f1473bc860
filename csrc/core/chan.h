// Statistics of a union from the statistics of its parts (Chan, Golub, LeVeque 1979), in float64.
#pragma once

#include "tensor.h"

namespace mrisr {

struct Moments {
  double n = 0, mean = 0, m2 = 0;

  MRISR_HD void add(double n_b, double mean_b, double m2_b) {
    if (n_b == 0) return;
    const double total = n + n_b, delta = mean_b - mean;
    mean += delta * (n_b / total);
    m2 += m2_b + delta * delta * (n * n_b / total);
    n = total;
  }
};

}  // namespace mrisr
