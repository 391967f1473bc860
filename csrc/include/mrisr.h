/* mrisr: MRI super-resolution without Python. C99; the one public header of libmrisr.
 *
 * Research software, not a medical device: detail above the acquired resolution is synthesised.
 *
 *   mrisr_open (a bundle directory) -> mrisr_plan (grid, target voxel size, budget) -> mrisr_job_geometry
 *   -> mrisr_run, any number of times -> mrisr_job_close -> mrisr_close
 *
 * Threads: a model may be used by any number of threads at once; a job by one thread at a time. Jobs are independent
 * of each other. The last error's text belongs to the thread that got it.
 * Memory: every array is the caller's and is neither kept nor freed. `mrisr_run` works in the caller's workspace of
 * `mrisr_geometry.workspace_bytes` (or, where none is given, in one block of that size which it frees again) and
 * allocates nothing else; an engine's own memory is the engine's.
 * Structures: `mrisr_X x; mrisr_X_init(&x, sizeof x);`, then set what you need. The size, kept in `struct_size`, tells
 * the library which version of the structure you were compiled with: a newer library writes and reads no further.
 * Nothing is printed, no signal handler is set, no C++ exception and no C++ type crosses this interface.
 */
#ifndef MRISR_H
#define MRISR_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(MRISR_BUILDING) && (defined(__GNUC__) || defined(__clang__))
#define MRISR_API __attribute__((visibility("default")))
#else
#define MRISR_API
#endif

/* Grows by one whenever a program compiled against an older header would no longer work. */
#define MRISR_ABI_VERSION 1

typedef enum mrisr_status {
  MRISR_OK = 0,
  MRISR_ERROR_ARGUMENT = 1,  /* an argument or option has a value that cannot be right */
  MRISR_ERROR_INPUT = 2,     /* the voxels cannot be used: NaN, infinite, constant */
  MRISR_ERROR_GEOMETRY = 3,  /* the affine cannot be used: zero voxel size, axes in one plane */
  MRISR_ERROR_MODEL = 4,     /* the bundle is missing, damaged, newer than this library, or does not fit */
  MRISR_ERROR_MEMORY = 5,    /* the budget or the workspace is too small, or the system has no memory left */
  MRISR_ERROR_ENGINE = 6,    /* the engine is absent or failed */
  MRISR_ERROR_CANCELLED = 7, /* the caller's callback asked for it */
  MRISR_ERROR_INTERNAL = 8   /* a bug in the library */
} mrisr_status;

typedef struct mrisr_model mrisr_model;
typedef struct mrisr_job mrisr_job;

/* What the library is. None of these fails; the texts are static. */
MRISR_API const char* mrisr_version(void);         /* "0.1.0" */
MRISR_API uint32_t mrisr_abi_version(void);        /* MRISR_ABI_VERSION of the library */
MRISR_API const char* mrisr_build_info(void);      /* version, built-in engine or its absence, instruction set */
MRISR_API const char* mrisr_builtin_engine(void);  /* "openvino 2026.4.1", or NULL where built without one */

/* Text of this thread's last error, "" where there was none; overwritten by the next error of the same thread. */
MRISR_API const char* mrisr_last_error(void);
/* "MRISR_ERROR_MEMORY" and so on. */
MRISR_API const char* mrisr_status_name(mrisr_status status);

/* ---- Engines: what runs the network on one tile ------------------------------------------------------------------ */

typedef enum mrisr_memory_kind {
  MRISR_MEMORY_HOST = 0,
  MRISR_MEMORY_DEVICE = 1 /* tiles are brought there and back by the engine's own copy functions */
} mrisr_memory_kind;

/* One evaluation: contiguous float32, last axis fastest. Pointers are host or device, as the engine asked for. */
typedef struct mrisr_tile {
  size_t struct_size;
  int64_t size[3];       /* D, H, W: multiples of the model's `multiple` (8) */
  const float* x;        /* [1, 1, D, H, W] */
  const float* y;        /* [1, 1, D, H, W] */
  const float* vector;   /* [1, vector_dim] */
  const float* guidance; /* [1, channels, D/stride, H/stride, W/stride] */
  float* f;              /* [1, 1, D, H, W]: to be written */
  void* stream;          /* mrisr_engine_vtable.stream */
} mrisr_tile;

