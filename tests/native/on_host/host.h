// What the module says about the fibres and the memory to Python.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace on_host {

enum class Order { ascending, descending, shuffled };

struct Settings {
  Order order = Order::ascending;
  std::uint64_t seed = 0;
  int most_blocks = 16384;
};
extern Settings settings;

struct Ran {
  std::string kernel;
  long threads;
};
std::vector<Ran> ran();  // the kernels that threads have entered

// PyTorch's memory on the CPU, each tensor up against a page that nobody may touch: behind it, or before it.
void guard(bool behind);
void unguard();
// Where an address lies, in words.
std::string place_of(const void* address);

}  // namespace on_host
