// OpenVINO on the CPU, float32 or bfloat16, compiled once per tile size; the settings of mrisr/infer/engines/openvino.py.
#include <algorithm>
#include <chrono>
#include <list>
#include <map>
#include <mutex>
#include <openvino/openvino.hpp>

#include "engine.h"
#include "error.h"
#include "shared.h"

namespace mrisr::runtime {
namespace {

// Compiled sizes held per job, and by a model of jobs that are closed; each has its own packed copy of the weights.
constexpr auto kKeepShapes = static_cast<std::size_t>(shared::kKeepShapes);
const auto kPatience =
    std::chrono::milliseconds(shared::kWaitMs);  // how often a running request looks for a cancellation

template <class Call>
auto guarded(const char* what, Call&& call) {
  try {
    return call();
  } catch (const std::bad_alloc&) { throw; } catch (const Error&) {
    throw;
  } catch (const std::exception& error) {
    MRISR_FAIL(MRISR_ERROR_ENGINE, "openvino: cannot " << what << ": " << plain_text(error.what()));
  }
}

ov::Shape plain_shape(const Triple& size) {
  return {1, 1, static_cast<std::size_t>(size[0]), static_cast<std::size_t>(size[1]),
          static_cast<std::size_t>(size[2])};
}

ov::Shape coarse_shape(const Triple& size, const Config& config) {
  ov::Shape shape{1, static_cast<std::size_t>(config.guidance.channels)};
  for (std::int64_t n : size) shape.push_back(static_cast<std::size_t>(n / config.guidance.stride));
  return shape;
}

ov::Shape vector_shape(const Config& config) { return {1, static_cast<std::size_t>(config.vector.length)}; }

// A network compiled for one size; one job's at a time.
struct Ready {
  Triple size;
  int threads;
  mrisr_precision precision;
  ov::CompiledModel compiled;
  ov::InferRequest request;

  bool fits(const Triple& wanted, int n, mrisr_precision p) const {
    return size == wanted && threads == n && precision == p;
  }
};

class OpenVinoNetwork final : public Network {
 public:
  OpenVinoNetwork(const std::string& folder, const Config& config, const std::string& cache) : config_(config) {
    const Graph* graph = config.graph("openvino");
    if (graph == nullptr) graph = config.graph("onnx");
    guarded("read the bundle's graph", [&] {
      if (!cache.empty()) core_.set_property(ov::cache_dir(cache));
      model_ = core_.read_model(folder + "/" + graph->file);
      for (const std::string& name : config.network.inputs) model_->input(name);  // raises where it is not there
      model_->output(config.network.output);
    });
  }

  std::unique_ptr<Engine> engine(int threads, mrisr_precision asked) const override;

  ov::CompiledModel compile(const Triple& size, int threads, mrisr_precision precision) const {
    return guarded("compile the network", [&] {
      const std::shared_ptr<ov::Model> model = model_->clone();
      const auto& in = config_.network.inputs;
      model->reshape({{in[0], plain_shape(size)},
                      {in[1], plain_shape(size)},
                      {in[2], vector_shape(config_)},
                      {in[3], coarse_shape(size, config_)}});
      // Always stated, and never f16, which on a CPU is slower and wrong.
      const ov::element::Type type = precision == MRISR_PRECISION_BFLOAT16 ? ov::element::bf16 : ov::element::f32;
      return core_.compile_model(model, "CPU", ov::hint::inference_precision(type),
                                 ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY), ov::num_streams(1),
                                 ov::inference_num_threads(threads));
    });
  }

  const Config& config() const { return config_; }

  // What a closed job has left, so that the next one, of whatever scan, need not compile it again; the oldest goes.
  // Without its working memory, which a run that failed or was cancelled still has; what cannot be freed is dropped.
  void leave(std::list<Ready>&& ready) const {
    ready.remove_if([](Ready& r) {
      try {
        r.compiled.release_memory();
        return false;
      } catch (const std::exception&) { return true; }
    });
    const std::lock_guard<std::mutex> hold(idle_lock_);
    idle_.splice(idle_.begin(), ready);
    while (idle_.size() > kKeepShapes) idle_.pop_back();
  }

  // Into `to`, where one of that kind is there.
  bool take(std::list<Ready>& to, const Triple& size, int threads, mrisr_precision precision) const {
    const std::lock_guard<std::mutex> hold(idle_lock_);
    const auto place =
        std::find_if(idle_.begin(), idle_.end(), [&](const Ready& r) { return r.fits(size, threads, precision); });
    if (place == idle_.end()) return false;
    to.splice(to.begin(), idle_, place);
    return true;
  }

  // Why OpenVINO has no bfloat16 here; empty where it has.
  std::string lacks_bfloat16() const {
    if (bfloat16_instructions().empty()) return "this processor has neither AMX-BF16 nor AVX512-BF16";
    const std::vector<std::string> able = core_.get_property("CPU", ov::device::capabilities);
    if (std::find(able.begin(), able.end(), ov::device::capability::BF16) != able.end()) return {};
    return "OpenVINO does not compute in bfloat16 on this processor";
  }

  // Difference of bfloat16 from float32 on the fixed tile; found once per number of threads.
  double bfloat16_difference(int threads) const {
    const std::lock_guard<std::mutex> hold(lock_);
    const auto entry = differences_.find(threads);
    if (entry != differences_.end()) return entry->second;
    const FixedTile tile(config_);
    const double rms =
        difference(on_tile(tile, threads, MRISR_PRECISION_BFLOAT16), on_tile(tile, threads, MRISR_PRECISION_FLOAT32));
    return differences_[threads] = rms;
  }

