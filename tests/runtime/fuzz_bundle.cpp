// The bundle reader on texts that somebody else wrote: it gives a configuration or an Error with MRISR_ERROR_MODEL and
// one line of text, nothing else.
//
// With clang and -DMRISR_LIBFUZZER -fsanitize=fuzzer,address,undefined this is a libFuzzer target. Without, a program:
//   fuzz_bundle judge < cases       cases: 8 bytes of little-endian length, then the text, again and again.
//                                   One line each: "ok", or the error's text.
//   fuzz_bundle mutate EXAMPLE ROUNDS START
//                                   changes the file's text in ROUNDS ways (START: the random numbers') and reads each.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <random>
#include <string>

#include "bundle.h"
#include "error.h"

namespace {

using mrisr::runtime::Error;

std::string judge(std::string_view text) {
  try {
    mrisr::runtime::parse_config(text, "config.json");
    return "ok";
  } catch (const Error& error) {
    const std::string said = error.what();
    const bool fine = error.status() == MRISR_ERROR_MODEL && said.rfind("config.json", 0) == 0 && said.size() < 2000 &&
                      said.find('\n') == std::string::npos;
    if (!fine) {
      std::fprintf(stderr, "status %d: %s\n", static_cast<int>(error.status()), error.what());
      std::abort();
    }
    return said;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  judge({reinterpret_cast<const char*>(data), size});
  return 0;
}

#ifndef MRISR_LIBFUZZER
namespace {

std::string all_of(std::istream& in) { return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()}; }

int judge_all(const std::string& cases) {
  for (std::size_t at = 0; at + 8 <= cases.size();) {
    std::uint64_t length = 0;
    for (int i = 0; i < 8; ++i) length |= std::uint64_t{static_cast<unsigned char>(cases[at + i])} << (8 * i);
    at += 8;
    if (length > cases.size() - at) return 1;
    // Its own block, so that a read past its end is seen.
    const std::string text = cases.substr(at, length);
    std::printf("%s\n", judge(text).c_str());
    at += length;
  }
  return 0;
}

std::string changed(std::string text, std::mt19937_64& random) {
  static const char* const pieces[] = {"{",
                                       "}",
                                       "[",
                                       "]",
                                       "\"",
                                       ",",
                                       ":",
                                       "\\u0000",
                                       "\\ud800",
                                       "\xff",
                                       "\xf4\x90\x80\x80",
                                       "1e999",
                                       "-",
                                       "0",
                                       "NaN",
                                       "null",
                                       "true",
                                       "../",
                                       "[[[[[[[[[[[[[[[[[[",
                                       "99999999999999999999"};
  const auto below = [&](std::size_t n) { return n == 0 ? 0 : static_cast<std::size_t>(random() % n); };
  for (std::size_t n = 1 + below(4) * below(4); n > 0 && !text.empty(); --n) {
    const std::size_t i = below(text.size()), length = below(2) ? 1 : below(80);
    switch (below(5)) {
      case 0:
        text[i] = static_cast<char>(random());
        break;
      case 1:
        text.erase(i, length);
        break;
      case 2:
        text.insert(i, text, below(text.size()), length);
        break;
      case 3:
        text.replace(i, length, pieces[below(std::size(pieces))]);
        break;
      default:
        text.insert(i, pieces[below(std::size(pieces))]);
    }
  }
  return text;
}

int mutate(const std::string& example, long rounds, std::uint64_t start) {
  if (judge(example) != "ok") return 1;
  std::mt19937_64 random(start);
  long accepted = 0;
  for (long i = 0; i < rounds; ++i) accepted += judge(changed(example, random)) == "ok";
  std::printf("%ld texts, %ld of them accepted\n", rounds, accepted);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "judge" && argc == 2) return judge_all(all_of(std::cin));
  if (what == "mutate" && argc == 5) {
    std::ifstream file(argv[2], std::ios::binary);
    return mutate(all_of(file), std::atol(argv[3]), std::strtoull(argv[4], nullptr, 10));
  }
  std::fprintf(stderr, "usage: fuzz_bundle judge | mutate EXAMPLE ROUNDS START\n");
  return 2;
}
#endif
