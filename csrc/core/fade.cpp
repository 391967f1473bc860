#include "fade.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "isa.h"
#include "parallel.h"

namespace mrisr::cpu {
namespace {

// Rows of the target's first axis at a time. The more, the less of the source is read over again; the fewer, the more
// threads find room.
constexpr Index kRows = 16, kFewRows = kAxisRows;
constexpr int kFewThreads = 4;
static_assert(kRows % kAxisRows == 0);

// The axes in the order that they are interpolated along: those that shrink, or grow the least, first. What comes
// before the first axis is done plane by plane of the source, the rest on a few rows of the target.
struct Order {
  int axis[3], count = 0, before = 0;
  bool rows = false;  // the first axis changes

  explicit Order(const Fade& f) {
    const auto growth = [&](int d) { return static_cast<double>(f.fine[d]) / static_cast<double>(f.coarse[d]); };
    for (int d = 0; d < 3; ++d) {  // std::stable_sort takes memory
      if (f.between.plain[d] == nullptr) continue;
      int at = count++;
      for (; at > 0 && growth(d) < growth(axis[at - 1]); --at) axis[at] = axis[at - 1];
      axis[at] = d;
    }
    const int* const zero = std::find(axis, axis + count, 0);
    rows = zero != axis + count;
    before = rows ? static_cast<int>(zero - axis) : 0;
  }
  int after() const { return before + (rows ? 1 : 0); }
};

// Two arrays that a chain of products writes to by turns.
struct Turns {
  float* half[2];
  int next = 0;
  float* take() { return half[next ^= 1]; }
};

// The way of one of the two volumes.
struct Chain {
  const AxisMatrix* const* matrix;
  const Order& order;
  const Fade& f;

  // Voxels along axis 1 or 2, and of a plane, when so many products are done.
  Index size(int axis, int done) const {
    return std::find(order.axis, order.axis + done, axis) == order.axis + done ? f.coarse[axis] : f.fine[axis];
  }
  Index plane(int done) const { return size(1, done) * size(2, done); }
  Index widest(int from, int to) const {
    Index most = 0;
    for (int i = from; i <= to; ++i) most = std::max(most, plane(i));
    return most;
  }

  // The products from one to before another, none of them along axis 0, of some planes; the last into `last` if given.
  const float* apply(const float* x, int from, int to, Index planes, Turns& turns, float* last, float* scratch) const {
    for (int i = from; i < to; ++i) {
      const int axis = order.axis[i];
      float* const out = i + 1 == to && last != nullptr ? last : turns.take();
      const Index outer = axis == 1 ? planes : planes * size(1, i), inner = axis == 1 ? size(2, i) : 1;
      axis_apply(out, x, *matrix[axis], outer, inner, scratch, 1);
      x = out;
    }
    return x;
  }

  // The products up to axis 0 and with it, for some rows: their bands alone, and what those read alone.
  const float* take_rows(const float* x, Index begin, Index rows, Turns& turns, float* scratch) const {
    if (!order.rows) return x + begin * plane(0);
    const AxisMatrix& whole = *matrix[0];
    const AxisBand* const from = whole.bands + begin / kAxisRows;
    const Index count = (rows + kAxisRows - 1) / kAxisRows;
    Index low = whole.n_in - 1, high = 0;
    for (Index b = 0; b < count; ++b)
      if (from[b].count > 0) low = std::min(low, from[b].first), high = std::max(high, from[b].first + from[b].count);
    AxisBand bands[kRows / kAxisRows];
    for (Index b = 0; b < count; ++b)
      bands[b] = {from[b].count > 0 ? from[b].first - low : 0, from[b].count, from[b].at};
    float* const out = turns.take();
    const AxisMatrix part{std::max<Index>(high - low, 1), rows, whole.lines, whole.size, bands, whole.coefficients};
    axis_apply(out, x + low * plane(order.before), part, 1, plane(order.before), scratch, 1);
    return out;
  }

  const float* rows(const float* x, Index begin, Index count, Turns& turns, float* scratch) const {
    const float* const taken = take_rows(x, begin, count, turns, scratch);
    return apply(taken, order.after(), order.count, count, turns, nullptr, scratch);
  }
};

// How the scratch memory is cut: what the products before the first axis leave of the scan (where there are any) and of
// the head, then for every thread four pieces to work in and the scratch of axis_apply. Threads take no more than one
// volume of the target's size together, or there are fewer of them.
struct Layout {
  Index rows, scan, head, piece, products;
  int threads;

  Layout(const Chain& c, int wanted) {
    const Order& o = c.order;
    rows = std::min(wanted > kFewThreads ? kFewRows : kRows, c.f.fine[0]);
    head = c.f.coarse[0] * c.plane(o.before);
    scan = o.before > 0 ? head : 0;
    piece = std::max(c.widest(0, o.before), rows * c.widest(o.rows ? o.after() : 0, o.count));
    products = axis_scratch(*std::max_element(c.f.coarse, c.f.coarse + 3), 1);
    const Index room = c.f.fine[0] * c.f.fine[1] * c.f.fine[2] / of_thread();
    threads = static_cast<int>(std::clamp<Index>(room, 1, wanted));
  }
  Index of_thread() const { return 4 * piece + products; }
  Index all() const { return scan + head + threads * of_thread(); }
};

struct Room {
  Turns scan, head;
  float* products;