 private:
  std::vector<float> on_tile(const FixedTile& tile, int threads, mrisr_precision precision) const;

  mutable std::mutex lock_;
  mutable std::map<int, double> differences_;
  const Config config_;
  mutable ov::Core core_;
  std::shared_ptr<ov::Model> model_;
  mutable std::mutex idle_lock_;
  mutable std::list<Ready> idle_;  // goes before the core that made it
};

class OpenVinoEngine final : public Engine {
 public:
  OpenVinoEngine(const OpenVinoNetwork& network, int threads, Precision precision, bool leaves = true)
      : network_(network), threads_(threads), precision_(std::move(precision)), leaves_(leaves) {}

  ~OpenVinoEngine() override {
    if (leaves_) network_.leave(std::move(ready_));
  }

  std::string name() const override { return builtin_engine(); }
  Precision precision() const override { return precision_; }

  Cost cost() const override {
    const Config& config = network_.config();
    return {shared::kOpenVinoFixed + shared::kWeightCopies * sizeof(float) * static_cast<double>(config.parameters),
            shared::kOpenVinoMaps * static_cast<double>(config.network.widths[0]) * sizeof(float) / 8};
  }

  bool prepare(const Triple& size) override {
    for (auto it = ready_.begin(); it != ready_.end(); ++it)
      if (it->size == size) {
        ready_.splice(ready_.begin(), ready_, it);
        return false;
      }
    const bool is_idle = network_.take(ready_, size, threads_, precision_.value);
    if (!is_idle) {
      ov::CompiledModel compiled = network_.compile(size, threads_, precision_.value);
      guarded("make a request", [&] {
        ov::InferRequest request = compiled.create_infer_request();
        ready_.push_front({size, threads_, precision_.value, std::move(compiled), std::move(request)});
      });
    }
    while (ready_.size() > kKeepShapes) ready_.pop_back();
    return !is_idle;
  }

  void run(const mrisr_tile& tile, Watch& watch) override {
    const Triple size{tile.size[0], tile.size[1], tile.size[2]};
    prepare(size);
    ov::InferRequest& request = ready_.front().request;
    const Config& config = network_.config();
    const auto& in = config.network.inputs;
    const auto tensor = [](const float* data, const ov::Shape& shape) {
      return ov::Tensor(ov::element::f32, shape, const_cast<float*>(data));
    };
    guarded("run the network", [&] {
      request.set_tensor(in[0], tensor(tile.x, plain_shape(size)));
      request.set_tensor(in[1], tensor(tile.y, plain_shape(size)));
      request.set_tensor(in[2], tensor(tile.vector, vector_shape(config)));
      request.set_tensor(in[3], tensor(tile.guidance, coarse_shape(size, config)));
      request.set_tensor(config.network.output, tensor(tile.f, plain_shape(size)));
      request.start_async();
      while (!request.wait_for(kPatience))
        if (watch.cancelled()) stop(request);
    });
  }

  void release() override {
    for (Ready& ready : ready_) guarded("release memory", [&] { ready.compiled.release_memory(); });
  }

 private:
  [[noreturn]] static void stop(ov::InferRequest& request) {
    request.cancel();
    try {
      request.wait();
    } catch (const std::exception&) {  // how OpenVINO says that it was cancelled
    }
    MRISR_FAIL(MRISR_ERROR_CANCELLED, "cancelled by the caller");
  }

  const OpenVinoNetwork& network_;
  int threads_;
  Precision precision_;
  bool leaves_;  // what it has compiled, to the network
  std::list<Ready> ready_;
};

class Undisturbed final : public Watch {
 public:
  bool cancelled() override { return false; }
};

std::vector<float> OpenVinoNetwork::on_tile(const FixedTile& tile, int threads, mrisr_precision precision) const {
  std::vector<float> answer(tile.y.size());
  mrisr_tile call{};
  call.struct_size = sizeof call;
  std::fill_n(call.size, 3, tile.edge);
  call.x = tile.x.data(), call.y = tile.y.data();
  call.vector = tile.vector.data(), call.guidance = tile.guidance.data();
  call.f = answer.data();
  Undisturbed watch;
  OpenVinoEngine(*this, threads, {precision, ""}, false).run(call, watch);
  return answer;
}

std::unique_ptr<Engine> OpenVinoNetwork::engine(int threads, mrisr_precision asked) const {
  const std::string missing = asked == MRISR_PRECISION_FLOAT32 ? "" : lacks_bfloat16();
  Precision precision = decide(asked, missing, [&] { return bfloat16_difference(threads); });
  return std::make_unique<OpenVinoEngine>(*this, threads, std::move(precision));
}

}  // namespace

const char* builtin_engine() {
  static const std::string text = [] {
    const ov::Version version = ov::get_openvino_version();
    const std::string build = version.buildNumber;
    return "openvino " + build.substr(0, build.find('-'));
  }();
  return text.c_str();
}

std::shared_ptr<const Network> load_network(const std::string& folder, const Config& config, const std::string& cache) {
  return std::make_shared<OpenVinoNetwork>(folder, config, cache);
}

}  // namespace mrisr::runtime
