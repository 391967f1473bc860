// What the goldens do not show: arguments that must be refused, the thread pool, offsets beyond 2^31, known answers.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "resample_axes.h"
#include "tiles.h"
#include "group_norm.h"
#include "memory.h"
#include "noise.h"
#include "noise_math.h"
#include "parallel.h"

namespace mrisr::test {
namespace {

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("FAIL %s\n", what.c_str());
  ++failures;
}

void refuses(const std::string& words, const std::function<void()>& call) {
  try {
    call();
    expect(false, "not refused: " + words);
  } catch (const BadArgument& error) {
    expect(std::string(error.what()).find(words) != std::string::npos, "\"" + words + "\" is not in: " + error.what());
  }
}

void bad_arguments() {
  float x[8] = {};
  double d[8] = {};
  const Index origin[3] = {0, 0, 0}, outside[3] = {2, 0, 0};
  const float* const weights[3] = {x, x, x};
  const float* const missing[3] = {x, nullptr, x};
  const View<float, 3> one = contiguous3(x, 1, 1, 1), negative{x, {1, -1, 1}, {1, 1, 1}},
                       null{nullptr, {1, 1, 1}, {1, 1, 1}};
  const View<const float, 3> tile{x, {1, 1, 1}, {1, 1, 1}}, gaps{x, {1, 1, 2}, {4, 4, 2}},
      empty{x, {0, 1, 1}, {1, 1, 1}};
  refuses("threads must be at least 1; it is 0", [] { parallel_for(4, 1, 0, [](Index, Index) {}); });
  refuses("grain must be at least 1", [] { parallel_for(4, 0, 1, [](Index, Index) {}); });
  refuses("size[1] must not be negative; it is -1", [&] { cpu::blend_add(negative, tile, origin, weights, 1); });
  refuses("volume is a null pointer with 1 elements", [&] { cpu::blend_add(null, tile, origin, weights, 1); });
  refuses("origin[0] must lie in [0, 1]; it is 2", [&] { cpu::blend_add(one, tile, outside, weights, 1); });
  refuses("weights[1] is a null pointer", [&] { cpu::blend_add(one, tile, origin, missing, 1); });
  refuses("must be contiguous; strides are 1 and 2", [&] { cpu::blend_add(one, gaps, origin, weights, 1); });
  refuses("volume.size[0] must be positive", [&] { cpu::gather(one, empty, origin, 1); });
  refuses("drop must lie in [0, 1); it is 1", [&] { cpu::axis_apply(x, x, d, 1, 2, 2, 1, 1.0, 1); });
  refuses("more elements than an int64 offset can reach",
          [&] { cpu::axis_apply(x, x, d, Index{1} << 40, Index{1} << 30, 1, 1, 0.0, 1); });
  refuses("channels (6) must be divisible by groups (4)",
          [&] { cpu::group_norm_stats(d, x, nullptr, {1, 6, 1, 4, false}, Dtype::f32, 1); });
  refuses("eps must be positive; it is 0", [&] { cpu::group_norm_merge(d, d, d, 1, 1, 1, 0.0); });
  refuses("on axis 2 it starts at 1 with 4 voxels, and the grid has 4",
          [&] { cpu::normal_noise(x, {{1, 1, 4}, {0, 0, 1}, {1, 1, 4}, 0, 0, 0}, 1); });
  refuses("out is a null pointer", [] { cpu::normal_noise(nullptr, {{1, 1, 4}, {0, 0, 0}, {1, 1, 4}, 0, 0, 0}, 1); });
}

void nothing_to_do() {
  const Index origin[3] = {0, 0, 0};
  const float* const weights[3] = {nullptr, nullptr, nullptr};
  const View<float, 3> none{nullptr, {0, 3, 3}, {9, 3, 1}};
  const View<const float, 3> no_tile{nullptr, {0, 0, 0}, {1, 1, 1}};
  double matrix = 1;
  parallel_for(0, 1, 4, [](Index, Index) { expect(false, "work for an empty range"); });
  cpu::blend_add(none, no_tile, origin, weights, 2);
  cpu::axis_apply(nullptr, nullptr, &matrix, 0, 1, 1, 5, 0.0, 2);
  cpu::normal_noise(nullptr, {{0, 4, 4}, {0, 0, 0}, {4, 4, 4}, 0, 0, 0}, 2);
  cpu::group_norm_apply(nullptr, nullptr, {}, Act::silu, {0, 4, 0, 2, true}, Dtype::f32, 2);
}

void every_index_once() {
  for (Index n : {Index{1}, Index{7}, Index{1000}})
    for (int threads : {1, 2, 5, 40}) {
      std::vector<std::atomic<int>> seen(static_cast<std::size_t>(n));
      parallel_for(n, 3, threads, [&](Index begin, Index end) {
        // A nested call runs where it is, and must not wait for the job that it is part of.
        parallel_for(end - begin, 1, threads, [&](Index b, Index e) {
          for (Index i = b; i < e; ++i) ++seen[static_cast<std::size_t>(begin + i)];
        });
      });
      for (const auto& count : seen)
        expect(count == 1, "parallel_for: an index ran " + std::to_string(count) + " times");
    }
}

void exceptions_come_back() {
  for (int threads : {1, 3}) {
    bool caught = false;
    try {
      parallel_for(100, 1, threads, [](Index begin, Index end) {
        if (begin <= 50 && 50 < end) throw std::runtime_error("fifty");
      });
    } catch (const std::runtime_error& error) { caught = error.what() == std::string("fifty"); }
    expect(caught, "parallel_for: the exception was lost");
    every_index_once();  // and the pool still works
  }
}

// Callers from several threads take turns; each gets its own result.
void many_callers() {
  std::vector<std::thread> callers;
  std::vector<std::vector<float>> results(4, std::vector<float>(20 * 30 * 40));
  const NoiseBox box{{20, 30, 40}, {0, 0, 0}, {20, 30, 40}, 11, 0, 0};
  for (auto& out : results)
    callers.emplace_back([&out, &box] {
      for (int round = 0; round < 5; ++round) cpu::normal_noise(out.data(), box, 3);
    });
  for (auto& caller : callers) caller.join();
  for (const auto& out : results) expect(out == results[0], "callers from several threads: results differ");
}

// Random123's published vectors for philox4x32-10.
void philox_known_answers() {
  const noise::Words zero = noise::philox(0, 0, 0, 0, 0, 0), ones = noise::philox(~0u, ~0u, ~0u, ~0u, ~0u, ~0u);
  expect(zero.w0 == 0x6627e8d5u && zero.w1 == 0xe169c58du, "philox of zeros");
  expect(ones.w0 == 0x408f276du && ones.w1 == 0x41c83b0eu, "philox of ones");
}

// The far corner of a volume of 2^31 and some voxels: 8.6 GB of addresses of which a few pages are ever touched.
void beyond_two_to_the_31() {
  const Index n[3] = {2049, 1024, 1024};
  const std::size_t bytes = sizeof(float) * static_cast<std::size_t>(n[0] * n[1] * n[2]);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::printf("skip beyond_two_to_the_31: this system gives no 8.6 GB of addresses\n");
    return;
  }
  const View<float, 3> volume = contiguous3(static_cast<float*>(memory), n[0], n[1], n[2]);
  const View<const float, 3> read{volume.data, volume.size, volume.stride};
  std::vector<float> tile(2 * 2 * 4), back(3 * 3 * 5), w(4, 1.0f);
  std::iota(tile.begin(), tile.end(), 1.0f);
  const float* const weights[3] = {w.data(), w.data(), w.data()};
  const Index corner[3] = {n[0] - 2, n[1] - 2, n[2] - 4};
  cpu::blend_add(volume, {tile.data(), {2, 2, 4}, {8, 4, 1}}, corner, weights, 2);
  cpu::gather(contiguous3(back.data(), 3, 3, 5), read, corner, 2);  // one voxel more: the edge is repeated
  for (Index i = 0; i < 45; ++i) {
    const Index x = std::min<Index>(i / 15, 1), y = std::min<Index>(i / 5 % 3, 1), z = std::min<Index>(i % 5, 3);
    expect(back[static_cast<std::size_t>(i)] == tile[static_cast<std::size_t>(x * 8 + y * 4 + z)],
           "beyond 2^31: wrong voxel");
  }
  munmap(memory, bytes);
}

