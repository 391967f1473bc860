// The parts of libmrisr by themselves: what reads a bundle, and the arithmetic that Python leaves to its libraries.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <vector>

#include "bundle.h"
#include "bundle_files.h"
#include "check.h"
#include "eigen.h"
#include "error.h"
#include "intensity.h"
#include "json.h"
#include "matrices.h"
#include "memory.h"
#include "precision.h"
#include "sha256.h"

using namespace mrisr::runtime;

namespace {

template <class Call>
std::string refusal(Call&& call, mrisr_status status = MRISR_ERROR_MODEL) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT(error.status() == status);
    return error.what();
  }
  return "nothing was refused";
}

void test_json() {
  const Json good = parse_json(R"( {"a": [1, -2.5e3, true, null], "b": "\u00e9\ud83e\udde0\n"} )", "x");
  EXPECT(good.find("a")->list[1].number == -2500 && !good.find("a")->list[1].whole &&
         good.find("a")->list[0].integer == 1);
  EXPECT(good.find("b")->text == "\xc3\xa9\xf0\x9f\xa7\xa0\n");
  const char* const bad[] = {"",
                             "{",
                             "[1,]",
                             "{\"a\":1,}",
                             "01",
                             "1.",
                             ".5",
                             "1e",
                             "+1",
                             "nul",
                             "NaN",
                             "Infinity",
                             "-",
                             "1e999",
                             "\"a",
                             "\"\t\"",
                             "\"\\x\"",
                             "\"\\u12\"",
                             "\"\\ud800\"",
                             "\"\\udc00\"",
                             "\"\\ud800\\u0041\"",
                             "\"\xff\"",
                             "\"\xc0\x80\"",
                             "\"\xed\xa0\x80\"",
                             "\"\xf5\x80\x80\x80\"",
                             "\"\xc3\"",
                             "{} {}",
                             "{1:2}",
                             "[1 2]",
                             "'a'"};
  for (const char* text : bad) EXPECT_TEXT(refusal([&] { parse_json(text, "x"); }), "x: not JSON (");
  EXPECT_TEXT(refusal([] { parse_json("{\"a\":1,\"a\":2}", "x"); }), "'a' stands twice");
  EXPECT_TEXT(refusal([] { parse_json(std::string(100000, '['), "x"); }), "nests more than 16 levels");
  std::string many = "[0";
  for (int i = 0; i < 100001; ++i) many += ",0";
  EXPECT_TEXT(refusal([&] { parse_json(many + "]", "x"); }), "more than 100000 values");
  std::string names = "{\"0\":0";
  for (int i = 1; i < 300; ++i) names += ",\"" + std::to_string(i) + "\":0";
  EXPECT_TEXT(refusal([&] { parse_json(names + "}", "x"); }), "more than 256 names");
}