/* An engine of the caller's, in place of the built-in one. Functions return 0, or any other number for an error; they
 * are called by the thread that called mrisr_plan or mrisr_run, never by two threads for one job. Members marked
 * "or NULL" may be absent. The structure is copied by mrisr_plan; what `user` points to must outlive the job. */
typedef struct mrisr_engine_vtable {
  size_t struct_size;
  void* user;            /* handed to every function */
  const char* name;      /* for error texts; or NULL */
  int32_t memory;        /* mrisr_memory_kind */
  void* stream;          /* of the caller's device, handed through; or NULL */
  uint64_t fixed_bytes;  /* what it takes of the memory budget whatever the tile */
  double bytes_per_voxel; /* and per voxel of a tile */
  /* Called before the first tile of a size. or NULL. */
  int (*prepare)(void* user, const int64_t size[3]);
  int (*run)(void* user, const mrisr_tile* tile);
  /* Of engines with device memory, else NULL. Copies are ordered on `stream`; after `wait` they are done. */
  void* (*allocate)(void* user, size_t bytes);
  void (*deallocate)(void* user, void* pointer);
  int (*copy_in)(void* user, void* device, const void* host, size_t bytes, void* stream);
  int (*copy_out)(void* user, void* host, const void* device, size_t bytes, void* stream);
  int (*wait)(void* user, void* stream);
  /* Text of the last error, for mrisr_last_error. or NULL. */
  const char* (*error_text)(void* user);
} mrisr_engine_vtable;

MRISR_API void mrisr_engine_vtable_init(mrisr_engine_vtable* engine, size_t struct_size);

/* ---- A model ------------------------------------------------------------------------------------------------------ */

/* INFO: mrisr_plan says the two grids, the engine and how long it took to make; mrisr_run says how long the engine took
 * to compile a tile size that it had not. WARNING: what is worth a look in the result. */
typedef enum mrisr_log_level { MRISR_LOG_INFO = 0, MRISR_LOG_WARNING = 1 } mrisr_log_level;
/* `text` is valid during the call only. Called by the thread that called the library. */
typedef void (*mrisr_log_callback)(void* user, int32_t level, const char* text);

typedef struct mrisr_open_options {
  size_t struct_size;
  mrisr_log_callback log; /* NULL: nothing is said */
  void* log_user;
  int32_t skip_checksums; /* 1: do not compare the files with the sha256 in config.json */
  const char* cache;      /* folder in which the built-in engine keeps compiled networks, or NULL: nothing is written */
  const char* onnxruntime; /* ONNX Runtime's shared library, for MRISR_RUNTIME_ONNX_*: a path, or NULL: libonnxruntime.so.1
                              where the system's loader finds it. Loaded by the first mrisr_plan that asks for it */
} mrisr_open_options;

MRISR_API void mrisr_open_options_init(mrisr_open_options* options, size_t struct_size);

/* Read a bundle directory (`mrisr export`) and check its files; the network itself is read by the first mrisr_plan with
 * the built-in engine. options may be NULL. On an error *model is NULL. */
MRISR_API mrisr_status mrisr_open(const char* bundle, const mrisr_open_options* options, mrisr_model** model);
/* NULL is allowed. Jobs of the model stay usable. */
MRISR_API void mrisr_close(mrisr_model* model);

typedef struct mrisr_model_info {
  size_t struct_size;
  const char* name;   /* valid until mrisr_close */
  const char* preset;
  const char* sha256; /* of the network's file, 64 hexadecimal digits */
  double sigma_data;
  int32_t multiple;
} mrisr_model_info;

MRISR_API void mrisr_model_info_init(mrisr_model_info* info, size_t struct_size);
MRISR_API mrisr_status mrisr_model_describe(const mrisr_model* model, mrisr_model_info* info);

/* ---- A job: one input grid on one target grid --------------------------------------------------------------------- */

/* Profiles of mrisr.physics.psf: how an axis was acquired. */
typedef enum mrisr_psf_kind {
  MRISR_PSF_UNKNOWN = 0,
  MRISR_PSF_KSPACE = 1,
  MRISR_PSF_GAUSSIAN = 2,
  MRISR_PSF_SUPERGAUSSIAN = 3
} mrisr_psf_kind;
typedef enum mrisr_psf_window { MRISR_WINDOW_BOX = 0, MRISR_WINDOW_HANN = 1, MRISR_WINDOW_TUKEY = 2 } mrisr_psf_window;