// Each child touches one element too many and must not live to tell.
void guard_pages_guard() {
  for (Placement placement : {Placement::guard_after, Placement::guard_before}) {
    Buffer<float> buffer(10, placement);
    const Index wrong = placement == Placement::guard_after ? 10 : -1;
    const pid_t child = fork();
    if (child == 0) {
      fclose(stderr);
      volatile float* data = buffer.data();
      data[wrong] = data[wrong] + 1;
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    expect(status != 0, std::string("no crash with a ") + name_of(placement));
  }
}

}  // namespace
}  // namespace mrisr::test

int main() {
  using namespace mrisr::test;
  const std::pair<const char*, void (*)()> tests[] = {{"guard_pages_guard", guard_pages_guard},
                                                      {"bad_arguments", bad_arguments},
                                                      {"nothing_to_do", nothing_to_do},
                                                      {"every_index_once", every_index_once},
                                                      {"exceptions_come_back", exceptions_come_back},
                                                      {"many_callers", many_callers},
                                                      {"philox_known_answers", philox_known_answers},
                                                      {"beyond_two_to_the_31", beyond_two_to_the_31}};
  for (const auto& [name, test] : tests) {
    const int before = failures;
    test();
    std::printf("%s %s\n", failures == before ? "ok  " : "FAIL", name);
  }
  return failures == 0 ? 0 : 1;
}
