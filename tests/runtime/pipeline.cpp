// What libmrisr makes of a scan, through its C interface.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "bench.h"

namespace {

void test_silent_network_is_interpolation(const Bench& bench) {
  Fake fake;
  fake.gain = 0;
  const Volume input = scan();
  const Result same = bench.once(fake, [](auto& how) { set_all(how.factor, 1); });
  float worst = 0;
  for (std::size_t i = 0; i < input.size(); ++i) worst = std::max(worst, std::fabs(same.out[i] - input[i]));
  EXPECT(same.out.size() == input.size() && worst < 1e-3f);
  EXPECT(same.geometry.affine[0] == 1.4 && same.geometry.affine[3] == 0);
}

void test_same_bytes(const Bench& bench) {
  for (const int64_t tile : {int64_t{0}, int64_t{48}}) {
    for (const bool sample : {false, true}) {
      Fake fake, device;
      const auto how = [&](int threads) {
        return [=](mrisr_plan_options& o) {
          o.threads = threads;
          set_all(o.tile, static_cast<double>(tile));
          o.steps = sample ? 3 : 1;
          state_kspace(o);
        };
      };
      const Result one = bench.once(fake, how(1)), again = bench.once(fake, how(1)), three = bench.once(fake, how(3));
      EXPECT(one.out == again.out);
      EXPECT(one.out == three.out);  // the library's own loops do not depend on the thread count
      EXPECT(one.out == bench.once(device, how(2), true).out);
      EXPECT(device.copies > 0 && device.prepared == 1 && fake.prepared == 3);
      EXPECT((one.info.tiles_run > 1) == (tile != 0));
      for (float v : one.out) EXPECT(std::isfinite(v));
    }
  }
}

void test_seeds(const Bench& bench) {
  const Job job(bench, [](mrisr_plan_options& how) { how.samples = 3; });
  const auto seeded = [&](std::uint64_t seed) {
    return job.run([&](mrisr_run_options& o, Result& r) {
      r.spread.assign(r.out.size(), NAN);
      o.spread = r.spread.data();
      o.seed = seed;
    });
  };
  const Result a = seeded(1), b = seeded(1), c = seeded(~std::uint64_t{0});
  EXPECT(a.out == b.out && a.spread == b.spread && a.out != c.out);
  bool some = false;
  for (float v : a.spread) {
    EXPECT(v >= 0);
    some = some || v > 0;
  }
  EXPECT(some);
}

void test_elements_and_strides(const Bench& bench) {
  const Job job(bench);
  const Volume& input = job.input;
  const Result plain = job.run();
  std::vector<std::int16_t> whole(input.begin(), input.end());
  const Result narrow =
      job.run([&](mrisr_run_options& o, Result&) { o.input = whole.data(), o.input_element = MRISR_INT16; });
  EXPECT(plain.out == narrow.out);
  Volume transposed(input.size());  // first axis fastest
  for (int64_t i = 0; i < kShape[0]; ++i)
    for (int64_t j = 0; j < kShape[1]; ++j)
      for (int64_t k = 0; k < kShape[2]; ++k)
        transposed[(k * kShape[1] + j) * kShape[0] + i] = input[(i * kShape[1] + j) * kShape[2] + k];
  const Result strided = job.run([&](mrisr_run_options& o, Result& r) {
    const int64_t* n = r.geometry.shape;
    o.input = transposed.data();
    o.input_stride[0] = 1, o.input_stride[1] = kShape[0], o.input_stride[2] = kShape[0] * kShape[1];
    o.output_stride[0] = 1, o.output_stride[1] = n[0], o.output_stride[2] = n[0] * n[1];
  });
  const int64_t* n = plain.geometry.shape;
  bool same = strided.status == MRISR_OK;
  for (int64_t i = 0; i < n[0]; ++i)
    for (int64_t j = 0; j < n[1]; ++j)
      for (int64_t k = 0; k < n[2]; ++k)
        same = same && strided.out[(k * n[1] + j) * n[0] + i] == plain.out[(i * n[1] + j) * n[2] + k];
  EXPECT(same);
}

// The result as whole numbers is the float result divided by the scale, rounded, and what does not fit is counted.
void test_whole_numbers(const Bench& bench) {
  const Job job(bench);
  const std::vector<int16_t> shorts(job.input.begin(), job.input.end());
  const auto rounded = [&](double scale, bool whole_input, bool alone) {
    std::vector<int16_t> values;
    const Result result = job.run([&](mrisr_run_options& o, Result& r) {
      values.assign(r.out.size(), 12345);
      o.output_int16 = values.data(), o.output_int16_scale = scale;
      if (whole_input) o.input = shorts.data(), o.input_element = MRISR_INT16;
      if (alone) o.output = nullptr;
    });
    EXPECT(result.status == MRISR_OK);
    return std::make_pair(result, values);
  };
  const Volume plain = job.run().out;
  const auto agrees = [&](const std::pair<Result, std::vector<int16_t>>& answer, double scale, std::int64_t clipped) {
    EXPECT(answer.first.info.output_int16_scale == scale && answer.first.info.output_int16_clipped == clipped);
    std::int64_t differing = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      const double whole = std::max(-32768.0, std::min(32767.0, std::nearbyint(plain[i] / scale)));
      differing += answer.second[i] != static_cast<int16_t>(whole);
    }
    EXPECT(differing == 0);
  };
  double largest = 0;
  std::int64_t beyond = 0;
  for (const float v : plain) {
    largest = std::max(largest, std::fabs(static_cast<double>(v)));
    beyond += std::nearbyint(v / 0.01) > 32767;
  }
  EXPECT(beyond > 0);
  agrees(rounded(0, false, false), largest / 32767, 0);
  agrees(rounded(0, true, true), 1, 0);
  agrees(rounded(2.5, false, true), 2.5, 0);
  agrees(rounded(0.01, false, false), 0.01, beyond);
  EXPECT(rounded(0, false, false).first.out == plain);
}

