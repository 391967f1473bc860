// ONNX Runtime on the CPU, by CUDA or by TensorRT: the bundle's float32 graph, in a library that is loaded when a job
// first asks for it.
#include <dlfcn.h>

#include <chrono>
#include <cstdlib>
#include <future>
#include <map>
#include <mutex>

#include "engine.h"
#include "error.h"
#include "onnxruntime_abi.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

const auto kPatience = std::chrono::milliseconds(shared::kWaitMs);  // how often a running tile looks for a cancellation
constexpr const char* kUsualName = "libonnxruntime.so.1";
constexpr const char* kNoEvents = "ORT_DISABLE_TELEMETRY";
// Resident memory on the CPU; measured with ONNX Runtime 1.32 (the arena is off, so that it is given back after a tile).
constexpr double kCpuFixed = 60e6, kCpuMaps = 7;

const char* provider(mrisr_runtime runtime) {
  return runtime == MRISR_RUNTIME_ONNX_TENSORRT ? "TensorRT" : runtime == MRISR_RUNTIME_ONNX_CUDA ? "CUDA" : "CPU";
}

template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

// The loaded library. It stays for the life of the process: its threads may outlive what asked for it.
class Library {
 public:
  explicit Library(const std::string& given) {
    const std::string path = given.empty() ? kUsualName : given;
    const char* const silent = std::getenv(kNoEvents);
    if (silent == nullptr || std::string(silent) != "1")
      MRISR_FAIL(MRISR_ERROR_ENGINE, "onnxruntime: keeps and sends events of its use unless "
                                         << kNoEvents << "=1 is in the environment when it is loaded; set it");
    void* const loaded = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (loaded == nullptr) {
      const char* const why = dlerror();
      MRISR_FAIL(MRISR_ERROR_ENGINE, "onnxruntime: cannot load " << path << ": "
                                                                 << plain_text(why != nullptr ? why : "")
                                                                 << "; state mrisr_open_options.onnxruntime");
    }
    const auto base = reinterpret_cast<ort::GetApiBase>(dlsym(loaded, "OrtGetApiBase"));
    if (base == nullptr) MRISR_FAIL(MRISR_ERROR_ENGINE, "onnxruntime: " << path << " is another library");
    version_ = base()->GetVersionString();
    api_ = base()->GetApi(ort::kApiVersion);
    if (api_ == nullptr)
      MRISR_FAIL(MRISR_ERROR_ENGINE, "onnxruntime: expected version 1." << ort::kApiVersion << " or newer, found "
                                                                        << plain_text(version_) << " in " << path);
  }

  const ort::Api& api() const { return *api_; }
  const std::string& version() const { return version_; }

  void check(ort::Status* status, const char* what) const {
    if (status == nullptr) return;
    const std::string text = plain_text(api_->GetErrorMessage(status));
    api_->ReleaseStatus(status);
    MRISR_FAIL(MRISR_ERROR_ENGINE, "onnxruntime: cannot " << what << ": " << text);
  }

  // What `create` makes, given back by `release`.
  template <class T, class Create>
  Owned<T> made(const char* what, void (*release)(T*), const Create& create) const {
    T* found = nullptr;
    check(create(&found), what);
    return {found, release};
  }

 private:
  const ort::Api* api_ = nullptr;
  std::string version_;
};

struct Setting {
  const char *key, *value;
};

// One provider into a session's options.
template <class T>
void append(const Library& library, ort::SessionOptions* session, const char* what,
            const std::vector<Setting>& settings, ort::Status* (*create)(T**),
            ort::Status* (*update)(T*, ort::Texts, ort::Texts, std::size_t),
            ort::Status* (*add)(ort::SessionOptions*, const T*), void (*release)(T*)) {
  const Owned<T> options = library.made<T>(what, release, create);
  std::vector<const char*> keys, values;
  for (const Setting& s : settings) keys.push_back(s.key), values.push_back(s.value);
  if (!keys.empty()) library.check(update(options.get(), keys.data(), values.data(), keys.size()), what);
  library.check(add(session, options.get()), what);
}

