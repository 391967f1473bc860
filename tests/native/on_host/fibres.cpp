// Blocks of CUDA threads on one CPU thread. A thread is a fibre that runs until it meets others; which fibre goes on is
// chosen by the order under test, so that a result that depends on the order of threads is seen.
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <utility>

#include "cuda_runtime.h"
#include "host.h"

namespace on_host {

Settings settings;

namespace {

constexpr std::size_t kStack = 128 * 1024;
constexpr int kFault = 1, kBadLane = 2;  // why a launch ends early

struct Meeting {
  const char* site = nullptr;  // null: at work
  bool warp = false, done = false;
  unsigned mask = 0;
};

struct Fibre {
  jmp_buf here;
  ucontext_t first;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Meeting at;
  unsigned exchanges = 0;
};

std::deque<Fibre> fibres;  // kept from launch to launch
jmp_buf scheduler;
sigjmp_buf escape;
const std::function<void()>* kernel;
std::uint64_t brought[2][1024];
std::deque<unsigned> ready;
unsigned running;
std::mt19937_64 dice;
volatile int fault_signal;
void* volatile fault_address;

std::vector<std::pair<void*, std::size_t>>& shared_memory() {
  static std::vector<std::pair<void*, std::size_t>> all;
  return all;
}

std::vector<Entry*>& entries() {
  static std::vector<Entry*> all;
  return all;
}

__attribute__((noinline)) void yield_to_scheduler() {
  if (_setjmp(fibres[running].here) == 0) _longjmp(scheduler, 1);
}

// A fibre takes one thread after another, so that it is made once.
void fibre_main() {
  for (;;) {
    (*kernel)();
    fibres[running].at.done = true;
    yield_to_scheduler();
  }
}

__attribute__((noinline)) void resume(unsigned thread, bool fresh) {
  running = thread;
  threadIdx = dim3(thread);
  if (_setjmp(scheduler) != 0) return;
  if (fresh) setcontext(&fibres[thread].first);
  _longjmp(fibres[thread].here, 1);
}

// Makes fibres until there are `count`.
void make_fibres(unsigned count) {
  while (fibres.size() < count) {
    fibres.emplace_back();
    Fibre& f = fibres.back();
    getcontext(&f.first);
    f.first.uc_stack.ss_sp = f.stack.get();
    f.first.uc_stack.ss_size = kStack;
    f.first.uc_link = nullptr;
    makecontext(&f.first, fibre_main, 0);
    resume(static_cast<unsigned>(fibres.size()) - 1, true);
  }
}

std::vector<unsigned> ordered(std::vector<unsigned> all) {
  if (settings.order == Order::descending) std::reverse(all.begin(), all.end());
  if (settings.order == Order::shuffled) std::shuffle(all.begin(), all.end(), dice);
  return all;
}

std::vector<unsigned> count_up(unsigned n) {
  std::vector<unsigned> all(n);
  std::iota(all.begin(), all.end(), 0u);
  return all;
}

// Those who have met go on: in the order under test, mixed with those who are ready already where it is shuffled.
void release(const std::vector<unsigned>& threads) {
  for (unsigned t : threads) fibres[t].at = Meeting{};
  const auto next = ordered(threads);
  ready.insert(ready.end(), next.begin(), next.end());
}

void let_go(unsigned thread, unsigned block) {
  const Meeting& at = fibres[thread].at;
  if (at.done) return;
  std::vector<unsigned> met;
  const unsigned first = at.warp ? thread / kWarp * kWarp : 0, last = at.warp ? std::min(first + kWarp, block) : block;
  for (unsigned t = first; t < last; ++t) {
    if (at.warp && !(at.mask >> (t - first) & 1)) continue;
    const Meeting& other = fibres[t].at;
    if (other.done || other.site != at.site || other.warp != at.warp || other.mask != at.mask) return;
    met.push_back(t);
  }
  release(met);
}

std::string where(unsigned thread) {
  return "thread " + std::to_string(thread) + " of block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ")";
}

void nobody_goes_on(unsigned block) {
  std::string text = "threads wait for others that never come:";
  std::vector<std::string> seen;
  for (unsigned t = 0; t < block; ++t) {
    const std::string state = fibres[t].at.done ? "returned" : std::string("waits at ") + fibres[t].at.site;
    if (std::find(seen.begin(), seen.end(), state) != seen.end()) continue;
    seen.push_back(state);
    text += " " + where(t) + " " + state + ";";
  }
  throw std::runtime_error(text);
}

void run_block(unsigned block) {
  for (const auto& part : shared_memory()) std::memset(part.first, 0xff, part.second);
  ready.clear();
  std::vector<unsigned> all = count_up(block);
  release(all);
  while (!ready.empty()) {
    if (settings.order == Order::shuffled) std::swap(ready.front(), ready[dice() % ready.size()]);
    const unsigned thread = ready.front();
    ready.pop_front();
    resume(thread, false);
    let_go(thread, block);
  }
  for (unsigned t = 0; t < block; ++t)
    if (!fibres[t].at.done) nobody_goes_on(block);
}

void caught(int signal, siginfo_t* info, void*) {
  fault_signal = signal;
  fault_address = info->si_addr;
  siglongjmp(escape, kFault);
}

std::string trouble(int why) {
  if (why == kBadLane) return " shuffles with a lane outside its mask";
  if (fault_signal == SIGILL)
    return " does what is not defined: a misaligned address, an index outside its array, an overflow";
  return " leaves its memory: " + place_of(fault_address);
}

// Faults of kernels come to `caught` while this lives.
class Trap {
 public:
  Trap() {
    struct sigaction action{};
    action.sa_sigaction = caught;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int k = 0; k < 3; ++k) sigaction(kSignals[k], &action, &before_[k]);
  }
  ~Trap() {
    for (int k = 0; k < 3; ++k) sigaction(kSignals[k], &before_[k], nullptr);
  }

