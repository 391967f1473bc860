#include "memory.h"

#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "error.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

// The first line of a small file that begins with `name`: the number after it. Negative where there is none.
double number_in(const char* path, const char* name) {
  std::FILE* file = std::fopen(path, "r");
  if (file == nullptr) return -1;
  char line[256];
  double bytes = -1;
  while (bytes < 0 && std::fgets(line, sizeof line, file) != nullptr) {
    std::uint64_t value;
    if (std::strncmp(line, name, std::strlen(name)) == 0 &&
        std::sscanf(line + std::strlen(name), "%" SCNu64, &value) == 1)
      bytes = static_cast<double>(value);
  }
  std::fclose(file);
  return bytes;
}

double available_bytes() {
  struct sysinfo machine;
  double bytes = sysinfo(&machine) == 0 ? static_cast<double>(machine.totalram) * machine.mem_unit : 4e9;
  const double free_kb = number_in("/proc/meminfo", "MemAvailable:");
  if (free_kb >= 0) bytes = std::min(bytes, 1024 * free_kb);
  const double limited = group_free_bytes("");
  return limited >= 0 ? std::min(bytes, limited) : bytes;
}

// A group of one kind: the files of its limit and use, and the line of memory.stat with pages of files that can be dropped.
struct Kind {
  const char *name, *limit, *used, *droppable;
};
constexpr Kind kKinds[] = {{"cgroup2", "/memory.max", "/memory.current", "inactive_file "},
                           {"cgroup", "/memory.limit_in_bytes", "/memory.usage_in_bytes", "total_inactive_file "}};

// Of /proc/self/cgroup: "0::/path" of version 2, "9:memory:/path" of version 1; empty where there is none.
std::string own_path(const std::string& root, const Kind& kind) {
  std::ifstream file(root + "/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    const std::size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool second_version = line.compare(0, first, "0") == 0 && controllers == ",,";
    if (kind.name == kKinds[0].name ? second_version : controllers.find(",memory,") != std::string::npos)
      return line.substr(second + 1);
  }
  return {};
}

double left_in(const std::string& folder, const Kind& kind) {
  const double limit = number_in((folder + kind.limit).c_str(), ""), used = number_in((folder + kind.used).c_str(), "");
  if (limit < 0 || used < 0) return -1;
  const double droppable = std::max(0.0, number_in((folder + "/memory.stat").c_str(), kind.droppable));
  return std::max(0.0, limit - std::max(0.0, used - droppable));
}

bool is_folder(const std::string& path) {
  struct stat about;
  return stat(path.c_str(), &about) == 0 && S_ISDIR(about.st_mode);
}

// The part of 60 % of what is free that is this process's: MRISR_WORKERS.
double workers() {
  const char* setting = std::getenv("MRISR_WORKERS");
  if (setting == nullptr || *setting == '\0') return 1;
  char* end = nullptr;
  const long count = std::strtol(setting, &end, 10);
  if (*end != '\0' || count < 1)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "MRISR_WORKERS: expected a whole number of at least 1, found '" << setting << "'");
  return static_cast<double>(count);
}

}  // namespace

double group_free_bytes(const std::string& root) {
  double least = -1;
  std::ifstream mounts(root + "/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream words(line.substr(0, dash)), end(line.substr(dash + 3));
    std::string skipped, above, mount, type, options;
    words >> skipped >> skipped >> skipped >> above >> mount;
    end >> type >> skipped >> options;
    for (const Kind& kind : kKinds) {
      if (type != kind.name || (type == "cgroup" && ("," + options + ",").find(",memory,") == std::string::npos))
        continue;
      const std::string path = own_path(root, kind), top = root + mount;
      if (path.empty() || mount.empty()) continue;
      if (above == "/") above.clear();
      // What is mounted may be a part of the tree, and the path be that of the host: then the mount itself is ours.
      std::string folder =
          (path + "/").compare(0, above.size() + 1, above + "/") == 0 ? top + path.substr(above.size()) : top;
      while (folder.size() > top.size() && folder.back() == '/') folder.pop_back();
      if (folder.find("/..") != std::string::npos || !is_folder(folder)) folder = top;
      for (;; folder.resize(folder.rfind('/'))) {
        const double left = left_in(folder, kind);
        if (left >= 0 && (least < 0 || left < least)) least = left;
        if (folder.size() <= top.size()) break;
      }
    }
  }
  return least;
}

std::uint64_t resident_bytes() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  if (file == nullptr) return 0;
  std::uint64_t total = 0, pages = 0;
  const int read = std::fscanf(file, "%" SCNu64 " %" SCNu64, &total, &pages);
  std::fclose(file);
  return read == 2 ? pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE)) : 0;
}

std::uint64_t default_budget() {
  return static_cast<std::uint64_t>(static_cast<double>(resident_bytes()) +
                                    shared::kShareOfFree * available_bytes() / workers());
}

std::int64_t Demand::tile_voxels(std::uint64_t budget) const {
  const double room = static_cast<double>(budget) - resident - fixed - volumes;
  return room < 0 ? -1 : static_cast<std::int64_t>(std::min(room / std::max(per_voxel, 1.0), 1e15));
}

double volume_bytes(std::int64_t source_voxels, std::int64_t target_voxels, const Copies& copies) {
  const bool several = copies.samples > 1;
  const double target = shared::kTargetCopies + (several ? 2 : 1) + (copies.steps > 1 ? shared::kStepCopies : 0) +
                        (several ? shared::kSeveralCopies : 0) + (copies.corrected ? shared::kCorrectionCopies : 0);
  return 4 * (target * static_cast<double>(target_voxels) + shared::kSourceCopies * static_cast<double>(source_voxels));
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
  MRISR_FAIL(MRISR_ERROR_MEMORY, "memory: a budget of "
                                     << show_bytes(static_cast<double>(budget))
                                     << " is too small for this job; the smallest that works is "
                                     << show_bytes(need.peak(tile_voxels)) << " (process " << show_bytes(need.resident)
                                     << ", engine " << show_bytes(need.fixed) << ", volumes "
                                     << show_bytes(need.volumes) << ", " << what << ' '
                                     << show_bytes(need.per_voxel * static_cast<double>(tile_voxels))
                                     << "); raise memory, ask for a coarser voxel_size or crop the input");
}

}  // namespace mrisr::runtime