class OnnxRuntimeNetwork final : public Network {
 public:
  OnnxRuntimeNetwork(const std::string& folder, const Config& config, const OnnxRuntime& how)
      : config_(config),
        how_(how),
        library_(how.library),
        environment_(library_.made<ort::Env>("start", library_.api().ReleaseEnv, [&](ort::Env** made) {
          // What goes wrong comes back from the call that it went wrong in; nothing is printed.
          const auto silent = [](void*, int, const char*, const char*, const char*, const char*) {};
          return library_.api().CreateEnvWithCustomLogger(silent, nullptr, ort::kFatal, "mrisr", made);
        })) {
    library_.check(library_.api().DisableTelemetryEvents(environment_.get()), "start");
    const Graph* const graph = config.graph("onnx");
    if (graph == nullptr)
      MRISR_FAIL(MRISR_ERROR_MODEL, "the bundle has no graph of format onnx in float32, which ONNX Runtime needs");
    path_ = folder + "/" + graph->file;
  }

  std::unique_ptr<Engine> engine(int threads, mrisr_precision asked) const override;

  // Shared by the jobs that want as many threads: a session may be run by several at once.
  ort::Session* session(int threads) const {
    const std::lock_guard<std::mutex> hold(lock_);
    const auto known = sessions_.find(threads);
    if (known != sessions_.end()) return known->second.get();
    const Owned<ort::SessionOptions> options = session_options(threads);
    Owned<ort::Session> made = library_.made<ort::Session>(
        "read the bundle's graph", api().ReleaseSession,
        [&](auto to) { return api().CreateSession(environment_.get(), path_.c_str(), options.get(), to); });
    return sessions_.emplace(threads, std::move(made)).first->second.get();
  }

  const Library& library() const { return library_; }
  const ort::Api& api() const { return library_.api(); }
  const Config& config() const { return config_; }
  mrisr_runtime runtime() const { return how_.runtime; }

 private:
  Owned<ort::SessionOptions> session_options(int threads) const {
    auto options =
        library_.made<ort::SessionOptions>("make a session", api().ReleaseSessionOptions, api().CreateSessionOptions);
    const auto set = [&](ort::Status* status) { library_.check(status, "make a session"); };
    set(api().SetIntraOpNumThreads(options.get(), threads));
    set(api().DisableCpuMemArena(options.get()));
    // Between tiles the cores are ours.
    set(api().AddSessionConfigEntry(options.get(), "session.force_spinning_stop", "1"));
    if (how_.runtime == MRISR_RUNTIME_ONNX_TENSORRT) {
      std::vector<Setting> settings;
      if (!how_.cache.empty())
        settings = {{"trt_engine_cache_enable", "1"}, {"trt_engine_cache_path", how_.cache.c_str()}};
      append<ort::TensorRtOptions>(library_, options.get(), "use TensorRT", settings, api().CreateTensorRtOptions,
                                   api().UpdateTensorRtOptions, api().AppendTensorRt, api().ReleaseTensorRtOptions);
    }
    if (how_.runtime != MRISR_RUNTIME_ONNX_CPU)  // after TensorRT: what that leaves
      append<ort::CudaOptions>(library_, options.get(), "use CUDA", {{"use_tf32", "0"}}, api().CreateCudaOptions,
                               api().UpdateCudaOptions, api().AppendCuda, api().ReleaseCudaOptions);
    return options;
  }

  const Config config_;
  const OnnxRuntime how_;
  const Library library_;
  const Owned<ort::Env> environment_;
  std::string path_;
  mutable std::mutex lock_;
  mutable std::map<int, Owned<ort::Session>> sessions_;  // go before the environment
};

class OnnxRuntimeEngine final : public Engine {
 public:
  OnnxRuntimeEngine(const OnnxRuntimeNetwork& network, int threads)
      : network_(network),
        session_(network.session(threads)),
        memory_(network.library().made<ort::MemoryInfo>(
            "describe memory", network.api().ReleaseMemoryInfo, [&](ort::MemoryInfo** made) {
              return network.api().CreateCpuMemoryInfo(ort::kDeviceAllocator, ort::kDefaultMemory, made);
            })) {}

  std::string name() const override {
    return "onnxruntime " + network_.library().version() + " (" + provider(network_.runtime()) + ")";
  }

