#include "eigen.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "error.h"

namespace mrisr::runtime {
namespace {

constexpr int kMostSweeps = 60;

// a becomes the orthogonal Q with Q^T a Q tridiagonal: diagonal d, below it e[1 ..].
void tridiagonal(double* a, double* d, double* e, std::int64_t n) {
  const auto at = [a, n](std::int64_t i, std::int64_t j) -> double& { return a[i * n + j]; };
  for (std::int64_t i = n - 1; i > 0; --i) {
    double scale = 0, h = 0;
    for (std::int64_t k = 0; k < i; ++k) scale += std::fabs(at(i, k));
    if (i == 1 || scale == 0) {
      e[i] = at(i, i - 1);
    } else {
      for (std::int64_t k = 0; k < i; ++k) {
        at(i, k) /= scale;
        h += at(i, k) * at(i, k);
      }
      const double f = at(i, i - 1), g = f >= 0 ? -std::sqrt(h) : std::sqrt(h);
      e[i] = scale * g;
      h -= f * g;
      at(i, i - 1) = f - g;
      double sum = 0;
      for (std::int64_t j = 0; j < i; ++j) {
        at(j, i) = at(i, j) / h;
        double q = 0;
        for (std::int64_t k = 0; k <= j; ++k) q += at(j, k) * at(i, k);
        for (std::int64_t k = j + 1; k < i; ++k) q += at(k, j) * at(i, k);
        e[j] = q / h;
        sum += e[j] * at(i, j);
      }
      const double half = sum / (h + h);
      for (std::int64_t j = 0; j < i; ++j) {
        const double v = at(i, j), w = e[j] -= half * v;
        for (std::int64_t k = 0; k <= j; ++k) at(j, k) -= v * e[k] + w * at(i, k);
      }
    }
    d[i] = h;
  }
  d[0] = e[0] = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    if (d[i] != 0)
      for (std::int64_t j = 0; j < i; ++j) {
        double g = 0;
        for (std::int64_t k = 0; k < i; ++k) g += at(i, k) * at(k, j);
        for (std::int64_t k = 0; k < i; ++k) at(k, j) -= g * at(k, i);
      }
    d[i] = at(i, i);
    at(i, i) = 1;
    for (std::int64_t j = 0; j < i; ++j) at(j, i) = at(i, j) = 0;
  }
}

// rows of v are the columns of Q: a rotation then runs along memory.
void implicit_ql(double* d, double* e, double* v, std::int64_t n) {
  for (std::int64_t i = 1; i < n; ++i) e[i - 1] = e[i];
  e[n - 1] = 0;
  for (std::int64_t l = 0; l < n; ++l) {
    for (int sweep = 0;; ++sweep) {
      std::int64_t m = l;
      for (; m < n - 1; ++m) {
        const double size = std::fabs(d[m]) + std::fabs(d[m + 1]);
        if (std::fabs(e[m]) + size == size) break;
      }
      if (m == l) break;
      if (sweep == kMostSweeps) MRISR_FAIL(MRISR_ERROR_INTERNAL, "eigenvalues: no convergence");
      double g = (d[l + 1] - d[l]) / (2 * e[l]), r = std::hypot(g, 1.0);
      g = d[m] - d[l] + e[l] / (g + std::copysign(r, g));
      double s = 1, c = 1, p = 0;
      std::int64_t i = m - 1;
      for (; i >= l; --i) {
        double f = s * e[i];
        const double b = c * e[i];
        r = std::hypot(f, g);
        e[i + 1] = r;
        if (r == 0) {
          d[i + 1] -= p;
          e[m] = 0;
          break;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
        double *low = v + i * n, *high = low + n;
        for (std::int64_t k = 0; k < n; ++k) {
          f = high[k];
          high[k] = s * low[k] + c * f;
          low[k] = c * low[k] - s * f;
        }
      }
      if (r == 0 && i >= l) continue;
      d[l] -= p;
      e[l] = g;
      e[m] = 0;
    }
  }
}

}  // namespace

void symmetric_eigen(double* a, double* values, std::int64_t n) {
  std::vector<double> e(static_cast<std::size_t>(n)), v(static_cast<std::size_t>(n * n)), d(e.size());
  tridiagonal(a, d.data(), e.data(), n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j) v[j * n + i] = a[i * n + j];
  implicit_ql(d.data(), e.data(), v.data(), n);
  std::vector<std::int64_t> order(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::int64_t x, std::int64_t y) { return d[x] < d[y]; });
  for (std::int64_t k = 0; k < n; ++k) {
    values[k] = d[order[k]];
    for (std::int64_t i = 0; i < n; ++i) a[i * n + k] = v[order[k] * n + i];
  }
}

}  // namespace mrisr::runtime
