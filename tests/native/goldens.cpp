// Puts every case of the golden files to the native core: in three placements of memory, on one, two and five threads.
//
//   goldens FOLDER [FAMILY]    FOLDER as goldens.py wrote it; without FAMILY, every file there must have a runner
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

#include "golden.h"
#include "isa.h"

namespace mrisr::test {

Index Item::count() const {
  Index n = 1;
  for (Index s : size) n *= s;
  return n;
}

bool Item::contiguous() const {
  Index step = 1;
  for (std::size_t d = size.size(); d-- > 0; step *= size[d])
    if (size[d] != 1 && stride[d] != step) return count() == 0;
  return true;
}

bool Item::channels_last() const {
  Index step = 1;
  for (std::size_t d : {1, 4, 3, 2, 0}) {
    if (size[d] != 1 && stride[d] != step) return false;
    step *= size[d];
  }
  return true;
}

Item Item::in_rows() const {
  if (contiguous()) return *this;
  Item rows = *this;
  const auto values = logical(reinterpret_cast<const float*>(bytes.data()), size, stride);
  if (kind != Kind::f32) throw std::runtime_error("goldens: only float32 items are copied into rows");
  for (std::size_t i = 0; i < values.size(); ++i)
    reinterpret_cast<float*>(rows.bytes.data())[i] = static_cast<float>(values[i]);
  Index step = 1;
  for (std::size_t d = size.size(); d-- > 0; step *= size[d]) rows.stride[d] = step;
  return rows;
}

Index Item::integer(Index at) const {
  if (kind != Kind::i64 || at >= count()) throw std::runtime_error("goldens: an integer was expected");
  Index value;
  std::memcpy(&value, bytes.data() + at * sizeof(Index), sizeof(Index));
  return value;
}

const Item& Case::at(const std::string& key) const {
  if (const Item* item = find(key)) return *item;
  throw std::runtime_error("goldens: case " + name + " has no item " + key);
}

const Item* Case::find(const std::string& key) const {
  const auto found = items.find(key);
  return found == items.end() ? nullptr : &found->second;
}

std::map<std::string, Runner>& runners() {
  static std::map<std::string, Runner> all;
  return all;
}

Register::Register(const char* family, Runner run) { runners()[family] = std::move(run); }

namespace {

class Reader {
 public:
  explicit Reader(const std::string& path) : file_(path, std::ios::binary) {
    if (!file_) throw std::runtime_error("goldens: cannot read " + path);
    file_.exceptions(std::ios::failbit | std::ios::badbit | std::ios::eofbit);
  }
  template <class T>
  T number() {
    T value;
    file_.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  }
  std::vector<unsigned char> bytes(std::size_t count) {
    std::vector<unsigned char> data(count);
    if (count) file_.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(count));
    return data;
  }
  std::string text() {
    const auto data = bytes(number<std::uint32_t>());
    return {data.begin(), data.end()};
  }
  std::vector<Index> indices(std::uint32_t count) {
    std::vector<Index> all(count);
    for (Index& value : all) value = number<Index>();
    return all;
  }

 private:
  std::ifstream file_;
};

Item read_item(Reader& from) {
  Item item{};
  item.kind = static_cast<Kind>(from.number<std::uint8_t>());
  const auto rank = from.number<std::uint32_t>();
  item.size = from.indices(rank);
  item.stride = from.indices(rank);
  item.bytes = from.bytes(static_cast<std::size_t>(from.number<Index>()));
  return item;
}

std::vector<double> wanted(const Item& item) {
  return item.kind == Kind::f64 ? logical(reinterpret_cast<const double*>(item.bytes.data()), item.size, item.stride)
                                : logical(reinterpret_cast<const float*>(item.bytes.data()), item.size, item.stride);
}

// Largest |got - expected| / max(1, |expected| or, for gradients, the largest |expected|); infinite where NaN differ.
double deviation(const std::vector<double>& got, const std::vector<double>& expected, bool gradient) {
  if (got.size() != expected.size()) return INFINITY;
  double largest = 1, worst = 0;
  for (double e : expected)
    if (gradient && std::isfinite(e)) largest = std::max(largest, std::fabs(e));
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double g = got[i], e = expected[i];
    if (std::isnan(g) != std::isnan(e)) return INFINITY;
    if (std::isnan(g) || g == e) continue;
    const double error = std::fabs(g - e) / (gradient ? largest : std::max(1.0, std::fabs(e)));
    worst = std::max(worst, std::isnan(error) ? INFINITY : error);
  }
  return worst;
}

