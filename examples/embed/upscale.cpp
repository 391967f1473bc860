// The same as upscale.c from C++17: handles that close themselves, errors as exceptions, progress and a workspace of the
// caller's, kept from volume to volume.
//
//   upscale_cpp BUNDLE INPUT NX NY NZ DX DY DZ OUTPUT [VOXEL_SIZE]
#include <mrisr.h>

#include <cstdint>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void check(mrisr_status status, const char* what) {
  if (status != MRISR_OK)
    throw std::runtime_error(std::string(what) + ": " + mrisr_status_name(status) + ": " + mrisr_last_error());
}

struct Close {
  void operator()(mrisr_model* model) const { mrisr_close(model); }
  void operator()(mrisr_job* job) const { mrisr_job_close(job); }
};
using Model = std::unique_ptr<mrisr_model, Close>;
using Job = std::unique_ptr<mrisr_job, Close>;

Model open_bundle(const char* folder) {
  mrisr_model* model = nullptr;
  check(mrisr_open(folder, nullptr, &model), "open");
  return Model(model);
}

Job plan(mrisr_model* model, const mrisr_plan_options& how) {
  mrisr_job* job = nullptr;
  check(mrisr_plan(model, &how, &job), "plan");
  return Job(job);
}

// 64-byte aligned memory for mrisr_run; keep it as long as the job, and no run allocates.
class Workspace {
 public:
  explicit Workspace(std::uint64_t bytes)
      : bytes_(bytes), pointer_(::operator new(static_cast<std::size_t>(bytes), std::align_val_t{64})) {}
  ~Workspace() { ::operator delete(pointer_, std::align_val_t{64}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  void* get() const { return pointer_; }
  std::uint64_t bytes() const { return bytes_; }

 private:
  std::uint64_t bytes_;
  void* pointer_;
};

std::vector<float> read_volume(const char* path, std::size_t count) {
  std::vector<float> voxels(count);
  std::ifstream file(path, std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(voxels.data()), static_cast<std::streamsize>(count * sizeof(float))) ||
      file.peek() != std::ifstream::traits_type::eof())
    throw std::runtime_error(path + std::string(": expected a file of exactly NX * NY * NZ float32 voxels"));
  return voxels;
}

std::size_t count_of(const std::int64_t shape[3]) { return static_cast<std::size_t>(shape[0] * shape[1] * shape[2]); }

int print_progress(void*, double fraction) {
  std::cerr << "\r" << static_cast<int>(100 * fraction) << " %" << (fraction >= 1 ? "\n" : "");
  return 0;  // anything else would stop the run
}

void upscale(char** argv, const char* voxel_size) {
  const Model model = open_bundle(argv[1]);
  mrisr_plan_options how;
  mrisr_plan_options_init(&how, sizeof how);
  for (int axis = 0; axis < 3; ++axis) {
    how.shape[axis] = std::strtol(argv[3 + axis], nullptr, 10);
    how.affine[5 * axis] = std::strtod(argv[6 + axis], nullptr);
    if (voxel_size != nullptr) how.voxel_size[axis] = std::strtod(voxel_size, nullptr);
  }
  const Job job = plan(model.get(), how);
  mrisr_geometry geometry;
  mrisr_geometry_init(&geometry, sizeof geometry);
  check(mrisr_job_geometry(job.get(), &geometry), "geometry");

  const std::vector<float> in = read_volume(argv[2], count_of(how.shape));
  std::vector<float> out(count_of(geometry.shape));
  const Workspace workspace(geometry.workspace_bytes);
  mrisr_run_options run;
  mrisr_run_options_init(&run, sizeof run);
  run.input = in.data();
  run.output = out.data();
  run.workspace = workspace.get();
  run.workspace_size = workspace.bytes();
  run.progress = print_progress;
  mrisr_run_info info;
  mrisr_run_info_init(&info, sizeof info);
  check(mrisr_run(job.get(), &run, &info), "run");

  std::ofstream file(argv[9], std::ios::binary);
  file.write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof(float)));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + argv[9]);
  std::cout << geometry.shape[0] << ' ' << geometry.shape[1] << ' ' << geometry.shape[2] << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 10) {
    std::cerr << "usage: " << argv[0] << " BUNDLE INPUT NX NY NZ DX DY DZ OUTPUT [VOXEL_SIZE]\n";
    return 2;
  }
  try {
    upscale(argv, argc > 10 ? argv[10] : nullptr);
  } catch (const std::exception& error) {
    std::cerr << "upscale: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
