// Image messages of the MRD (ISMRMRD) stream -> one volume through libmrisr -> whole numbers and the DICOM geometry of
// every slice. What a reconstruction computer has in its hands, without HDF5, XML or sockets.
//
//   mrd_volume BUNDLE MESSAGES OUTPUT [VOXEL_SIZE]
//
// MESSAGES: one after the other, as they come over the wire: 1022, a header of 198 bytes, a text, the voxels; slices of one
// volume or one 3D image; ushort, short or float.
// OUTPUT: int16, x fastest, then y, then slices. Standard output: what goes into DICOM, one line per value.
#include <mrisr.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Vector = std::array<double, 3>;

constexpr std::uint16_t kImageMessage = 1022, kCloseMessage = 4;

#pragma pack(push, 1)
struct ImageHeader {  // ismrmrd.h, version 1
  std::uint16_t version, data_type;
  std::uint64_t flags;
  std::uint32_t measurement_uid;
  std::uint16_t matrix_size[3];
  float field_of_view[3];  // mm
  std::uint16_t channels;
  float position[3];  // of the image's centre, LPS, mm
  float read_dir[3], phase_dir[3], slice_dir[3], table[3];
  std::uint16_t average, slice, contrast, phase, repetition, set;
  std::uint32_t time[4];
  std::uint16_t image_type, image_index, image_series_index;
  std::int32_t user_int[8];
  float user_float[8];
  std::uint32_t attribute_bytes;
};
#pragma pack(pop)
static_assert(sizeof(ImageHeader) == 198, "the header has no padding");

struct Image {
  ImageHeader header;
  std::vector<float> voxels;
};

struct Close {
  void operator()(mrisr_model* model) const { mrisr_close(model); }
  void operator()(mrisr_job* job) const { mrisr_job_close(job); }
};

void check(mrisr_status status, const char* what) {
  if (status != MRISR_OK)
    throw std::runtime_error(std::string(what) + ": " + mrisr_status_name(status) + ": " + mrisr_last_error());
}

void print_log(void*, int32_t level, const char* text) {
  std::cerr << (level == MRISR_LOG_WARNING ? "warning: " : "note: ") << text << '\n';
}

class Reader {
 public:
  explicit Reader(const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error(std::string("cannot read ") + path);
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }
  bool done() const { return at_ == bytes_.size(); }
  template <class T>
  T take() {
    T value;
    std::memcpy(&value, skip(sizeof value), sizeof value);
    return value;
  }
  // The lengths of the protocol are what the sender says: never more than there is.
  const char* skip(std::uint64_t count) {
    if (count > bytes_.size() - at_) throw std::runtime_error("MESSAGES: ends within an image");
    at_ += static_cast<std::size_t>(count);
    return bytes_.data() + at_ - count;
  }

 private:
  std::vector<char> bytes_;
  std::size_t at_ = 0;
};

template <class T>
std::vector<float> converted(const char* from, std::size_t count) {
  std::vector<float> voxels(count);
  for (std::size_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, from + i * sizeof value, sizeof value);
    voxels[i] = static_cast<float>(value);
  }
  return voxels;
}

Image read_image(Reader& reader) {
  Image image{reader.take<ImageHeader>(), {}};
  reader.skip(reader.take<std::uint64_t>());  // the text
  const ImageHeader& h = image.header;
  const std::uint64_t count = std::uint64_t{h.matrix_size[0]} * h.matrix_size[1] * h.matrix_size[2];
  if (h.channels != 1 || count == 0) throw std::runtime_error("MESSAGES: expected images of one channel");
  switch (h.data_type) {
    case 1:
      image.voxels = converted<std::uint16_t>(reader.skip(2 * count), count);
      break;
    case 2:
      image.voxels = converted<std::int16_t>(reader.skip(2 * count), count);
      break;
    case 5:
      image.voxels = converted<float>(reader.skip(4 * count), count);
      break;
    default:
      throw std::runtime_error("MESSAGES: expected ushort, short or float voxels (magnitude images)");
  }
  return image;
}

std::vector<Image> read_images(const char* path) {
  std::vector<Image> images;
  for (Reader reader(path); !reader.done();) {
    const auto kind = reader.take<std::uint16_t>();
    if (kind == kCloseMessage) break;
    if (kind != kImageMessage)
      throw std::runtime_error("MESSAGES: expected image messages (1022), found " + std::to_string(kind));
    images.push_back(read_image(reader));
    if (std::memcmp(images[0].header.matrix_size, images.back().header.matrix_size, sizeof(ImageHeader::matrix_size)) !=
        0)
      throw std::runtime_error("MESSAGES: images of different sizes are no volume");
  }
  if (images.empty()) throw std::runtime_error("MESSAGES: holds no image");
  return images;
}

double along(const ImageHeader& h) {
  return h.position[0] * h.slice_dir[0] + h.position[1] * h.slice_dir[1] + h.position[2] * h.slice_dir[2];
}

struct Volume {
  std::int64_t shape[3];
  double affine[16];  // voxel -> LPS, mm: what mrisr_plan gets is what it gives back, in the same coordinates
  std::vector<float> voxels;
};

