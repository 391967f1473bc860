// A library built without OpenVINO: the caller brings the engine.
#include "engine.h"

namespace mrisr::runtime {

const char* builtin_engine() { return nullptr; }

std::shared_ptr<const Network> load_network(const std::string&, const Config&, const std::string&) { return nullptr; }

}  // namespace mrisr::runtime
