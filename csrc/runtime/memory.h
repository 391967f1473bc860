// How much memory a job takes, and which tile keeps it inside a stated budget: the model of mrisr/infer/memory.py, so
// that both choose the same tiles. And the arena that a run works in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace mrisr::runtime {

std::uint64_t resident_bytes();  // of this process now, 0 where the system does not say
std::uint64_t default_budget();  // this worker's part of 60 % of what is free, and what the process holds already
// Bytes that the tightest control group of this process leaves; negative where none has a limit: mrisr/infer/cgroup.py.
// root: where /proc and /sys are, "" for the system's own.
double group_free_bytes(const std::string& root);

// peak = resident + fixed + volumes + per_voxel * voxels of a tile
struct Demand {
  double resident, fixed, volumes, per_voxel;

  double peak(std::int64_t tile_voxels) const {
    return resident + fixed + volumes + per_voxel * static_cast<double>(tile_voxels);
  }
  // Voxels of the largest tile inside the budget; below 1 where nothing fits.
  std::int64_t tile_voxels(std::uint64_t budget) const;
};

struct Copies {
  int steps, samples;
  bool corrected;
};

double volume_bytes(std::int64_t source_voxels, std::int64_t target_voxels, const Copies& copies);

// "512MB" or "1.3GB".
std::string show_bytes(double bytes);
[[noreturn]] void refuse(std::uint64_t budget, const Demand& need, std::int64_t tile_voxels, const char* what);

// Hands out pieces of one block, 64-byte aligned; without a block it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(std::int64_t count) {
    const std::size_t at = used_;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    if (used_ > peak_) peak_ = used_;
    return base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + at);
  }

  // What was taken since `mark` is free again.
  std::size_t mark() const { return used_; }
  void back_to(std::size_t mark) { used_ = mark; }
  std::size_t peak() const { return peak_; }

  static constexpr std::size_t kAlign = 64;

 private:
  char* base_;
  std::size_t used_ = 0, peak_ = 0;
};

}  // namespace mrisr::runtime
