/* The header from C99, -Wall -Wextra -Werror -pedantic: every _init function, NULL where it is allowed. */
#include <mrisr.h>
#include <stdio.h>
#include <string.h>

#define CHECK(condition)                                      \
  do {                                                        \
    if (!(condition)) {                                       \
      fprintf(stderr, "line %d: %s\n", __LINE__, #condition); \
      return 1;                                               \
    }                                                         \
  } while (0)

int main(void) {
  mrisr_open_options open_options;
  mrisr_plan_options plan_options;
  mrisr_run_options run_options;
  mrisr_run_info run_info;
  mrisr_geometry geometry;
  mrisr_model_info model_info;
  mrisr_engine_vtable engine;
  mrisr_model* model = (mrisr_model*)&engine;

  mrisr_open_options_init(&open_options, sizeof open_options);
  mrisr_plan_options_init(&plan_options, sizeof plan_options);
  mrisr_run_options_init(&run_options, sizeof run_options);
  mrisr_run_info_init(&run_info, sizeof run_info);
  mrisr_geometry_init(&geometry, sizeof geometry);
  mrisr_model_info_init(&model_info, sizeof model_info);
  mrisr_engine_vtable_init(&engine, sizeof engine);
  CHECK(open_options.struct_size == sizeof open_options && open_options.log == NULL);
  CHECK(plan_options.steps == 1 && plan_options.voxel_size[2] == 0 && plan_options.affine[15] == 1);
  CHECK(run_options.struct_size == sizeof run_options && run_options.output == NULL);
  CHECK(run_info.chi2_before < 0 && geometry.struct_size == sizeof geometry);
  CHECK(engine.run == NULL && model_info.name == NULL);

  CHECK(mrisr_abi_version() == MRISR_ABI_VERSION);
  CHECK(strlen(mrisr_version()) >= 5 && strstr(mrisr_build_info(), mrisr_version()) != NULL);
  CHECK(strcmp(mrisr_status_name(MRISR_ERROR_CANCELLED), "MRISR_ERROR_CANCELLED") == 0);
  CHECK(strcmp(mrisr_last_error(), "") == 0);
  CHECK(mrisr_open("/no/such/bundle", NULL, &model) == MRISR_ERROR_MODEL && model == NULL);
  CHECK(strstr(mrisr_last_error(), "/no/such/bundle: there is no such folder") != NULL);
  mrisr_close(NULL);
  mrisr_job_close(NULL);
  return 0;
}
