// A bundle whose files hold one byte each: what a caller's engine needs is in config.json alone.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

inline std::string read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

class BundleFiles {
 public:
  BundleFiles() {
    std::string name = (std::filesystem::temp_directory_path() / "mrisr-bundle-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    folder = name;
    config = read_text(MRISR_TEST_CONFIG);
    write_text(folder + "/config.json", config);
    for (const char* file : {"model.onnx", "card.md", "weights.safetensors"}) write_text(folder + "/" + file, "x");
  }
  ~BundleFiles() { std::filesystem::remove_all(folder); }

  // config.json with one text replaced.
  void change(const std::string& from, const std::string& to) const {
    write_text(folder + "/config.json", changed(from, to));
  }
  std::string changed(const std::string& from, const std::string& to) const {
    std::string text = config;
    const std::size_t at = text.find(from);
    if (at == std::string::npos) {
      std::fprintf(stderr, "config.json has no %s\n", from.c_str());
      std::abort();
    }
    return text.replace(at, from.size(), to);
  }
  void restore() const { write_text(folder + "/config.json", config); }

  std::string folder, config;
};
