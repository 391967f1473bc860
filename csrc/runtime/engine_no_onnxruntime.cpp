// A library built with MRISR_ONNXRUNTIME=OFF.
#include "engine.h"

namespace mrisr::runtime {

std::shared_ptr<const Network> load_onnxruntime(const std::string&, const Config&, const OnnxRuntime&) {
  return nullptr;
}

}  // namespace mrisr::runtime