Volume joined(std::vector<Image> images) {
  std::sort(images.begin(), images.end(),
            [](const Image& a, const Image& b) { return along(a.header) < along(b.header); });
  const ImageHeader &first = images.front().header, &last = images.back().header;
  const auto* n = first.matrix_size;
  const auto slices = static_cast<std::int64_t>(images.size());
  if (slices > 1 && n[2] > 1) throw std::runtime_error("MESSAGES: several 3D images; send one volume at a time");
  Volume volume{{n[0], n[1], slices > 1 ? slices : n[2]}, {}, {}};
  const double distance =
      slices > 1 ? (along(last) - along(first)) / static_cast<double>(slices - 1) : first.field_of_view[2] / n[2];
  for (std::size_t k = 1; k < images.size(); ++k)
    if (std::fabs(along(images[k].header) - along(images[k - 1].header) - distance) > 0.02 * distance)
      throw std::runtime_error("MESSAGES: slices are missing, doubled or unevenly spaced");
  for (int row = 0; row < 3; ++row) {
    const double x = first.read_dir[row] * double(first.field_of_view[0]) / n[0];
    const double y = first.phase_dir[row] * double(first.field_of_view[1]) / n[1], z = first.slice_dir[row] * distance;
    const double middle = slices > 1 ? 0 : (n[2] - 1) / 2.0;  // of one image, in slices
    volume.affine[4 * row] = x, volume.affine[4 * row + 1] = y, volume.affine[4 * row + 2] = z;
    // `position` is the centre; DICOM and libmrisr want the centre of the first voxel.
    volume.affine[4 * row + 3] = first.position[row] - x * (n[0] - 1) / 2.0 - y * (n[1] - 1) / 2.0 - z * middle;
  }
  volume.affine[15] = 1;
  for (const Image& image : images) volume.voxels.insert(volume.voxels.end(), image.voxels.begin(), image.voxels.end());
  return volume;
}

void print_dicom(const mrisr_geometry& g, const mrisr_run_info& info) {
  const double* a = g.affine;
  const double* d = g.voxel_size;
  std::printf("Rows %lld\nColumns %lld\nPixelSpacing %.6g\\%.6g\n", static_cast<long long>(g.shape[1]),
              static_cast<long long>(g.shape[0]), d[1], d[0]);
  std::printf("SpacingBetweenSlices %.6g\nRescaleSlope %.9g\nClippedVoxels %lld\n", d[2], info.output_int16_scale,
              static_cast<long long>(info.output_int16_clipped));
  std::printf("ImageOrientationPatient %.6f\\%.6f\\%.6f\\%.6f\\%.6f\\%.6f\n", a[0] / d[0], a[4] / d[0], a[8] / d[0],
              a[1] / d[1], a[5] / d[1], a[9] / d[1]);
  for (std::int64_t k = 0; k < g.shape[2]; ++k)
    std::printf("ImagePositionPatient %.6g\\%.6g\\%.6g\n", a[3] + k * a[2], a[7] + k * a[6], a[11] + k * a[10]);
}

void upscale(char** argv, const char* voxel_size) {
  mrisr_open_options open;
  mrisr_open_options_init(&open, sizeof open);
  open.log = print_log;
  mrisr_model* opened = nullptr;
  check(mrisr_open(argv[1], &open, &opened), "open");
  const std::unique_ptr<mrisr_model, Close> model(opened);

  const Volume in = joined(read_images(argv[2]));
  mrisr_plan_options how;
  mrisr_plan_options_init(&how, sizeof how);
  std::copy_n(in.shape, 3, how.shape);
  std::copy_n(in.affine, 16, how.affine);
  if (voxel_size != nullptr) std::fill_n(how.voxel_size, 3, std::stod(voxel_size));
  mrisr_job* planned = nullptr;
  check(mrisr_plan(model.get(), &how, &planned), "plan");
  const std::unique_ptr<mrisr_job, Close> job(planned);
  mrisr_geometry grid;
  mrisr_geometry_init(&grid, sizeof grid);
  check(mrisr_job_geometry(job.get(), &grid), "geometry");

  std::vector<std::int16_t> out(static_cast<std::size_t>(grid.shape[0] * grid.shape[1] * grid.shape[2]));
  mrisr_run_options run;
  mrisr_run_options_init(&run, sizeof run);
  mrisr_run_info info;
  mrisr_run_info_init(&info, sizeof info);
  run.input = in.voxels.data();
  run.output_int16 = out.data();
  // MRD and DICOM have x fastest; stated, because the library's own default is the last axis.
  const auto x_fastest = [](const std::int64_t n[3], std::int64_t to[3]) {
    to[0] = 1, to[1] = n[0], to[2] = n[0] * n[1];
  };
  x_fastest(in.shape, run.input_stride);
  x_fastest(grid.shape, run.output_stride);
  check(mrisr_run(job.get(), &run, &info), "run");

  std::ofstream file(argv[3], std::ios::binary);
  file.write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size() * sizeof out[0]));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + argv[3]);
  print_dicom(grid, info);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: " << argv[0] << " BUNDLE MESSAGES OUTPUT [VOXEL_SIZE]\n";
    return 2;
  }
  try {
    upscale(argv, argc > 4 ? argv[4] : nullptr);
  } catch (const std::exception& error) {
    std::cerr << "mrd_volume: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