typedef struct mrisr_axis_psf {
  int32_t kind;   /* mrisr_psf_kind */
  int32_t window; /* mrisr_psf_window, of a k-space cut */
  double width;   /* acquired voxel size or slice thickness, mm; 0: the stored voxel size */
} mrisr_axis_psf;

typedef enum mrisr_mode {
  MRISR_MODE_AUTO = 0, /* mean, or sample where steps or samples are above 1 */
  MRISR_MODE_MEAN = 1, /* the faithful picture: one noiseless step, the same for every seed */
  MRISR_MODE_SAMPLE = 2
} mrisr_mode;

/* What slices hold beyond the network's answer goes back onto it, all where the point spread is stated, else half; not in
 * mode sample, nor where consistency is off. */
typedef enum mrisr_consistency {
  MRISR_CONSISTENCY_AUTO = 0, /* correct where the point spread is stated (and none of it unknown) */
  MRISR_CONSISTENCY_ON = 1,
  MRISR_CONSISTENCY_OFF = 2
} mrisr_consistency;

/* What the built-in engine computes in. Sums, statistics and the result are float32 in either. */
typedef enum mrisr_precision {
  MRISR_PRECISION_AUTO = 0, /* bfloat16 on a processor that states AMX-BF16 or AVX512-BF16, where a fixed tile agrees with
                               float32; else float32. The tile runs once per model and number of threads. */
  MRISR_PRECISION_FLOAT32 = 1,
  MRISR_PRECISION_BFLOAT16 = 2 /* or an error */
} mrisr_precision;

/* Which of the library's own engines runs the network. None takes another's place. */
typedef enum mrisr_runtime {
  MRISR_RUNTIME_OPENVINO = 0, /* the built-in engine, on the CPU */
  MRISR_RUNTIME_ONNX_CPU = 1, /* ONNX Runtime (1.18 or newer, mrisr_open_options.onnxruntime) and its providers */
  MRISR_RUNTIME_ONNX_CUDA = 2,
  MRISR_RUNTIME_ONNX_TENSORRT = 3 /* and CUDA for what TensorRT does not take */
} mrisr_runtime;

/* What stands beyond the centres of the first and the last slice, where nothing was measured. */
typedef enum mrisr_ends {
  MRISR_ENDS_FADE = 0, /* plain interpolation, into which the network's answer fades */
  MRISR_ENDS_FULL = 1  /* the network's answer, which is wrong there more often than not */
} mrisr_ends;

/* Axes are those of the caller's array, in its order. */
typedef struct mrisr_plan_options {
  size_t struct_size;
  int64_t shape[3];     /* voxels of the input, at least 2 along every axis */
  double affine[16];    /* voxel index -> mm, row-major 4 x 4; _init sets 1 mm and no rotation */
  double voxel_size[3]; /* of the output, mm; 0: the smaller of 0.7 and the input's own */
  double factor[3];     /* how many times finer, in place of voxel_size where not 0 */
  int32_t psf_stated;   /* 0: assumed from the voxel shape; 1: `psf` says it */
  mrisr_axis_psf psf[3];
  int32_t mode;        /* mrisr_mode */
  int32_t steps;       /* network evaluations per sample */
  int32_t samples;     /* the result is their mean; above 1 their standard deviation can be had */
  int32_t consistency; /* mrisr_consistency */
  int32_t threads;     /* the calling one among them; 0: every core this process may use */
  int64_t tile[3];     /* voxels; 0: the whole head in one piece where the budget allows, else overlapping tiles */
  uint64_t memory;     /* budget in bytes, of the whole process; 0: 60 % of what is free, divided by MRISR_WORKERS */
  const mrisr_engine_vtable* engine; /* NULL: the one that `runtime` names */
  int32_t precision;    /* mrisr_precision, of the built-in engine */
  int32_t ends;        /* mrisr_ends */
  int32_t tile_fixed;  /* 1: every tile has exactly the size `tile` (which has to be stated), edges repeated beyond the
                          volume, so that whatever scan comes nothing is compiled that an earlier run has compiled */
  double denoise;      /* 0: what was measured stays, its noise included; 1: its noise is taken out; of samples by a model
                          that has learnt it alone, else MRISR_ERROR_ARGUMENT */
  int32_t runtime;     /* mrisr_runtime, where `engine` is NULL */
} mrisr_plan_options;

MRISR_API void mrisr_plan_options_init(mrisr_plan_options* options, size_t struct_size);

