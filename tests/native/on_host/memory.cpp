// PyTorch's CPU memory between pages that nobody may touch.
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "host.h"

namespace on_host {
namespace {

struct Block {
  char* pages;
  std::size_t mapped, bytes;
};
std::map<char*, Block> blocks;  // by the address that PyTorch has
std::mutex lock;

void give_back(void* data) {
  const std::lock_guard<std::mutex> hold(lock);
  const auto found = blocks.find(static_cast<char*>(data));
  munmap(found->second.pages, found->second.mapped);
  blocks.erase(found);
}

struct Guarded final : c10::Allocator {
  bool behind = true;

  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) return {nullptr, c10::Device(c10::DeviceType::CPU)};
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inside = (bytes + page - 1) / page * page, mapped = inside + 2 * page;
    auto* pages = static_cast<char*>(mmap(nullptr, mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (pages == MAP_FAILED || mprotect(pages + page, inside, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    std::memset(pages + page, 0xff, inside);
    char* data = pages + page + (behind ? inside - bytes : 0);
    const std::lock_guard<std::mutex> hold(lock);
    blocks[data] = {pages, mapped, bytes};
    return {data, data, give_back, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return give_back; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};

Guarded guarded;
c10::Allocator* before = nullptr;

}  // namespace

void guard(bool behind) {
  if (before == nullptr) before = c10::GetAllocator(c10::DeviceType::CPU);
  guarded.behind = behind;
  c10::SetAllocator(c10::DeviceType::CPU, &guarded, 255);
}

void unguard() {
  if (before != nullptr) c10::SetAllocator(c10::DeviceType::CPU, before, 255);
}

std::string place_of(const void* address) {
  const auto* at = static_cast<const char*>(address);
  for (const auto& [data, block] : blocks) {
    if (at < block.pages || at >= block.pages + block.mapped) continue;
    const std::string size = std::to_string(block.bytes) + " bytes";
    if (at >= data + block.bytes) return std::to_string(at - data - block.bytes) + " bytes behind a tensor of " + size;
    if (at < data) return std::to_string(data - at) + " bytes before a tensor of " + size;
  }
  return "an address of no tensor";
}

}  // namespace on_host
