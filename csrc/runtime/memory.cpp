#include "memory.h"

#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "error.h"

namespace mrisr::runtime {
namespace {

constexpr double kDefaultBudget = 4e9, kShareOfFree = 0.6;
constexpr double kTargetCopies = 5, kCorrectionCopies = 2, kSourceCopies = 6;

// The first line of a small file that begins with `name`: the number after it. Negative where there is none.
double number_in(const char* path, const char* name) {
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return -1;
  char line[256];
  double found = -1;
  while (found < 0 && std::fgets(line, sizeof line, file) != nullptr) {
    std::uint64_t value;
    if (std::strncmp(line, name, std::strlen(name)) == 0 && std::sscanf(line + std::strlen(name), "%" SCNu64, &value) == 1)
      found = static_cast<double>(value);
  }
  std::fclose(file);
  return found;
}

double available_bytes() {
  struct sysinfo machine;
  double found = sysinfo(&machine) == 0 ? static_cast<double>(machine.totalram) * machine.mem_unit : kDefaultBudget;
  const double free_kb = number_in("/proc/meminfo", "MemAvailable:");
  if (free_kb >= 0) found = std::min(found, 1024 * free_kb);
  const char* const groups[][2] = {{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"},
                                   {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"}};
  for (const auto& group : groups) {
    const double limit = number_in(group[0], ""), used = number_in(group[1], "");
    if (limit >= 0 && used >= 0) found = std::min(found, std::max(0.0, limit - used));
  }
  return found;
}

}  // namespace

std::uint64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  std::uint64_t total = 0, pages = 0;
  const int read = std::fscanf(file, "%" SCNu64 " %" SCNu64, &total, &pages);
  std::fclose(file);
  return read == 2 ? pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

std::uint64_t default_budget() {
  return static_cast<std::uint64_t>(std::min(kDefaultBudget, static_cast<double>(resident_bytes()) + kShareOfFree * available_bytes()));
}

std::int64_t Demand::tile_voxels(std::uint64_t budget) const {
  const double room = static_cast<double>(budget) - held - fixed - volumes;
  return room < 0 ? -1 : static_cast<std::int64_t>(std::min(room / std::max(per_voxel, 1.0), 1e15));
}

double volume_bytes(std::int64_t source_voxels, std::int64_t target_voxels, const Copies& copies) {
  const bool several = copies.samples > 1;
  const double target = kTargetCopies + (several ? 2 : 1) + (copies.steps > 1 ? 2 : 0) + (several ? 3 : 0) +
                        (copies.corrected ? kCorrectionCopies : 0);
  return 4 * (target * static_cast<double>(target_voxels) + kSourceCopies * static_cast<double>(source_voxels));
}

std::string show_bytes(double bytes) {
  char text[32];
  if (bytes >= 1e9)
    std::snprintf(text, sizeof text, "%.1fGB", std::ceil(bytes / 1e8) / 10);
  else
    std::snprintf(text, sizeof text, "%.0fMB", std::ceil(bytes / 1e6));
  return text;
}

void refuse(std::uint64_t budget, const Demand& need, std::int64_t tile_voxels, const char* what) {
  MRISR_FAIL(MRISR_ERROR_MEMORY,
             "memory: a budget of " << show_bytes(static_cast<double>(budget)) << " is too small for this job; the smallest that works is "
                                    << show_bytes(need.peak(tile_voxels)) << " (process " << show_bytes(need.held) << ", engine "
                                    << show_bytes(need.fixed) << ", volumes " << show_bytes(need.volumes) << ", " << what << ' '
                                    << show_bytes(need.per_voxel * static_cast<double>(tile_voxels))
                                    << "); raise memory, ask for a coarser voxel_size or crop the input");
}

}  // namespace mrisr::runtime