  Cost cost() const override {
    if (network_.runtime() != MRISR_RUNTIME_ONNX_CPU) return {kCpuFixed, 0};  // its maps lie on the device
    const Config& config = network_.config();
    return {kCpuFixed + shared::kWeightCopies * sizeof(float) * static_cast<double>(config.parameters),
            kCpuMaps * static_cast<double>(config.network.widths[0]) * sizeof(float) / 8};
  }

  Precision precision() const override {
    return {MRISR_PRECISION_FLOAT32, "ONNX Runtime computes the bundle's float32 graph"};
  }

  bool prepare(const Triple&) override { return false; }  // a session takes every size

  void run(const mrisr_tile& tile, Watch& watch) override {
    if (watch.cancelled()) MRISR_FAIL(MRISR_ERROR_CANCELLED, "cancelled by the caller");
    const Config& config = network_.config();
    const ort::Api& api = network_.api();
    const Library& library = network_.library();
    const std::int64_t stride = config.guidance.stride, *n = tile.size;
    const Owned<ort::Value> values[] = {
        value(tile.x, {1, 1, n[0], n[1], n[2]}), value(tile.y, {1, 1, n[0], n[1], n[2]}),
        value(tile.vector, {1, config.vector.length}),
        value(tile.guidance, {1, config.guidance.channels, n[0] / stride, n[1] / stride, n[2] / stride}),
        value(tile.f, {1, 1, n[0], n[1], n[2]})};
    const ort::Value* const inputs[] = {values[0].get(), values[1].get(), values[2].get(), values[3].get()};
    const char* names[4];
    for (int i = 0; i < 4; ++i) names[i] = config.network.inputs[i].c_str();
    const char* const output = config.network.output.c_str();
    ort::Value* result = values[4].get();
    const auto options = library.made<ort::RunOptions>("run the network", api.ReleaseRunOptions, api.CreateRunOptions);
    // Run() returns when it is done, so it has a thread to itself, and this one asks the caller.
    auto done = std::async(std::launch::async,
                           [&] { return api.Run(session_, options.get(), names, inputs, 4, &output, 1, &result); });
    bool stopped = false;
    while (done.wait_for(kPatience) != std::future_status::ready)
      if (!stopped && watch.cancelled()) {
        library.check(api.RunOptionsSetTerminate(options.get()), "stop the network");
        stopped = true;
      }
    ort::Status* const status = done.get();
    if (!stopped) return library.check(status, "run the network");
    if (status != nullptr) api.ReleaseStatus(status);
    MRISR_FAIL(MRISR_ERROR_CANCELLED, "cancelled by the caller");
  }

 private:
  Owned<ort::Value> value(const float* data, const std::vector<std::int64_t>& shape) const {
    std::size_t bytes = sizeof(float);
    for (const std::int64_t n : shape) bytes *= static_cast<std::size_t>(n);
    const ort::Api& api = network_.api();
    return network_.library().made<ort::Value>("describe a tensor", api.ReleaseValue, [&](ort::Value** made) {
      return api.CreateTensorWithDataAsOrtValue(memory_.get(), const_cast<float*>(data), bytes, shape.data(),
                                                shape.size(), ort::kFloat, made);
    });
  }

  const OnnxRuntimeNetwork& network_;
  ort::Session* session_;  // the network's
  Owned<ort::MemoryInfo> memory_;
};

std::unique_ptr<Engine> OnnxRuntimeNetwork::engine(int threads, mrisr_precision asked) const {
  if (asked == MRISR_PRECISION_BFLOAT16)
    MRISR_FAIL(
        MRISR_ERROR_ENGINE,
        "precision: bfloat16 was asked for, but ONNX Runtime computes the bundle's float32 graph; use float32, or "
        "auto");
  return std::make_unique<OnnxRuntimeEngine>(*this, threads);
}

}  // namespace

std::shared_ptr<const Network> load_onnxruntime(const std::string& folder, const Config& config,
                                                const OnnxRuntime& how) {
  return std::make_shared<OnnxRuntimeNetwork>(folder, config, how);
}

}  // namespace mrisr::runtime