bool same_bits(const Found& a, const Found& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.first == y.first && x.second.size() == y.second.size() &&
           (x.second.empty() || std::memcmp(x.second.data(), y.second.data(), x.second.size() * sizeof(double)) == 0);
  });
}

// Number of failures of one case; `worst` grows to its largest share of the tolerance.
int check(const std::string& family, const Case& c, const Runner& run, double& worst) {
  int failures = 0;
  Found first;
  for (Placement placement : {Placement::heap, Placement::guard_after, Placement::guard_before})
    for (int threads : {1, 2, 5}) {
      const Found found = run(c, {placement, threads});
      if (first.empty()) first = found;
      if (!same_bits(first, found)) {
        std::printf("FAIL %s %s: %s, %d threads: not the bits of the first run\n", family.c_str(), c.name.c_str(),
                    name_of(placement), threads);
        ++failures;
      }
    }
  for (const auto& [name, values] : first) {
    const bool gradient = name != "expected";
    const double limit = gradient ? c.gradient_tolerance : c.tolerance;
    const double error = deviation(values, wanted(c.at(name)), gradient);
    worst = std::max(worst, error);
    if (error <= limit) continue;
    std::printf("FAIL %s %s: %s is off by %.2e > %.0e\n", family.c_str(), c.name.c_str(), name.c_str(), error, limit);
    ++failures;
  }
  if (first.count("expected") == 0) throw std::runtime_error("goldens: the runner of " + family + " found nothing");
  return failures;
}

int check_family(const std::filesystem::path& file) {
  const std::string family = file.stem().string();
  const auto runner = runners().find(family);
  if (runner == runners().end()) {
    std::printf("FAIL %s: no runner; write tests/native/golden_%s.cpp\n", family.c_str(), family.c_str());
    return 1;
  }
  const std::vector<Case> cases = read_goldens(file.string());
  int failures = 0;
  double worst = 0;
  for (const Case& c : cases) failures += check(family, c, runner->second, worst);
  std::printf("%s %s: %zu cases, max error %.1e\n", failures ? "FAIL" : "ok  ", family.c_str(), cases.size(), worst);
  return cases.empty() ? failures + 1 : failures;
}

}  // namespace

std::vector<Case> read_goldens(const std::string& path) {
  Reader from(path);
  if (from.bytes(8) != std::vector<unsigned char>{'M', 'R', 'G', 'O', 'L', 'D', '1', 0})
    throw std::runtime_error("goldens: " + path + " is not a golden file of this version");
  std::vector<Case> cases(from.number<std::uint32_t>());
  for (Case& c : cases) {
    c.name = from.text();
    c.tolerance = from.number<double>();
    c.gradient_tolerance = from.number<double>();
    for (auto items = from.number<std::uint32_t>(); items > 0; --items) {
      const std::string key = from.text();
      c.items[key] = read_item(from);
    }
  }
  return cases;
}

}  // namespace mrisr::test

int main(int argc, char** argv) try {
  if (argc < 2) throw std::runtime_error("usage: goldens FOLDER [FAMILY]");
  std::printf("instruction set: %s\n", mrisr::isa_name());
  int failures = 0, files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(argv[1])) {
    if (entry.path().extension() != ".golden" || (argc > 2 && entry.path().stem() != argv[2])) continue;
    failures += mrisr::test::check_family(entry.path());
    ++files;
  }
  if (files == 0) throw std::runtime_error("goldens: no such golden file in that folder; run goldens.py");
  return failures == 0 ? 0 : 1;
} catch (const std::exception& error) {
  std::printf("FAIL %s\n", error.what());
  return 1;
}