  Room(float* base, const Layout& l, int worker) {
    float* const own = base + l.scan + l.head + worker * l.of_thread();
    scan = {{own, own + l.piece}};
    head = {{own + 2 * l.piece, own + 3 * l.piece}};
    products = own + 4 * l.piece;
  }
};

MRISR_INLINE void fade_row_body(float* __restrict__ image, float* __restrict__ spread, const float* __restrict__ plain,
                                const float* __restrict__ share, const float* __restrict__ end, float x, float y,
                                Limits l, Index n) {
  for (Index k = 0; k < n; ++k) {
    const float here = plain[k], weight = std::min(std::max(share[k], 0.0f), 1.0f) * x * y * (end ? end[k] : 1.0f);
    const float lower = std::min(here, (here - l.floor) * l.least + l.floor), upper = std::max(here, l.ceiling);
    const float held = std::min(std::max(image[k], lower), upper);  // NaN stays NaN
    image[k] = (held - here) * weight + here;
    if (spread != nullptr) spread[k] *= weight;
  }
}
MRISR_VARIANTS(fade_row, fade_row_body,
               (float* __restrict__ image, float* __restrict__ spread, const float* __restrict__ plain,
                const float* __restrict__ share, const float* __restrict__ end, float x, float y, Limits l, Index n),
               (image, spread, plain, share, end, x, y, l, n))

void check(const Fade& f) {
  for (int d = 0; d < 3; ++d) {
    const AxisMatrix *const a = f.between.plain[d], *const b = f.between.share[d];
    MRISR_CHECK((a == nullptr) == (b == nullptr), "fade: axis " << d << " has one matrix of two");
    MRISR_CHECK(f.coarse[d] > 0 && f.fine[d] > 0, "fade: axis " << d << " is empty");
    MRISR_CHECK(a != nullptr || f.coarse[d] == f.fine[d],
                "fade: without a matrix axis " << d << " must stay as it is: " << f.coarse[d] << ", " << f.fine[d]);
    for (const AxisMatrix* m : {a, b})
      MRISR_CHECK(m == nullptr || (m->n_in == f.coarse[d] && m->n_out == f.fine[d]),
                  "fade: the matrix of axis " << d << " must be " << f.fine[d] << " x " << f.coarse[d] << "; it is "
                                              << m->n_out << " x " << m->n_in);
  }
}

}  // namespace

Index fade_scratch(const Fade& f, int threads) {
  const Order order(f);
  return Layout(Chain{f.between.plain, order, f}, threads).all();
}

void fade(float* image, float* spread, const float* scan, const std::uint8_t* head, const Fade& f, float* scratch,
          int threads) {
  check(f);
  const Order order(f);
  const Chain plain{f.between.plain, order, f}, share{f.between.share, order, f};
  const Layout layout(plain, threads);
  float *const scan_planes = scratch, *const head_planes = scratch + layout.scan;
  const Index from = plain.plane(0), to = plain.plane(order.before);
  parallel_for(f.coarse[0], 4, layout.threads, [&](Index begin, Index end, int worker) {
    Room room(scratch, layout, worker);
    for (Index i = begin; i < end; ++i) {
      float* const last = head_planes + i * to;
      float* const numbers = order.before > 0 ? room.head.take() : last;
      std::copy_n(head + i * from, from, numbers);
      share.apply(numbers, 0, order.before, 1, room.head, last, room.products);
      plain.apply(scan + i * from, 0, order.before, 1, room.scan, scan_planes + i * to, room.products);
    }
  });

  const float* const planes = order.before > 0 ? scan_planes : scan;
  const Index pieces = (f.fine[0] + layout.rows - 1) / layout.rows, lines = f.fine[1], length = f.fine[2];
  parallel_for(pieces, 1, layout.threads, [&](Index begin, Index end, int worker) {
    Room room(scratch, layout, worker);
    for (Index piece = begin; piece < end; ++piece) {
      const Index first = piece * layout.rows, rows = std::min(layout.rows, f.fine[0] - first);
      const float* const here = plain.rows(planes, first, rows, room.scan, room.products);
      const float* const weight = share.rows(head_planes, first, rows, room.head, room.products);
      for (Index line = 0; line < rows * lines; ++line) {
        const Index i = first + line / lines, j = line % lines, at = (i * lines + j) * length;
        const float x = f.ends[0] ? f.ends[0][i] : 1.0f, y = f.ends[1] ? f.ends[1][j] : 1.0f;
        fade_row(image + at, spread ? spread + at : nullptr, here + line * length, weight + line * length, f.ends[2], x,
                 y, f.limits, length);
      }
    }
  });
}

void fade(float* image, float* spread, const float* scan, const std::uint8_t* head, Fade f,
          const double* const plain[3], const double* const share[3], double drop, int threads) {
  std::vector<AxisBand> bands[6];
  std::vector<float> coefficients[6];
  AxisMatrix packed[6];
  for (int i = 0; i < 6; ++i) {
    const int d = i % 3;
    const double* const matrix = i < 3 ? plain[d] : share[d];
    if (matrix == nullptr) continue;
    bands[i].resize(static_cast<std::size_t>(axis_bands(f.fine[d])));
    coefficients[i].resize(static_cast<std::size_t>(axis_coefficients(f.fine[d], f.coarse[d])));
    packed[i] = axis_pack(bands[i].data(), coefficients[i].data(), matrix, f.fine[d], f.coarse[d], drop,
                          d == 2 ? Lines::along : Lines::across);
    (i < 3 ? f.between.plain : f.between.share)[d] = &packed[i];
  }
  check(f);
  const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(fade_scratch(f, threads))]);
  fade(image, spread, scan, head, f, scratch.get(), threads);
}

}  // namespace mrisr::cpu