 private:
  static constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGILL};
  struct sigaction before_[3];
};

}  // namespace

Entry::Entry(const char* name_) : name(name_) { entries().push_back(this); }

std::vector<Ran> ran() {
  std::vector<Ran> all;
  for (const Entry* entry : entries()) all.push_back({entry->name, entry->threads});
  return all;
}

int most_blocks() { return settings.most_blocks; }

void poison_at_every_block(void* data, std::size_t bytes) {
  shared_memory().push_back({data, bytes});
  std::memset(data, 0xff, bytes);
}

void meet_block(const char* site) {
  fibres[running].at = {site, false, false, 0};
  yield_to_scheduler();
}

// Two buffers in turn: nobody writes into one before all have met once more, that is, have read it.
std::uint64_t meet_warp(unsigned mask, std::uint64_t value, unsigned source, const char* site) {
  const unsigned me = running, buffer = fibres[me].exchanges++ % 2;
  brought[buffer][me] = value;
  fibres[me].at = {site, true, false, mask};
  yield_to_scheduler();
  if (source >= kWarp || !(mask >> source & 1)) siglongjmp(escape, kBadLane);
  return brought[buffer][me / kWarp * kWarp + source];
}

void launch(dim3 grid, dim3 block, const std::function<void()>& body) {
  if (grid.x == 0 || grid.y == 0 || grid.y > 65535 || block.x == 0 || block.x > 1024 || block.y * block.z * grid.z != 1)
    throw std::runtime_error("invalid configuration: grid " + std::to_string(grid.x) + " x " + std::to_string(grid.y) +
                             ", block " + std::to_string(block.x));
  static const std::function<void()> nothing = [] {};
  kernel = &nothing;
  make_fibres(block.x);
  kernel = &body;
  gridDim = grid;
  blockDim = block;
  dice.seed(settings.seed);
  Trap trap;
  if (const int why = sigsetjmp(escape, 1)) {
    fibres.clear();  // they are in the middle of something
    throw std::runtime_error(where(running) + trouble(why));
  }
  for (unsigned at : ordered(count_up(grid.x * grid.y))) {
    blockIdx = dim3(at % grid.x, at / grid.x);
    try {
      run_block(block.x);
    } catch (...) {
      fibres.clear();
      throw;
    }
  }
}

}  // namespace on_host
