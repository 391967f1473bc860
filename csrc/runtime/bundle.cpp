#include "bundle.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#include "error.h"
#include "json.h"
#include "sha256.h"

namespace mrisr::runtime {
namespace {

constexpr std::int64_t kVersion = 2;
constexpr std::int64_t kLargestConfig = 1 << 20, kLargestFile = std::int64_t{1} << 33;
constexpr const char *kConfig = "config.json", *kModel = "model.onnx", *kCard = "card.md",
                     *kWeights = "weights.safetensors";

[[noreturn]] void refuse(const std::string& where, const std::string& what) {
  MRISR_FAIL(MRISR_ERROR_MODEL, where << ": " << what);
}

const std::string& file_name(const Field& field) { return field.word(128, "._-", "a plain file name"); }

const std::string& word(const Field& field) { return field.word(64, "._+-", "a word of letters, digits and ._+-"); }

const std::string& digest(const Field& field) {
  const std::string& text = field.text();
  const auto digit = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); };
  if (text.size() != 64 || !std::all_of(text.begin(), text.end(), digit)) field.wrong("64 hexadecimal digits");
  return text;
}

void read_version(const Field& root) {
  const Json& top = root.value();
  const Json* format = top.find("format");
  if (top.kind != Json::Kind::object || format == nullptr || format->text != "mrisr-bundle")
    refuse(root.where(), "not the configuration of a bundle (no format 'mrisr-bundle')");
  const Json* version = top.find("format_version");
  if (version != nullptr && version->whole && version->integer > kVersion)
    refuse(root.where(), "format version " + std::to_string(version->integer) + ", and this library reads up to " +
                             std::to_string(kVersion) + "; use a newer one, or export again");
}

void read_files(Config& config, const Field& root) {
  for (const auto& [name, entry] : root["files"].table(3, 32)) {
    Json key;
    key.kind = Json::Kind::text;
    key.text = name;
    file_name(Field(key, root.where() + ".files"));
    entry.exactly({"bytes", "sha256"});
    config.files.push_back({name, digest(entry["sha256"]), entry["bytes"].whole(1, kLargestFile)});
  }
  for (const Field& entry : root["graphs"].list(1, 16)) {
    entry.exactly({"file", "format", "precision"});
    config.graphs.push_back({file_name(entry["file"]), entry["format"].one_of({"onnx", "openvino", "tensorrt"}),
                             entry["precision"].one_of({"float32", "float16", "bfloat16"})});
  }
  const Graph& first = config.graphs.front();
  if (first.file != kModel || first.format != "onnx" || first.precision != "float32")
    refuse(root.where(), std::string("graphs: the first must be ") + kModel + " in float32");
  std::vector<std::string> needed{kModel, kWeights, kCard};
  for (std::size_t i = 0; i < config.graphs.size(); ++i) {
    needed.push_back(config.graphs[i].file);
    for (std::size_t k = 0; k < i; ++k)
      if (config.graphs[k].file == config.graphs[i].file) refuse(root.where(), "graphs: a file stands twice");
  }
  for (const std::string& name : needed)
    if (config.file(name) == nullptr) refuse(root.where(), "files: lacks " + name);
  if (config.file(kConfig) != nullptr)
    refuse(root.where(), std::string("files: ") + kConfig + " cannot hold its own hash");
}

// A port's shape as one text, "1 1 D H W".
std::string shape_of(const Field& port) {
  std::string text;
  for (const Field& size : port["shape"].list(1, 5)) {
    if (!text.empty()) text += ' ';
    text += size.value().kind == Json::Kind::text ? size.one_of({"D", "H", "W", "D/8", "H/8", "W/8"})
                                                  : std::to_string(size.whole(1, 64));
  }
  return text;
}

void read_network(Config& config, const Field& root) {
  const Field network = root["network"];
  network.exactly({"inputs", "outputs", "multiple", "widths", "norm", "attention_window"});
  config.network.multiple = network["multiple"].whole(1, 64);
  const auto widths = network["widths"].list(3, 3);
  for (std::size_t i = 0; i < 3; ++i) config.network.widths[i] = widths[i].whole(8, 4096);
  config.network.whole_only = network["norm"].one_of({"channel", "group"}) == "group";
  config.network.attention_window = network["attention_window"].whole(0, 64);
  const std::string plain = "1 1 D H W", coarse = "1 " + std::to_string(config.guidance.channels) + " D/8 H/8 W/8";
  const std::string shapes[] = {plain, plain, "1 " + std::to_string(config.vector.length), coarse};
  const char* const names[] = {"x", "y", "vector", "guidance"};
  bool is_there[4] = {};
  for (const Field& port : network["inputs"].list(4, 4)) {
    port.exactly({"name", "shape"});
    const std::string name = word(port["name"]), shape = shape_of(port);
    for (int i = 0; i < 4; ++i)
      if (name == names[i]) {
        if (shape != shapes[i]) refuse(port.where(), "expected the shape " + shapes[i] + ", found " + shape);
        config.network.inputs[i] = name;
        is_there[i] = true;
      }
  }
  for (int i = 0; i < 4; ++i)
    if (!is_there[i]) refuse(network.where(), std::string("inputs: lacks ") + names[i]);
  const Field output = network["outputs"].list(1, 1)[0];
  output.exactly({"name", "shape"});
  config.network.output = word(output["name"]);
  if (shape_of(output) != plain) refuse(network.where(), "outputs: expected one of shape " + plain);
}

