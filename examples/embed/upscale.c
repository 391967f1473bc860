/* Upscale a raw volume with libmrisr, from C99.
 *
 *   upscale_c BUNDLE INPUT NX NY NZ DX DY DZ OUTPUT [VOXEL_SIZE]
 *
 * INPUT: NX x NY x NZ numbers, float32 in the machine's byte order, last axis fastest. DX DY DZ: voxel size, mm.
 * OUTPUT: the same of VOXEL_SIZE (0.7) mm; its shape is printed.
 */
#include <mrisr.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const char* what) {
  fprintf(stderr, "upscale: %s: %s\n", what, mrisr_last_error());
  return 1;
}

static void print_log(void* user, int32_t level, const char* text) {
  (void)user;
  fprintf(stderr, "%s: %s\n", level == MRISR_LOG_WARNING ? "warning" : "note", text);
}

static float* read_volume(const char* path, size_t count) {
  FILE* file = fopen(path, "rb");
  float* voxels = file == NULL ? NULL : malloc(count * sizeof *voxels);
  if (voxels != NULL && (fread(voxels, sizeof *voxels, count, file) != count || fgetc(file) != EOF)) {
    free(voxels);
    voxels = NULL;
  }
  if (file != NULL) fclose(file);
  return voxels;
}

static int write_volume(const char* path, const float* voxels, size_t count) {
  FILE* file = fopen(path, "wb");
  int good;
  if (file == NULL) return 0;
  good = fwrite(voxels, sizeof *voxels, count, file) == count;
  return fclose(file) == 0 && good;
}

/* One volume, planned and run. */
static int upscale(mrisr_model* model, const mrisr_plan_options* how, const char* input, const char* output) {
  mrisr_job* job = NULL;
  mrisr_geometry geometry;
  mrisr_run_options run;
  size_t count;
  float *in, *out;
  int code = 1;

  if (mrisr_plan(model, how, &job) != MRISR_OK) return failed("plan");
  mrisr_geometry_init(&geometry, sizeof geometry);
  if (mrisr_job_geometry(job, &geometry) != MRISR_OK) {
    mrisr_job_close(job);
    return failed("geometry");
  }
  count = (size_t)geometry.shape[0] * (size_t)geometry.shape[1] * (size_t)geometry.shape[2];
  in = read_volume(input, (size_t)how->shape[0] * (size_t)how->shape[1] * (size_t)how->shape[2]);
  out = malloc(count * sizeof *out);

  mrisr_run_options_init(&run, sizeof run);
  run.input = in;
  run.output = out;
  if (in == NULL || out == NULL) {
    fprintf(stderr, "upscale: %s: expected a file of exactly NX * NY * NZ float32 voxels\n", input);
  } else if (mrisr_run(job, &run, NULL) != MRISR_OK) {
    failed("run");
  } else if (!write_volume(output, out, count)) {
    fprintf(stderr, "upscale: cannot write %s\n", output);
  } else {
    printf("%ld %ld %ld\n", (long)geometry.shape[0], (long)geometry.shape[1], (long)geometry.shape[2]);
    code = 0;
  }
  free(in);
  free(out);
  mrisr_job_close(job);
  return code;
}

int main(int argc, char** argv) {
  mrisr_open_options open_options;
  mrisr_plan_options how;
  mrisr_model* model = NULL;
  int axis, code;

  if (argc < 10) {
    fprintf(stderr, "usage: %s BUNDLE INPUT NX NY NZ DX DY DZ OUTPUT [VOXEL_SIZE]\n", argv[0]);
    return 2;
  }
  if (mrisr_abi_version() != MRISR_ABI_VERSION) {
    fprintf(stderr, "upscale: the library is of another ABI version\n");
    return 1;
  }
  mrisr_open_options_init(&open_options, sizeof open_options);
  open_options.log = print_log;
  if (mrisr_open(argv[1], &open_options, &model) != MRISR_OK) return failed("open");

  mrisr_plan_options_init(&how, sizeof how);
  for (axis = 0; axis < 3; ++axis) {
    how.shape[axis] = strtol(argv[3 + axis], NULL, 10);
    how.affine[5 * axis] = strtod(argv[6 + axis], NULL);
    if (argc > 10) how.voxel_size[axis] = strtod(argv[10], NULL);
  }
  code = upscale(model, &how, argv[2], argv[9]);
  mrisr_close(model);
  return code;
}
