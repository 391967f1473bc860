// The bundle: config.json (format "mrisr-bundle", version 2; mrisr/bundle/__init__.py holds its specification) and the
// files that it names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "foreground.h"

namespace mrisr::runtime {

struct FileEntry {
  std::string name, sha256;
  std::int64_t bytes;
};

struct Graph {
  std::string file, format, precision;
};

struct Span {
  int first, count;  // places in the conditioning vector
};

struct Config {
  std::string name, preset;
  std::int64_t parameters;
  std::vector<FileEntry> files;
  std::vector<Graph> graphs;

  struct {
    std::string inputs[4], output;  // names of the ports; inputs in the order x, y, vector, guidance
    std::int64_t multiple, widths[3], attention_window;
    bool whole_only;  // it normalises over the whole volume: no tiles
  } network;

  struct {
    int length;
    Span log_sigma, mode, width, width_known, profile, noise, noise_known, step_share, spacing, apodisation,
        apodisation_known, denoise;
    double log_sigma_unit, noise_unit;
    int mode_mean, mode_sample;
    std::vector<std::string> profiles;
    int width_decimals;
  } vector;

  struct {
    std::int64_t channels, stride;
  } guidance;

  struct {
    double sigma_data, sigma_min, sigma_max, rho;
    std::vector<std::int64_t> few_steps;  // that the weights were distilled for
    bool denoise;                         // they have learnt to take noise out of what was measured
  } diffusion;

  struct Range {
    bool known;
    double low, high;
  } trained_isotropic, trained_slice;

  struct {
    double foreground, offset_percentile, first_percentile, scale_percentile, settled;
    std::int64_t rounds, sample;
    double bulk_percentile, outlier, alike;
    std::int64_t lag;
  } intensity;

  struct {
    std::int64_t fewest_cells, sample;
  } noise;

  struct {
    int spline_order;
    double thick_slice_ratio;
  } start;

  struct Tiling {
    std::int64_t brick, align, overlap, trim, smallest, margin, fade, fewest_neighbours;
    double air, bright;
  } tiling;

  struct {
    double voxel_size, same_spacing;
  } grid;

  struct {
    int spline_order;
    double end_none, end_all, half;
    TissueRule tissue;
    BackgroundRule background;
    double least, most;
  } fade;

  struct {
    double noise_floor, smallest_eigenvalue, mean_widths;
  } consistency;

  const FileEntry* file(std::string_view name) const;
  // The first graph of a format in float32, or null.
  const Graph* graph(std::string_view format) const;
};

// `where` begins every error text. Raises Error (MRISR_ERROR_MODEL).
Config parse_config(std::string_view text, const std::string& where);

// config.json of a bundle and, with `checksums`, every file's SHA-256. Raises Error (MRISR_ERROR_MODEL).
Config read_bundle(const std::string& folder, bool checksums);

}  // namespace mrisr::runtime
