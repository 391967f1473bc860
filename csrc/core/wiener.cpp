#include "wiener.h"

#include <algorithm>
#include <cmath>

#include "isa.h"
#include "parallel.h"

namespace mrisr {
namespace {

constexpr float kEven = 0.5f;                                                  // the cosines of a block of four
constexpr float kWide = 0.65328148243818826f, kNarrow = 0.27059805007309849f;  // cos(pi/8), cos(3 pi/8), / sqrt(2)
constexpr Index kPad = kBlock - 1;                                             // blocks that reach beyond an end
constexpr Index kSquare = kBlock * kBlock;
constexpr Index kChunk = 32;       // blocks along a line, at a time
constexpr Index kRows = 24;        // of the first axis, for a thread at least: their first three are made twice
constexpr float kTiny = 1e-20f;    // where neither pilot nor noise is anything
constexpr int kFrequencies = 512;  // between 0 and half a cycle, to integrate over

// Of a sequence of n that is mirrored at its outer members.
Index mirrored(Index i, Index n) {
  if (n == 1) return 0;
  const Index period = 2 * (n - 1), at = ((i % period) + period) % period;
  return at < n ? at : period - at;
}

MRISR_INLINE void forward4(float a, float b, float c, float d, float& y0, float& y1, float& y2, float& y3) {
  const float outer = a + d, inner = b + c, far = a - d, near = b - c;
  y0 = kEven * (outer + inner);
  y2 = kEven * (outer - inner);
  y1 = kWide * far + kNarrow * near;
  y3 = kNarrow * far - kWide * near;
}

MRISR_INLINE void inverse4(float y0, float y1, float y2, float y3, float& a, float& b, float& c, float& d) {
  const float outer = kEven * (y0 + y2), inner = kEven * (y0 - y2), far = kWide * y1 + kNarrow * y3,
              near = kNarrow * y1 - kWide * y3;
  a = outer + far, d = outer - far;
  b = inner + near, c = inner - near;
}

// What one thread needs for lines of `line` voxels: `blocks` block positions along a line.
struct Lines {
  Index blocks;
  float* padded;           // kBlock lines of blocks + kPad
  float *scan, *pilot;     // rings of kBlock lines, kSquare coefficients along the first and the last axis of each
  float *answer, *weight;  // rings of what is summed up in those: coefficients, and one number
  float* sum;              // a line of blocks + kPad

