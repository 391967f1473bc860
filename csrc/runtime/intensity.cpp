#include "intensity.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "shared.h"

namespace mrisr::runtime {
namespace {

__extension__ typedef unsigned __int128 Word;

// numpy.random.default_rng(0).integers(n): PCG64 (O'Neill 2014, XSL-RR), Lemire's bounded numbers from its halves.
class Subset {
 public:
  explicit Subset(std::uint32_t n) : n_(n) {}

  std::uint32_t next() {
    std::uint64_t m = static_cast<std::uint64_t>(half()) * n_;
    if (static_cast<std::uint32_t>(m) < n_) {
      const std::uint32_t threshold = (0u - n_) % n_;
      while (static_cast<std::uint32_t>(m) < threshold) m = static_cast<std::uint64_t>(half()) * n_;
    }
    return static_cast<std::uint32_t>(m >> 32);
  }

 private:
  static constexpr Word wide(std::uint64_t high, std::uint64_t low) { return static_cast<Word>(high) << 64 | low; }

  std::uint32_t half() {
    if (kept_) {
      kept_ = false;
      return rest_;
    }
    state_ = state_ * wide(0x2360ed051fc65da4, 0x4385df649fccf645) + wide(0x418ddadb3af71a82, 0x588133bc447873a9);
    const std::uint64_t mixed = static_cast<std::uint64_t>(state_ >> 64) ^ static_cast<std::uint64_t>(state_);
    const int turn = static_cast<int>(state_ >> 122);
    const std::uint64_t word = mixed >> turn | mixed << ((64 - turn) & 63);
    rest_ = static_cast<std::uint32_t>(word >> 32);
    kept_ = true;
    return static_cast<std::uint32_t>(word);
  }