// One size of tile whatever comes, inside the volume as far as it can be; nothing else is prepared.
void test_fixed_tile(const Bench& bench) {
  struct Watch {
    Fake fake;
    std::vector<std::vector<int64_t>> sizes;
  } watch;
  const auto fixed = [&](mrisr_plan_options& how) {
    auto& engine = const_cast<mrisr_engine_vtable&>(*how.engine);
    engine.prepare = [](void* user, const int64_t* size) {
      auto& s = *reinterpret_cast<Watch*>(user);
      s.sizes.push_back({size, size + 3});
      return 0;
    };
    set_all(how.tile, 64);
    how.tile_fixed = 1;
  };
  const Result all = bench.once(watch.fake, fixed);
  EXPECT(all.info.tile[0] == 64 && all.info.tile[1] == 64 && all.info.tile[2] == 64);
  const Result coarse = bench.once(watch.fake, [&](auto& how) {
    fixed(how);
    set_all(how.voxel_size, 1.2);  // smaller than a tile along every axis
  });
  EXPECT(coarse.info.tiles == 1 && coarse.info.box_start[0] == 0 && coarse.info.box_stop[0] == 64);
  for (const float v : coarse.out) EXPECT(std::isfinite(v));
  for (const auto& size : watch.sizes) EXPECT(size == std::vector<int64_t>({64, 64, 64}));
  EXPECT(watch.sizes.size() == 2);  // one per job
  // Where the scan is larger than a tile it is the tiling that is there without it.
  const auto plain = [](auto& how) {
    set_all(how.voxel_size, 0.5);
    set_all(how.tile, 48);
  };
  Fake fake;
  const Result tiled = bench.once(fake, plain),
               again = bench.once(fake, [&](auto& how) { plain(how), how.tile_fixed = 1; });
  EXPECT(tiled.info.tile[2] == 48 && tiled.out == again.out);
  bench.refuses(MRISR_ERROR_MEMORY, "fixed tile", [](mrisr_plan_options& how, mrisr_engine_vtable& engine) {
    set_all(how.tile, 512), how.tile_fixed = 1;
    how.memory = 2000000000;
    engine.bytes_per_voxel = 100;
  });
}

}  // namespace

int main() {
  const Bench bench;
  test_silent_network_is_interpolation(bench);
  test_same_bytes(bench);
  test_seeds(bench);
  test_elements_and_strides(bench);
  test_whole_numbers(bench);
  test_fixed_tile(bench);
  return check::result("pipeline");
}
