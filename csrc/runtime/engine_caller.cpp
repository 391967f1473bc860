// An engine of the caller's: host memory as it is, device memory through the engine's own copies.
#include <cstring>

#include "engine.h"
#include "error.h"

namespace mrisr::runtime {
namespace {

class CallerEngine final : public Engine {
 public:
  CallerEngine(const mrisr_engine_vtable& table, const Config& config) : table_(table), config_(config) {}

  ~CallerEngine() override { give_back(); }

  std::string name() const override { return table_.name != nullptr ? table_.name : "the caller's engine"; }
  Cost cost() const override { return {static_cast<double>(table_.fixed_bytes), table_.bytes_per_voxel}; }

  bool prepare(const Triple& size) override {
    if (size == size_) return false;
    size_ = {};
    if (table_.prepare != nullptr) check(table_.prepare(table_.user, size.data()), "prepare");
    if (table_.memory == MRISR_MEMORY_DEVICE) allocate(size);
    size_ = size;
    return true;
  }

  void run(const mrisr_tile& tile, Watch& watch) override {
    if (watch.cancelled()) MRISR_FAIL(MRISR_ERROR_CANCELLED, "cancelled by the caller");
    mrisr_tile call = tile;
    call.stream = table_.stream;
    if (table_.memory == MRISR_MEMORY_HOST) return check(table_.run(table_.user, &call), "run");
    const void* const from[] = {tile.x, tile.y, tile.vector, tile.guidance};
    for (int i = 0; i < 4; ++i)
      check(table_.copy_in(table_.user, device_[i], from[i], bytes_[i], table_.stream), "copy_in");
    call.x = device_[0], call.y = device_[1], call.vector = device_[2], call.guidance = device_[3];
    call.f = device_[4];
    check(table_.run(table_.user, &call), "run");
    check(table_.copy_out(table_.user, tile.f, device_[4], bytes_[4], table_.stream), "copy_out");
    check(table_.wait(table_.user, table_.stream), "wait");
  }

 private:
  void check(int code, const char* what) const {
    if (code == 0) return;
    const char* text = table_.error_text != nullptr ? table_.error_text(table_.user) : nullptr;
    MRISR_FAIL(MRISR_ERROR_ENGINE, name() << ": " << what << " returned " << code
                                          << (text != nullptr && *text != '\0' ? ": " : "")
                                          << (text != nullptr ? text : ""));
  }

  void allocate(const Triple& size) {
    give_back();
    const std::size_t plain = sizeof(float) * static_cast<std::size_t>(product(size));
    const auto coarse = static_cast<std::size_t>(config_.guidance.channels) * sizeof(float) *
                        static_cast<std::size_t>(size[0] / 8) * static_cast<std::size_t>(size[1] / 8) *
                        static_cast<std::size_t>(size[2] / 8);
    const std::size_t bytes[] = {plain, plain, sizeof(float) * static_cast<std::size_t>(config_.vector.length), coarse,
                                 plain};
    for (int i = 0; i < 5; ++i) {
      bytes_[i] = bytes[i];
      device_[i] = static_cast<float*>(table_.allocate(table_.user, bytes[i]));
      if (device_[i] == nullptr) {
        give_back();
        check(-1, "allocate");
      }
    }
  }

  void give_back() {
    for (float*& p : device_) {
      if (p != nullptr) table_.deallocate(table_.user, p);
      p = nullptr;
    }
  }

  mrisr_engine_vtable table_;
  const Config& config_;
  Triple size_{};
  float* device_[5] = {};
  std::size_t bytes_[5] = {};
};

}  // namespace

std::unique_ptr<Engine> caller_engine(const mrisr_engine_vtable& table, const Config& config) {
  if (table.run == nullptr) MRISR_FAIL(MRISR_ERROR_ARGUMENT, "engine.run: is NULL");
  if (table.memory != MRISR_MEMORY_HOST && table.memory != MRISR_MEMORY_DEVICE)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "engine.memory: expected a mrisr_memory_kind (0 or 1), found " << table.memory);
  if (!(table.bytes_per_voxel >= 0 && table.bytes_per_voxel <= 1e9))
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "engine.bytes_per_voxel: expected 0 to 1e9, found " << table.bytes_per_voxel);
  const bool complete = table.allocate != nullptr && table.deallocate != nullptr && table.copy_in != nullptr &&
                        table.copy_out != nullptr && table.wait != nullptr;
  if (table.memory == MRISR_MEMORY_DEVICE && !complete)
    MRISR_FAIL(MRISR_ERROR_ARGUMENT, "engine: device memory needs allocate, deallocate, copy_in, copy_out and wait");
  return std::make_unique<CallerEngine>(table, config);
}

}  // namespace mrisr::runtime