/* Check everything that can be checked without voxels, and prepare. On an error *job is NULL. */
MRISR_API mrisr_status mrisr_plan(mrisr_model* model, const mrisr_plan_options* options, mrisr_job** job);
/* NULL is allowed. */
MRISR_API void mrisr_job_close(mrisr_job* job);

typedef struct mrisr_geometry {
  size_t struct_size;
  int64_t shape[3];     /* voxels of the output */
  double affine[16];    /* of the output */
  double voxel_size[3]; /* mm */
  mrisr_axis_psf psf[3]; /* as stated or assumed */
  int32_t psf_certain;
  int32_t threads;
  uint64_t workspace_bytes; /* for mrisr_run; 64-byte aligned */
  uint64_t expected_bytes;  /* largest resident memory of the process during mrisr_run that the budget allows for */
  uint64_t budget_bytes;
  int64_t largest_tile_voxels; /* no tile has more */
  int32_t precision;          /* mrisr_precision that is used; auto: the caller's engine knows */
  const char* precision_why;  /* valid until mrisr_job_close */
} mrisr_geometry;

MRISR_API void mrisr_geometry_init(mrisr_geometry* geometry, size_t struct_size);
MRISR_API mrisr_status mrisr_job_geometry(const mrisr_job* job, mrisr_geometry* geometry);

/* Return other than 0 to stop: mrisr_run then returns MRISR_ERROR_CANCELLED within one tile. Called by the thread in
 * mrisr_run, between tiles and, by the built-in engine, every 50 ms within one. fraction: 0 to 1, never falling. */
typedef int (*mrisr_progress_callback)(void* user, double fraction);

typedef enum mrisr_element { MRISR_FLOAT32 = 0, MRISR_INT16 = 1 } mrisr_element;

typedef struct mrisr_run_options {
  size_t struct_size;
  const void* input;
  int32_t input_element;   /* mrisr_element */
  int64_t input_stride[3]; /* in elements; all 0: contiguous, last axis fastest */
  float* output;           /* in the input's intensity units; must not overlap the input. NULL: only output_int16 */
  int64_t output_stride[3];
  float* spread;           /* voxel-wise standard deviation of the samples, output's strides; NULL: not wanted */
  uint64_t seed;           /* of the samples */
  void* workspace;         /* NULL: the library allocates it for this call */
  uint64_t workspace_size;
  mrisr_progress_callback progress;
  void* progress_user;
  const uint8_t* mask;  /* of the head, contiguous voxels of the input, 0 outside; NULL: a background that has been masked
                           already (exact zeros, or one value all around) is found. Outside, the output is 0 or that value */
  int32_t nonnegative;  /* 1: values below 0 become 0 */
  int16_t* output_int16; /* the same result as whole numbers, value = stored * scale; output's strides; NULL: not wanted */
  double output_int16_scale; /* 0: 1 where the input is int16 and every value fits, else largest magnitude / 32767 */
} mrisr_run_options;

MRISR_API void mrisr_run_options_init(mrisr_run_options* options, size_t struct_size);

typedef struct mrisr_run_info {
  size_t struct_size;
  double offset, scale; /* the network saw (voxel - offset) / scale */
  double noise;         /* standard deviation in units of scale; negative: too little foreground to know */
  int64_t box_start[3], box_stop[3]; /* processed part of the output, voxels */
  int64_t tile[3];      /* size of a piece */
  int64_t tiles;        /* on the grid */
  int64_t tiles_run;    /* the others held only air */
  int32_t corrected;    /* by consistency */
  double chi2_before, chi2_after; /* per degree of freedom; negative: not computed */
  double outliers;      /* share of the foreground that did not set the scale for being too bright; 0: none */
  int32_t background;   /* 1: a masked background was found, or stated, and kept */
  double background_value;
  double output_int16_scale;    /* that was used; 0: no whole numbers were wanted */
  int64_t output_int16_clipped; /* voxels whose value int16 cannot hold at this scale: they are -32768 or 32767 */
} mrisr_run_info;

MRISR_API void mrisr_run_info_init(mrisr_run_info* info, size_t struct_size);

/* One volume. info may be NULL. After an error the output's voxels are unspecified. */
MRISR_API mrisr_status mrisr_run(mrisr_job* job, const mrisr_run_options* options, mrisr_run_info* info);

#ifdef __cplusplus
}
#endif

#endif /* MRISR_H */