void read_vector(Config& config, const Field& root) {
  const Field vector = root["vector"];
  vector.exactly(
      {"length", "layout", "log_sigma_unit", "noise_unit", "mode_mean", "mode_sample", "profiles", "width_decimals"});
  auto& v = config.vector;
  v.length = static_cast<int>(vector["length"].whole(1, 64));
  v.log_sigma_unit = vector["log_sigma_unit"].number(0, 1e3, true);
  v.noise_unit = vector["noise_unit"].number(0, 1e3, true);
  v.mode_mean = static_cast<int>(vector["mode_mean"].whole(0, 1));
  v.mode_sample = static_cast<int>(vector["mode_sample"].whole(0, 1));
  v.width_decimals = static_cast<int>(vector["width_decimals"].whole(0, 9));
  for (const Field& profile : vector["profiles"].list(1, 16)) v.profiles.push_back(word(profile));
  const Field layout = vector["layout"];
  layout.exactly({"log_sigma", "mode", "width", "width_known", "profile", "noise", "noise_known", "step_share",
                  "spacing", "apodisation", "apodisation_known", "denoise"});
  const struct {
    const char* name;
    Span* span;
    int count;
  } entries[] = {{"log_sigma", &v.log_sigma, 1},
                 {"mode", &v.mode, 1},
                 {"width", &v.width, 3},
                 {"width_known", &v.width_known, 3},
                 {"profile", &v.profile, 3 * static_cast<int>(v.profiles.size())},
                 {"noise", &v.noise, 1},
                 {"noise_known", &v.noise_known, 1},
                 {"step_share", &v.step_share, 1},
                 {"spacing", &v.spacing, 3},
                 {"apodisation", &v.apodisation, 3},
                 {"apodisation_known", &v.apodisation_known, 1},
                 {"denoise", &v.denoise, 1}};
  std::uint64_t used = 0;
  for (const auto& entry : entries) {
    const Field place = layout[entry.name];
    const auto pair = place.list(2, 2);
    *entry.span = {static_cast<int>(pair[0].whole(0, 63)), static_cast<int>(pair[1].whole(0, 63))};
    if (entry.span->count != entry.count)
      refuse(place.where(),
             "expected " + std::to_string(entry.count) + " places, found " + std::to_string(entry.span->count));
    if (entry.span->first + entry.count > v.length) refuse(place.where(), "passes the end of the vector");
    for (int i = entry.span->first; i < entry.span->first + entry.count; ++i) {
      if (used >> i & 1) refuse(layout.where(), "entries overlap");
      used |= std::uint64_t{1} << i;
    }
  }
}

void read_guidance(Config& config, const Field& root) {
  const Field guidance = root["guidance"];
  guidance.exactly({"channels", "stride", "layout"});
  config.guidance.channels = guidance["channels"].whole(1, 64);
  config.guidance.stride = guidance["stride"].whole(1, 64);
  if (config.guidance.stride != 8) refuse(guidance.where(), "stride: expected 8, as the shapes say");
  const auto layout = guidance["layout"].list(1, 64);
  for (const Field& name : layout) word(name);
  if (static_cast<std::int64_t>(layout.size()) != config.guidance.channels)
    refuse(guidance.where(), "layout and channels differ in number");
}

void read_diffusion(Config& config, const Field& root) {
  const Field diffusion = root["diffusion"];
  diffusion.exactly(
      {"sigma_data", "sigma_min", "sigma_max", "sampler", "rho", "mode", "steps", "few_steps", "denoise"});
  config.diffusion = {diffusion["sigma_data"].number(0, 10, true),
                      diffusion["sigma_min"].number(0, 1e3, true),
                      diffusion["sigma_max"].number(0, 1e3, true),
                      diffusion["rho"].number(1, 100),
                      {},
                      diffusion["denoise"].flag()};
  diffusion["sampler"].one_of({"dpmpp_2m"});
  diffusion["mode"].one_of({"mean", "sample"});
  diffusion["steps"].whole(1, 1000);
  for (const Field& steps : diffusion["few_steps"].list(0, 16))
    config.diffusion.few_steps.push_back(steps.whole(1, 1000));
  if (config.diffusion.sigma_min >= config.diffusion.sigma_max)
    refuse(diffusion.where(), "sigma_min must be below sigma_max");
}

