// The arrays of one run, laid out twice by the same function: once to count, once in the workspace.
#pragma once

#include "job.h"
#include "tiles.h"

namespace mrisr::runtime {

struct Workspace {
  // All the way through.
  float *lr, *y, *residual;           // the normalised scan; the start, later the result; the residual
  float *state, *following, *before;  // of the sampler, beyond what it needs null
  float *mean, *spread;               // of several samples
  float* scratch;                     // of axis_apply
  float* vector;
  std::uint8_t *bricks, *spare_bricks;
  std::uint8_t* background;  // 1 where the scan has been masked
  std::int64_t* starts[3];
  float* weights[3];

  // One stage after the other, in the same memory.
  struct {
    float *values, *spare, *sample;  // to find the intensity scale and the noise
    float *a, *b;                    // between the products that make y
  } start;
  struct {
    float *tile_x, *tile_y, *tile_f, *tile_spare, *guidance;  // of one tile
  } network;
  struct {
    double *matrix, *work;
    cpu::AxisBand* bands[3];
    float *coefficients[3], *a, *b;
  } band;
  struct {
    float *pilot, *kept, *twice, *energies, *scratch, *a, *b;  // of the scan's filter
  } restore;
  struct {
    std::uint8_t *tissue, *spare;
    float *mean, *scratch;          // to find the head, then to fade
    float *head, *weights, *a, *b;  // of a background that comes back
  } fade;
  struct {
    float *residual, *modes, *a, *b;
    double* partial;
  } consistency;

  std::size_t bytes;
};

Workspace lay_out(const Job& job, void* base);

}  // namespace mrisr::runtime