void test_sha256() {
  const auto of = [](const std::string& text) {
    Sha256 sum;
    for (std::size_t i = 0; i < text.size(); i += 7)
      sum.add(text.data() + i, std::min<std::size_t>(7, text.size() - i));
    return sum.hex();
  };
  EXPECT(of("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT(of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT(of(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void test_config(const BundleFiles& files) {
  const Config config = parse_config(files.config, "c");
  EXPECT(config.name == "base" && config.network.widths[0] == 32 && config.tiling.overlap == 24 &&
         config.vector.profile.first == 8);
  const struct {
    const char *from, *to, *text;
  } changes[] = {
      {"\"mrisr-bundle\"", "\"other\"", "c: not the configuration of a bundle"},
      {"\"format_version\": 2", "\"format_version\": 3", "format version 3, and this library reads up to 2"},
      {"\"format_version\": 2", "\"format_version\": \"2\"", "c.format_version: expected a whole number"},
      {"\"opset\": 22", "\"opset\": 99", "c.opset: expected a whole number from 18 to 25, found 99"},
      {"\"parameters\": 3009608", "\"parameters\": 3e6", "c.parameters: expected a whole number"},
      {"\"notice\"", "\"remark\"", "c: lacks notice"},
      {"\"rho\": 7.0", "\"rho\": 7.0, \"more\": 1", "c.diffusion: has the unknown field 'more'"},
      {"\"sigma_min\": 0.0014", "\"sigma_min\": 9.0014", "sigma_min must be below sigma_max"},
      {"\"log_sigma\": [0, 1]", "\"log_sigma\": [1, 1]", "c.vector.layout: entries overlap"},
      {"\"noise_known\": [21, 1]", "\"noise_known\": [40, 1]", "passes the end of the vector"},
      {"\"profile\": [8, 12]", "\"profile\": [8, 11]", "expected 12 places, found 11"},
      {"\"stride\": 8", "\"stride\": 4", "c.guidance: stride: expected 8"},
      {"[1, 40]", "[1, 41]", "expected the shape 1 40, found 1 41"},
      {"\"name\": \"guidance\"", "\"name\": \"guide\"", "inputs: lacks guidance"},
      {"\"norm\": \"channel\"", "\"norm\": \"batch\"", "c.network.norm: expected 'channel' or 'group', found 'batch'"},
      {"\"trim\": 8", "\"trim\": 12", "trim must be below half of overlap"},
      {"\"brick\": 8", "\"brick\": 16", "brick: must be network.multiple"},
      {"\"align\": 8", "\"align\": 12", "align: must be a multiple of network.multiple"},
      {"\"smallest\": 48", "\"smallest\": 24", "smallest: must be align + overlap at least"},
      {"\"spline_order\": 5", "\"spline_order\": 4", "spline_order: expected 1 or 3 or 5, found 4"},
      {"\"isotropic\": [1.0, 4.0]", "\"isotropic\": [4.0, 1.0]", "c.trained_range.isotropic: expected (low, high)"},
      {"\"card.md\"", "\"../card.md\"", "expected a plain file name, found '../card.md'"},
      {"\"card.md\"", "\"card.txt\"", "files: lacks card.md"},
      {"\"file\": \"model.onnx\"", "\"file\": \"other.onnx\"", "graphs: the first must be model.onnx in float32"},
      {"\"sha256\": \"2d7", "\"sha256\": \"2D7", "expected 64 hexadecimal digits"},
      {"\"air\": 0.075", "\"air\": 0", "c.tiling.air: expected above 0 and at most 1, found 0"},
  };
  for (const auto& change : changes)
    EXPECT_TEXT(refusal([&] { parse_config(files.changed(change.from, change.to), "c"); }), change.text);
  // Cut anywhere, it is refused, and nothing worse.
  for (std::size_t n = 0; n + 2 < files.config.size(); n += 37)
    EXPECT_TEXT(refusal([&] { parse_config(files.config.substr(0, n), "c"); }), "c: not JSON");
}

void test_bundle(const BundleFiles& files) {
  EXPECT(read_bundle(files.folder, true).name == "base");
  const auto refused = [&] { return refusal([&] { read_bundle(files.folder, true); }); };
  const std::string model = files.folder + "/model.onnx";
  write_text(model, "y");
  EXPECT_TEXT(refused(), "model.onnx: its SHA-256 is not the one in config.json");
  EXPECT(read_bundle(files.folder, false).name == "base");
  write_text(model, "xx");
  EXPECT_TEXT(refused(), "2 bytes, expected 1 (too large)");
  write_text(model, "");
  EXPECT_TEXT(refused(), "0 bytes, expected 1 (truncated)");
  std::filesystem::remove(model);
  EXPECT_TEXT(refused(), "model.onnx: is missing");
  std::filesystem::create_symlink("/etc/hostname", model);
  EXPECT_TEXT(refused(), "is a link out of the bundle");
  std::filesystem::remove(model);
  std::filesystem::create_directory(model);
  EXPECT_TEXT(refused(), "is not a regular file");
  std::filesystem::remove(model);
  write_text(model, "x");
  write_text(files.folder + "/config.json", std::string((1 << 20) + 1, ' '));
  EXPECT_TEXT(refused(), "a configuration has at most 1048576");
  files.restore();
}

void test_eigen() {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (std::int64_t n : {1, 2, 3, 7, 40}) {
    std::vector<double> a(static_cast<std::size_t>(n * n)), values(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i)
      for (std::int64_t j = 0; j <= i; ++j) a[i * n + j] = a[j * n + i] = normal(random);
    std::vector<double> v = a;
    symmetric_eigen(v.data(), values.data(), n);
    EXPECT(std::is_sorted(values.begin(), values.end()));
    double worst = 0;
    for (std::int64_t k = 0; k < n; ++k)
      for (std::int64_t i = 0; i < n; ++i) {
        double av = 0, dot = 0;
        for (std::int64_t j = 0; j < n; ++j) av += a[i * n + j] * v[j * n + k], dot += v[j * n + k] * v[j * n + i];
        worst = std::max({worst, std::fabs(av - values[k] * v[i * n + k]), std::fabs(dot - (i == k ? 1 : 0))});
      }
    EXPECT(worst < 1e-12 * static_cast<double>(n));
  }
}

void test_matrices() {
  const std::vector<double> at{-0.3, 0.2, 3.7, 6.4};
  for (int order : {1, 3, 5}) {  // a straight line stays one, beyond the ends too
    const Matrix m = bspline_matrix(7, at, order);
    for (std::size_t i = 0; i < at.size(); ++i) {
      double one = 0, line = 0;
      for (int j = 0; j < 7; ++j) one += m.row(i)[j], line += j * m.row(i)[j];
      EXPECT(std::fabs(one - 1) < 1e-12 && std::fabs(line - at[i]) < 1e-12);
    }
  }
  // The band's closed form is the product of synthesis and analysis.
  const AxisPsf psf{MRISR_PSF_KSPACE, 1.4, MRISR_WINDOW_BOX};
  std::vector<double> closed(23 * 23), work(47), whole(23);
  for (int i = 0; i < 23; ++i) whole[i] = i;
  band_matrix(closed.data(), work.data(), 23, 0.7, psf);
  const Matrix product = fourier_matrix(23, whole, [](double f) { return f < 0.25 ? 1.0 : 0.0; });
  for (std::size_t i = 0; i < closed.size(); ++i) EXPECT(std::fabs(closed[i] - product.values[i]) < 1e-12);
}

void test_sort() {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (std::int64_t n : {1, 2, 1000}) {
    std::vector<float> values(static_cast<std::size_t>(n)), spare(values.size());
    for (float& v : values) v = normal(random) * 1e3f;
    values[0] = -0.0f;
    std::vector<float> expected = values;
    std::sort(expected.begin(), expected.end());
    sort_floats(values.data(), spare.data(), n);
    EXPECT(values == expected);
  }
}

void test_control_groups() {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("mrisr-parts-" + std::to_string(std::random_device{}()));
  const auto put = [&](const std::string& name, const std::string& text) {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name) << text;
  };
  EXPECT(group_free_bytes(root.string()) < 0);
  put("proc/self/cgroup", "9:cpu:/\n4:memory:/slurm/job_42/step_0\n0::/job\n");
  put("proc/self/mountinfo",
      "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
      "41 31 0:38 /host /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\nnonsense\n");
  put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9000000000\n");
  put("sys/fs/cgroup/memory/memory.usage_in_bytes", "1000000000\n");
  EXPECT(group_free_bytes(root.string()) == 8e9);
  put("sys/fs/cgroup/memory/slurm/job_42/memory.limit_in_bytes", "5000000000\n");
  put("sys/fs/cgroup/memory/slurm/job_42/memory.usage_in_bytes", "3000000000\n");
  put("sys/fs/cgroup/memory/slurm/job_42/memory.stat", "cache 7\ntotal_inactive_file 1000000000\n");
  fs::create_directories(root / "sys/fs/cgroup/memory/slurm/job_42/step_0");
  EXPECT(group_free_bytes(root.string()) == 3e9);
  put("sys/fs/cgroup/unified/memory.max", "max\n");
  put("sys/fs/cgroup/unified/memory.current", "1\n");
  EXPECT(group_free_bytes(root.string()) == 3e9);
  put("sys/fs/cgroup/unified/memory.max", "100\n");
  EXPECT(group_free_bytes(root.string()) == 99);
  fs::remove_all(root);
}

void test_precision() {
  const auto never = [] { return 1.0; };
  EXPECT(decide(MRISR_PRECISION_FLOAT32, "", never).value == MRISR_PRECISION_FLOAT32);
  const Precision absent = decide(MRISR_PRECISION_AUTO, "it has none", never);
  EXPECT(absent.value == MRISR_PRECISION_FLOAT32 && absent.why == "auto: it has none");
  EXPECT(decide(MRISR_PRECISION_AUTO, "", [] { return 0.01; }).value == MRISR_PRECISION_BFLOAT16);
  const Precision wrong = decide(MRISR_PRECISION_AUTO, "", [] { return 0.06; });
  EXPECT(wrong.value == MRISR_PRECISION_FLOAT32);
  EXPECT_TEXT(wrong.why, "bfloat16 differs from float32 by 6 %");
  const auto asked = [](const std::string& missing, double found) {
    return refusal([&] { decide(MRISR_PRECISION_BFLOAT16, missing, [&] { return found; }); }, MRISR_ERROR_ENGINE);
  };
  EXPECT_TEXT(asked("it has none", 0), "precision: bfloat16 was asked for, but it has none; use float32, or auto");
  EXPECT_TEXT(asked("", std::numeric_limits<double>::infinity()), "precision: bfloat16 differs from float32 by inf");
  EXPECT(std::isinf(difference({NAN, 1}, {1, 1})) && std::isinf(difference({INFINITY, 1}, {1, 1})));
  EXPECT(std::fabs(difference({1.1f, 1}, {1, 1}) - 0.1 / std::sqrt(2.0)) < 1e-6);
}

}  // namespace

int main() {
  const BundleFiles files;
  test_json();
  test_sha256();
  test_config(files);
  test_bundle(files);
  test_eigen();
  test_matrices();
  test_sort();
  test_control_groups();
  test_precision();
  return check::result("parts");
}