Config::Range read_range(const Field& field) {
  if (field.is_null()) return {false, 0, 0};
  const auto pair = field.list(2, 2);
  const Config::Range range{true, pair[0].number(0, 1e3, true), pair[1].number(0, 1e3, true)};
  if (range.low > range.high) refuse(field.where(), "expected (low, high)");
  return range;
}

void read_preprocessing(Config& config, const Field& root) {
  const Field range = root["trained_range"], intensity = root["intensity"], noise = root["noise"],
              start = root["start"];
  range.exactly({"isotropic", "slice"});
  config.trained_isotropic = read_range(range["isotropic"]);
  config.trained_slice = read_range(range["slice"]);
  intensity.exactly({"foreground", "offset_percentile", "first_percentile", "scale_percentile", "rounds", "settled",
                     "sample", "bulk_percentile", "outlier", "alike", "lag"});
  config.intensity = {intensity["foreground"].number(0, 1, true),
                      intensity["offset_percentile"].number(0, 100),
                      intensity["first_percentile"].number(0, 100),
                      intensity["scale_percentile"].number(0, 100),
                      intensity["settled"].number(0, 1),
                      intensity["rounds"].whole(1, 1000),
                      intensity["sample"].whole(1, 1000000000),
                      intensity["bulk_percentile"].number(0, 100),
                      intensity["outlier"].number(1, 1e3),
                      intensity["alike"].number(0, 1, true),
                      intensity["lag"].whole(1, 64)};
  noise.exactly({"fewest_cells", "sample"});
  config.noise = {noise["fewest_cells"].whole(1, 1000000000), noise["sample"].whole(1, 1000000000)};
  start.exactly({"spline_order", "thick_slice_ratio"});
  config.start = {static_cast<int>(start["spline_order"].whole(1, 5)), start["thick_slice_ratio"].number(1, 100)};
  if (config.start.spline_order % 2 == 0) start["spline_order"].wrong("1 or 3 or 5");
  const Field consistency = root["consistency"];
  consistency.exactly({"noise_floor", "smallest_eigenvalue", "mean_widths"});
  config.consistency = {consistency["noise_floor"].number(0, 1, true),
                        consistency["smallest_eigenvalue"].number(0, 1, true),
                        consistency["mean_widths"].number(1, 100)};
}

void read_fade(Config& config, const Field& root) {
  const Field grid = root["grid"], fade = root["fade"];
  grid.exactly({"voxel_size", "same_spacing"});
  config.grid = {grid["voxel_size"].number(0, 100, true), grid["same_spacing"].number(0, 1, true)};
  fade.exactly({"spline_order", "end_none", "end_all", "half", "darkest", "certain", "over_air", "background_share",
                "background_solid", "least", "most"});
  config.fade = {
      static_cast<int>(fade["spline_order"].whole(1, 5)),
      fade["end_none"].number(0, 100),
      fade["end_all"].number(0, 100, true),
      fade["half"].number(0, 1, true),
      {fade["darkest"].number(0, 1, true), fade["certain"].number(0, 1, true), fade["over_air"].number(1, 100)},
      {fade["background_share"].number(0, 1, true), fade["background_solid"].number(0, 1, true)},
      fade["least"].number(0, 1, true),
      fade["most"].number(0, 1, true)};
  if (config.fade.spline_order % 2 == 0) fade["spline_order"].wrong("1 or 3 or 5");
  if (config.fade.end_none >= config.fade.end_all) refuse(fade.where(), "end_none must be below end_all");
  if (config.fade.tissue.darkest > config.fade.tissue.certain)
    refuse(fade.where(), "darkest must not be above certain");
}

void read_tiling(Config& config, const Field& root) {
  const Field tiling = root["tiling"];
  tiling.exactly(
      {"brick", "align", "overlap", "trim", "smallest", "margin", "fade", "air", "bright", "fewest_neighbours"});
  Config::Tiling& t = config.tiling;
  t = {tiling["brick"].whole(1, 256),  tiling["align"].whole(1, 1024),           tiling["overlap"].whole(0, 1024),
       tiling["trim"].whole(0, 512),   tiling["smallest"].whole(1, 4096),        tiling["margin"].whole(0, 1024),
       tiling["fade"].whole(1, 1024),  tiling["fewest_neighbours"].whole(0, 26), tiling["air"].number(0, 1, true),
       tiling["bright"].number(1, 1e3)};
  if (t.align % config.network.multiple != 0) refuse(tiling.where(), "align: must be a multiple of network.multiple");
  if (t.brick != config.network.multiple) refuse(tiling.where(), "brick: must be network.multiple");
  if (2 * t.trim >= t.overlap) refuse(tiling.where(), "trim must be below half of overlap");
  if (t.smallest < t.align + t.overlap) refuse(tiling.where(), "smallest: must be align + overlap at least");
}

