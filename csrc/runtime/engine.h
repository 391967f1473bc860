// What runs the network on one tile.
#pragma once

#include <memory>
#include <string>

#include "bundle.h"
#include "geometry.h"
#include "precision.h"

namespace mrisr::runtime {

// Of the memory budget: whatever the tile, and per voxel of one.
struct Cost {
  double fixed, per_voxel;
};

// Asks the caller of mrisr_run whether to go on.
class Watch {
 public:
  virtual ~Watch() = default;
  virtual bool cancelled() = 0;  // once true, always true
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string name() const = 0;
  virtual Cost cost() const = 0;
  // Before the first tile of a size; later calls with the same size cost nothing. Whether this one did.
  virtual bool prepare(const Triple& size) = 0;
  // Raises Error: MRISR_ERROR_ENGINE, MRISR_ERROR_CANCELLED.
  virtual void run(const mrisr_tile& tile, Watch& watch) = 0;
  // Working memory between runs; what is compiled stays.
  virtual void release() {}
  virtual Precision precision() const { return {MRISR_PRECISION_AUTO, "the caller's engine knows"}; }
};

// The graph of one bundle in one of the library's own engines, shared by its jobs.
class Network {
 public:
  virtual ~Network() = default;
  // Raises Error: MRISR_ERROR_ENGINE where the precision asked for cannot be had.
  virtual std::unique_ptr<Engine> engine(int threads, mrisr_precision asked) const = 0;
};

const char* builtin_engine();  // null where built without one
// Null where built without one. cache: folder of compiled graphs, or empty.
std::shared_ptr<const Network> load_network(const std::string& folder, const Config& config, const std::string& cache);

// What is wanted of ONNX Runtime: which provider, the shared library (empty: as the system finds it), a folder for what
// TensorRT has built (empty: none).
struct OnnxRuntime {
  mrisr_runtime runtime;
  std::string library, cache;
};

// Null where built without. Raises MRISR_ERROR_ENGINE where the library cannot be loaded or is too old.
std::shared_ptr<const Network> load_onnxruntime(const std::string& folder, const Config& config,
                                                const OnnxRuntime& how);

std::unique_ptr<Engine> caller_engine(const mrisr_engine_vtable& table, const Config& config);

}  // namespace mrisr::runtime