  std::uint32_t n_, rest_ = 0;
  bool kept_ = false;
  Word state_ = wide(0x1aa1b5345996452d, 0x09585eb7a69561e3);
};

std::uint32_t key_of(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
}

// numpy.percentile of sorted values, linear.
double percentile(const float* sorted, std::int64_t n, double percent) {
  const double at = static_cast<double>(n - 1) * (percent / 100);
  const double below = std::floor(at);
  if (at >= static_cast<double>(n - 1)) return sorted[n - 1];
  const auto i = static_cast<std::int64_t>(below);
  const float a = sorted[i], b = sorted[i + 1], step = b - a;
  const double t = at - below;
  return t >= 0.5 ? b - step * static_cast<float>(1 - t) : a + step * static_cast<float>(t);
}

// The percentile of what lies above a share of it, from a first guess; values ascend.
double fixed_point(const float* begin, const float* end, double scale, double percent, const Config& config) {
  const auto& how = config.intensity;
  for (std::int64_t round = 0; round < how.rounds; ++round) {
    const float* above = std::upper_bound(begin, end, static_cast<float>(how.foreground * scale));
    if (above == end) break;
    const double following = percentile(above, end - above, percent);
    if (std::fabs(following - scale) <= how.settled * scale) break;
    scale = following;
  }
  return scale;
}

// Whether voxels of intensities in (low, high] resemble those `lag` voxels away, along any axis.
bool is_tissue(const float* data, const Triple& n, float offset, float low, float high, const Config& config) {
  const std::int64_t stride[3] = {n[1] * n[2], n[2], 1}, lag = config.intensity.lag;
  const auto within = [&](float v) { return v > low && v <= high; };
  double count = 0, sum[5] = {};
  for (int axis = 0; axis < 3; ++axis) {
    Triple m = n;
    m[axis] -= lag;
    for (std::int64_t i = 0; i < m[0]; ++i)
      for (std::int64_t j = 0; j < m[1]; ++j)
        for (std::int64_t k = 0; k < m[2]; ++k) {
          const float* const at = data + i * stride[0] + j * stride[1] + k;
          const float here = *at - offset, there = at[lag * stride[axis]] - offset;
          if (!within(here) || !within(there)) continue;
          const double a = here, b = there, terms[5] = {a, b, a * a, b * b, a * b};
          for (int t = 0; t < 5; ++t) sum[t] += terms[t];
          ++count;
        }
  }
  if (count < static_cast<double>(config.noise.fewest_cells)) return false;
  for (double& s : sum) s /= count;
  const double spread = std::sqrt(std::max(0.0, sum[2] - sum[0] * sum[0]) * std::max(0.0, sum[3] - sum[1] * sum[1]));
  return sum[4] - sum[0] * sum[1] > config.intensity.alike * spread;
}

}  // namespace

void sort_floats(float* values, float* spare, std::int64_t n) {
  constexpr int kBits = 11, kPlaces = 1 << kBits;
  for (int pass = 0; pass < 3; ++pass) {
    std::int64_t count[kPlaces] = {};
    const int shift = pass * kBits;
    for (std::int64_t i = 0; i < n; ++i) ++count[key_of(values[i]) >> shift & (kPlaces - 1)];
    std::int64_t at = 0;
    for (std::int64_t& c : count) {
      const std::int64_t here = c;
      c = at;
      at += here;
    }
    for (std::int64_t i = 0; i < n; ++i) spare[count[key_of(values[i]) >> shift & (kPlaces - 1)]++] = values[i];
    std::swap(values, spare);
  }
  std::memcpy(spare, values, sizeof(float) * static_cast<std::size_t>(n));  // three passes end in the other array
}

Scale robust_scale(const float* data, const Triple& shape, const Config& config, float* values, float* spare) {
  const std::int64_t n = product(shape);
  const auto& how = config.intensity;
  std::int64_t count = n;
  if (n > how.sample) {
    Subset subset(static_cast<std::uint32_t>(n));
    for (std::int64_t i = 0; i < how.sample; ++i) values[i] = data[subset.next()];
    count = how.sample;
    sort_floats(values, spare, count);
    // Unless it misses what little there is.
    const double low = std::max(0.0, percentile(values, count, how.offset_percentile));
    if (!(percentile(values, count, how.first_percentile) > low)) count = n;
  }
  if (count == n) {
    std::copy_n(data, n, values);
    sort_floats(values, spare, n);
  }
  double offset = std::min(0.0, percentile(values, count, how.offset_percentile));
  const auto shift = [&] {
    for (std::int64_t i = 0; i < count; ++i) spare[i] = values[i] - static_cast<float>(offset);
  };
  shift();
  double scale = percentile(spare, count, how.first_percentile);
  if (scale <= 0) {  // hardly any voxel holds anything
    offset = std::min(0.0, static_cast<double>(values[0]));
    shift();
    scale = spare[count - 1];
  }
  scale = fixed_point(spare, spare + count, scale, how.scale_percentile, config);
  const float* const positive = std::upper_bound(spare, spare + count, 0.0f);
  const double middle = percentile(positive, spare + count - positive, 50.0);
  const double bulk = fixed_point(spare, spare + count, middle, how.bulk_percentile, config), most = how.outlier * bulk;
  const float low = static_cast<float>(how.foreground * bulk), high = static_cast<float>(most);
  if (scale <= most || !is_tissue(data, shape, static_cast<float>(offset), low, high, config))
    return {offset, scale, 0.0};
  const float *first = std::upper_bound(spare, spare + count, low),
              *last = std::upper_bound(first, static_cast<const float*>(spare + count), high);
  const double inside = static_cast<double>(last - first), all = static_cast<double>(spare + count - first);
  return {offset, percentile(first, last - first, how.scale_percentile), 1.0 - inside / all};
}

double estimate_noise(const float* v, const Triple& shape, const Config& config, float* sample) {
  const std::int64_t cells[3] = {shape[0] / 2, shape[1] / 2, shape[2] / 2};
  const std::int64_t plane = shape[1] * shape[2], row = shape[2];
  // call(pairs of neighbours along the last axis) of every cell whose mean is foreground.
  const auto visit = [&](auto&& call) {
    for (std::int64_t i = 0; i < cells[0]; ++i)
      for (std::int64_t j = 0; j < cells[1]; ++j)
        for (std::int64_t k = 0; k < cells[2]; ++k) {
          const float* at = v + 2 * (i * plane + j * row + k);
          const float* pairs[4] = {at, at + row, at + plane, at + plane + row};
          float sum = pairs[0][0] + pairs[0][1];  // in the order in which PyTorch adds
          for (int p = 1; p < 4; ++p) sum += pairs[p][0] + pairs[p][1];
          if (sum / 8.0f > static_cast<float>(config.intensity.foreground)) call(pairs);
        }
  };
  std::int64_t inside = 0;
  visit([&](const float* const*) { ++inside; });
  if (inside < config.noise.fewest_cells) return -1;
  const std::int64_t step = std::max<std::int64_t>(1, inside / config.noise.sample);
  std::int64_t cell = 0, count = 0;
  visit([&](const float* const* p) {
    if (cell++ % step != 0) return;
    float d[4];
    for (int i = 0; i < 4; ++i) d[i] = p[i][0] - p[i][1];
    sample[count++] = std::fabs((d[0] - d[1]) - (d[2] - d[3]));
  });
  float* const middle = sample + (count - 1) / 2;
  std::nth_element(sample, middle, sample + count);
  return *middle * static_cast<float>(shared::kNormalMad / std::sqrt(8.0));
}

}  // namespace mrisr::runtime