struct Close {
  void operator()(std::FILE* f) const { std::fclose(f); }
};
using File = std::unique_ptr<std::FILE, Close>;

// Size of a file of the bundle, which has to be a regular file inside of the folder.
std::int64_t regular(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  struct stat status;
  if (lstat(path.c_str(), &status) != 0) refuse(path, "is missing; export or copy the bundle again");
  if (S_ISLNK(status.st_mode)) {
    const std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
    const std::unique_ptr<char, decltype(&std::free)> home(realpath(folder.c_str(), nullptr), &std::free);
    if (real == nullptr || home == nullptr || stat(path.c_str(), &status) != 0) refuse(path, "is a link to nothing");
    if (std::string(real.get()).rfind(std::string(home.get()) + "/", 0) != 0)
      refuse(path, "is a link out of the bundle; copy the file instead");
  }
  if (!S_ISREG(status.st_mode)) refuse(path, "is not a regular file");
  return static_cast<std::int64_t>(status.st_size);
}

File open_file(const std::string& path) {
  File file(std::fopen(path.c_str(), "rb"));
  if (file == nullptr) refuse(path, "cannot be read");
  return file;
}

void check_file(const std::string& folder, const FileEntry& entry) {
  const std::string path = folder + "/" + entry.name;
  const File file = open_file(path);
  Sha256 sum;
  std::vector<char> block(1 << 20);
  while (const std::size_t n = std::fread(block.data(), 1, block.size(), file.get())) sum.add(block.data(), n);
  if (sum.hex() != entry.sha256)
    refuse(path, std::string("its SHA-256 is not the one in ") + kConfig + "; export or copy the bundle again");
}

}  // namespace

const FileEntry* Config::file(std::string_view name) const {
  for (const FileEntry& entry : files)
    if (entry.name == name) return &entry;
  return nullptr;
}

const Graph* Config::graph(std::string_view format) const {
  for (const Graph& entry : graphs)
    if (entry.format == format && entry.precision == "float32") return &entry;
  return nullptr;
}

Config parse_config(std::string_view text, const std::string& where) {
  const Json document = parse_json(text, where);
  const Field root(document, where);
  read_version(root);
  root.exactly({"format",     "format_version", "library_version", "notice", "name",    "model_version", "preset",
                "parameters", "opset",          "files",           "graphs", "network", "vector",        "guidance",
                "diffusion",  "trained_range",  "intensity",       "noise",  "start",   "tiling",        "grid",
                "fade",       "consistency"});
  root["format_version"].whole(kVersion, kVersion);
  word(root["library_version"]);
  root["notice"].line();
  root["model_version"].whole(0, 1000000);
  root["opset"].whole(18, 25);
  Config config{};
  config.name = word(root["name"]);
  config.preset = word(root["preset"]);
  config.parameters = root["parameters"].whole(1, 1000000000);
  read_files(config, root);
  read_vector(config, root);
  read_guidance(config, root);
  read_network(config, root);
  read_diffusion(config, root);
  read_preprocessing(config, root);
  read_tiling(config, root);
  read_fade(config, root);
  return config;
}

Config read_bundle(const std::string& folder, bool checksums) {
  struct stat status;
  if (stat(folder.c_str(), &status) != 0 || !S_ISDIR(status.st_mode))
    refuse(folder, "there is no such folder; give the folder that `mrisr export` made");
  const std::int64_t size = regular(folder, kConfig);
  const std::string path = folder + "/" + kConfig;
  if (size > kLargestConfig)
    refuse(path, std::to_string(size) + " bytes; a configuration has at most " + std::to_string(kLargestConfig));
  std::string text(static_cast<std::size_t>(size), '\0');
  if (std::fread(text.data(), 1, text.size(), open_file(path).get()) != text.size()) refuse(path, "cannot be read");
  Config config = parse_config(text, path);
  for (const FileEntry& entry : config.files) {
    const std::int64_t bytes = regular(folder, entry.name);
    if (bytes != entry.bytes)
      refuse(folder + "/" + entry.name, std::to_string(bytes) + " bytes, expected " + std::to_string(entry.bytes) +
                                            (bytes < entry.bytes ? " (truncated)" : " (too large)") +
                                            "; export or copy the bundle again");
    if (checksums) check_file(folder, entry);
  }
  return config;
}

}  // namespace mrisr::runtime