  static Index floats(Index n) {
    const Index blocks = n + kPad;
    return kBlock * (blocks + kPad) + 3 * kBlock * kSquare * blocks + kBlock * blocks + blocks + kPad;
  }
  Lines(float* at, Index n) : blocks(n + kPad) {
    padded = at, at += kBlock * (blocks + kPad);
    scan = at, at += kBlock * kSquare * blocks;
    pilot = at, at += kBlock * kSquare * blocks;
    answer = at, at += kBlock * kSquare * blocks;
    weight = at, at += kBlock * blocks;
    sum = at;
  }
};

struct Volumes {
  float *out, *weight;
  const float *scan, *pilot, *variance;
  Index n[3];
};

// Line j of the four planes from i on: its cosines along the last axis, then across the planes.
MRISR_INLINE void transform_line(float* __restrict__ to, const float* __restrict__ volume, const Index* n, Index i,
                                 Index j, float* __restrict__ padded, Index blocks) {
  const Index length = blocks + kPad, row = mirrored(j, n[1]);
  for (Index a = 0; a < kBlock; ++a) {
    const float* from = volume + (mirrored(i + a, n[0]) * n[1] + row) * n[2];
    float* line = padded + a * length;
    for (Index z = 0; z < kPad; ++z) line[z] = from[mirrored(z - kPad, n[2])];
    for (Index z = 0; z < n[2]; ++z) line[kPad + z] = from[z];
    for (Index z = 0; z < kPad; ++z) line[kPad + n[2] + z] = from[mirrored(n[2] + z, n[2])];
    float* c = to + a * kBlock * blocks;
    for (Index p = 0; p < blocks; ++p)
      forward4(line[p], line[p + 1], line[p + 2], line[p + 3], c[p], c[blocks + p], c[2 * blocks + p],
               c[3 * blocks + p]);
  }
  const Index step = kBlock * blocks;
  for (Index k = 0; k < step; ++k) {
    float y0, y1, y2, y3;
    forward4(to[k], to[step + k], to[2 * step + k], to[3 * step + k], y0, y1, y2, y3);
    to[k] = y0, to[step + k] = y1, to[2 * step + k] = y2, to[3 * step + k] = y3;
  }
}

// The blocks from line j on, filtered, onto the sums.
MRISR_INLINE void filter_blocks(const Lines& t, Index j, const float* __restrict__ variance) {
  const Index blocks = t.blocks, ring = kSquare * blocks;
  const float *scan[kBlock], *pilot[kBlock];
  float *answer[kBlock], *weight[kBlock];
  for (Index b = 0; b < kBlock; ++b) {
    const Index slot = ((j + b) % kBlock + kBlock) % kBlock;
    scan[b] = t.scan + slot * ring, pilot[b] = t.pilot + slot * ring, answer[b] = t.answer + slot * ring;
    weight[b] = t.weight + slot * blocks;
  }
  float kept[kCosines][kChunk];
  for (Index first = 0; first < blocks; first += kChunk) {
    const Index count = std::min(kChunk, blocks - first);
    float noise[kChunk] = {};
    for (Index k = 0; k < kSquare; ++k) {
      const Index at = k * blocks + first;
      // The variance of coefficient (k / 4, b, k % 4).
      const float* v = variance + (k / kBlock) * kSquare + k % kBlock;
      for (Index p = 0; p < count; ++p) {
        float y[kBlock], q[kBlock];
        forward4(scan[0][at + p], scan[1][at + p], scan[2][at + p], scan[3][at + p], y[0], y[1], y[2], y[3]);
        forward4(pilot[0][at + p], pilot[1][at + p], pilot[2][at + p], pilot[3][at + p], q[0], q[1], q[2], q[3]);
        for (Index b = 0; b < kBlock; ++b) {
          const float power = q[b] * q[b] + kTiny, gain = k == 0 && b == 0 ? 1.0f : power / (power + v[b * kBlock]);
          noise[p] += gain * gain;
          kept[k * kBlock + b][p] = gain * y[b];
        }
      }
    }
    for (Index p = 0; p < count; ++p) noise[p] = 1.0f / noise[p];
    for (Index b = 0; b < kBlock; ++b)
      for (Index p = 0; p < count; ++p) weight[b][first + p] += noise[p];
    for (Index k = 0; k < kSquare; ++k) {
      const Index at = k * blocks + first;
      const float (*c)[kChunk] = kept + k * kBlock;
      for (Index p = 0; p < count; ++p) {
        float x0, x1, x2, x3;
        inverse4(c[0][p], c[1][p], c[2][p], c[3][p], x0, x1, x2, x3);
        answer[0][at + p] += noise[p] * x0, answer[1][at + p] += noise[p] * x1;
        answer[2][at + p] += noise[p] * x2, answer[3][at + p] += noise[p] * x3;
      }
    }
  }
}

// Line j of the planes from i on that lie in [begin, end): the sums of all blocks that begin in plane i go out.
MRISR_INLINE void finish_line(const Volumes& v, const Lines& t, Index i, Index j, Index begin, Index end) {
  const Index blocks = t.blocks, n = v.n[2], slot = j % kBlock, step = kBlock * blocks;
  float* const answer = t.answer + slot * kSquare * blocks;
  float* const weight = t.weight + slot * blocks;
  for (Index k = 0; k < step; ++k) {
    float x0, x1, x2, x3;
    inverse4(answer[k], answer[step + k], answer[2 * step + k], answer[3 * step + k], x0, x1, x2, x3);
    answer[k] = x0, answer[step + k] = x1, answer[2 * step + k] = x2, answer[3 * step + k] = x3;
  }
  for (Index a = std::max<Index>(0, begin - i); a < std::min(kBlock, end - i); ++a) {
    float* const out = v.out + ((i + a) * v.n[1] + j) * n;
    float* const sums = v.weight + ((i + a) * v.n[1] + j) * n;
    float* const c = answer + a * step;
    // Voxel z lies in the blocks from z on in `blocks`, z + 3 the last of them, which it leads.
    for (Index p = 0; p < blocks; ++p) {
      float x0, x1, x2, x3;
      inverse4(c[p], c[blocks + p], c[2 * blocks + p], c[3 * blocks + p], x0, x1, x2, x3);
      c[p] = x0, c[blocks + p] = x1, c[2 * blocks + p] = x2, c[3 * blocks + p] = x3;
    }
    for (Index z = 0; z < n; ++z) {
      out[z] += c[z + 3] + c[blocks + z + 2] + c[2 * blocks + z + 1] + c[3 * blocks + z];
      sums[z] += weight[z] + weight[z + 1] + weight[z + 2] + weight[z + 3];
    }
  }
}

MRISR_INLINE void planes_body(const Volumes& v, const Lines& t, Index begin, Index end) {
  const Index plane = v.n[1] * v.n[2], ring = kSquare * t.blocks;
  std::fill(v.out + begin * plane, v.out + end * plane, 0.0f);
  std::fill(v.weight + begin * plane, v.weight + end * plane, 0.0f);
  for (Index i = begin - kPad; i < end; ++i) {
    std::fill(t.answer, t.answer + kBlock * ring, 0.0f);
    std::fill(t.weight, t.weight + kBlock * t.blocks, 0.0f);
    for (Index j = -kPad; j < v.n[1] + kPad; ++j) {
      const Index slot = (j + kBlock) % kBlock;
      transform_line(t.scan + slot * ring, v.scan, v.n, i, j, t.padded, t.blocks);
      transform_line(t.pilot + slot * ring, v.pilot, v.n, i, j, t.padded, t.blocks);
      const Index head = j - kPad;  // the block that line j ends
      if (head < -kPad) continue;
      filter_blocks(t, head, v.variance);
      if (head >= 0) finish_line(v, t, i, head, begin, end);
      const Index done = (head + kBlock) % kBlock;
      std::fill(t.answer + done * ring, t.answer + (done + 1) * ring, 0.0f);
      std::fill(t.weight + done * t.blocks, t.weight + (done + 1) * t.blocks, 0.0f);
    }
  }
  for (Index k = begin * plane; k < end * plane; ++k) v.out[k] /= v.weight[k];
}
MRISR_VARIANTS(planes, planes_body, (const Volumes& v, const Lines& t, Index begin, Index end), (v, t, begin, end))

}  // namespace

void cosine_shares(float* shares, const double band[3]) {
  const double pi = std::acos(-1.0);
  double axis[3][kBlock];
  for (int d = 0; d < 3; ++d)
    for (Index k = 0; k < kBlock; ++k) {
      double inside = 0, all = 0;
      for (int f = 0; f < kFrequencies; ++f) {
        const double frequency = 0.5 * (f + 0.5) / kFrequencies;
        double re = 0, im = 0;
        for (Index x = 0; x < kBlock; ++x) {
          const double wave = std::cos(pi * static_cast<double>((2 * x + 1) * k) / (2 * kBlock));
          re += wave * std::cos(2 * pi * frequency * static_cast<double>(x));
          im += wave * std::sin(2 * pi * frequency * static_cast<double>(x));
        }
        all += re * re + im * im;
        if (frequency < band[d]) inside += re * re + im * im;
      }
      axis[d][k] = inside / all;
    }
  for (Index k = 0; k < kCosines; ++k)
    shares[k] = static_cast<float>(axis[0][k / kSquare] * axis[1][k / kBlock % kBlock] * axis[2][k % kBlock]);
}

namespace cpu {

Index wiener_scratch(const Index n[3], int threads) {
  return n[0] * n[1] * n[2] + Lines::floats(n[2]) * std::max(1, threads);
}

void wiener(float* out, const float* scan, const float* pilot, const Index n[3], const float* variance, float* scratch,
            int threads) {
  check_view(contiguous3(out, n[0], n[1], n[2]), "wiener", "out");
  check_view(contiguous3(scan, n[0], n[1], n[2]), "wiener", "scan");
  check_view(contiguous3(pilot, n[0], n[1], n[2]), "wiener", "pilot");
  if (n[0] * n[1] * n[2] == 0) return;
  const Volumes volumes{out, scratch, scan, pilot, variance, {n[0], n[1], n[2]}};
  float* const lines = scratch + n[0] * n[1] * n[2];
  parallel_for(n[0], kRows, threads, [&](Index begin, Index end, int worker) {
    planes(volumes, Lines(lines + worker * Lines::floats(n[2]), n[2]), begin, end);
  });
}

Index cosine_energies(float* energy, Index most, const float* scan, const Index n[3], float level, const float* shares,
                      const int* chosen, int count) {
  check_view(contiguous3(scan, n[0], n[1], n[2]), "cosine_energies", "scan");
  const Index blocks[3] = {n[0] / kBlock, n[1] / kBlock, n[2] / kBlock};
  const Index all = blocks[0] * blocks[1] * blocks[2], stride = std::max<Index>(1, (all + most - 1) / most);
  Index found = 0;
  for (Index b = 0; b < all; b += stride) {
    const Index x = b / (blocks[1] * blocks[2]), y = b / blocks[2] % blocks[1], z = b % blocks[2];
    float c[kCosines], mean = 0;
    for (Index k = 0; k < kCosines; ++k) {
      c[k] =
          scan[((kBlock * x + k / kSquare) * n[1] + kBlock * y + k / kBlock % kBlock) * n[2] + kBlock * z + k % kBlock];
      mean += c[k];
    }
    if (!(mean / kCosines > level)) continue;
    for (Index step = 1; step < kCosines; step *= kBlock)
      for (Index k = 0; k < kCosines; ++k)
        if (k / step % kBlock == 0)
          forward4(c[k], c[k + step], c[k + 2 * step], c[k + 3 * step], c[k], c[k + step], c[k + 2 * step],
                   c[k + 3 * step]);
    float sum = 0;
    for (int k = 0; k < count; ++k) sum += c[chosen[k]] * c[chosen[k]] / shares[chosen[k]];
    energy[found++] = sum / static_cast<float>(count);
  }
  return found;
}

}  // namespace cpu
}  // namespace mrisr
