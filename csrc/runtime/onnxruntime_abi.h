// The part of ONNX Runtime's C interface that engine_onnxruntime.cpp calls. Its packages carry the library and no header,
// so it is declared here; a program then loads whichever build of it is there.
//
// The interface is a table of functions that only ever grows: `GetApi(version)` hands it out where the library is of
// that version or newer, and the place of a function and its arguments stay what they were when it came in (ONNX
// Runtime's own build asserts the places at which versions end: 101, 118, 124, 126, 149, 157, 161, 169, 203, 209).
// Nothing here is newer than version 11; 18 is asked for since CUDA's option `use_tf32` came with it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mrisr::runtime::ort {

constexpr std::uint32_t kApiVersion = 18;  // ONNX Runtime 1.18

struct Env;
struct Status;  // null: no error
struct MemoryInfo;
struct Session;
struct Value;
struct RunOptions;
struct SessionOptions;
struct CudaOptions;
struct TensorRtOptions;

using Unused = void (*)();
using Log = void (*)(void* user, int severity, const char* category, const char* id, const char* where,
                     const char* text);
using Texts = const char* const*;

constexpr int kFatal = 4;            // OrtLoggingLevel
constexpr int kFloat = 1;            // ONNXTensorElementDataType
constexpr int kDeviceAllocator = 0;  // OrtAllocatorType
constexpr int kDefaultMemory = 0;    // OrtMemType

struct Api {
  Unused from_0[2];
  const char* (*GetErrorMessage)(const Status*);
  Unused from_3[1];
  Status* (*CreateEnvWithCustomLogger)(Log, void* user, int severity, const char* id, Env**);
  Unused from_5[1];
  Status* (*DisableTelemetryEvents)(const Env*);
  Status* (*CreateSession)(const Env*, const char* path, const SessionOptions*, Session**);
  Unused from_8[1];
  Status* (*Run)(Session*, const RunOptions*, Texts inputs, const Value* const* values, std::size_t count,
                 Texts outputs, std::size_t output_count, Value** output_values);
  Status* (*CreateSessionOptions)(SessionOptions**);
  Unused from_11[8];
  Status* (*DisableCpuMemArena)(SessionOptions*);
  Unused from_20[4];
  Status* (*SetIntraOpNumThreads)(SessionOptions*, int);
  Unused from_25[14];
  Status* (*CreateRunOptions)(RunOptions**);
  Unused from_40[6];
  Status* (*RunOptionsSetTerminate)(RunOptions*);
  Unused from_47[2];
  Status* (*CreateTensorWithDataAsOrtValue)(const MemoryInfo*, void* data, std::size_t bytes, const std::int64_t* shape,
                                            std::size_t axes, int element, Value**);
  Unused from_50[19];
  Status* (*CreateCpuMemoryInfo)(int allocator, int kind, MemoryInfo**);
  Unused from_70[22];
  void (*ReleaseEnv)(Env*);
  void (*ReleaseStatus)(Status*);
  void (*ReleaseMemoryInfo)(MemoryInfo*);
  void (*ReleaseSession)(Session*);
  void (*ReleaseValue)(Value*);
  void (*ReleaseRunOptions)(RunOptions*);
  Unused from_98[2];
  void (*ReleaseSessionOptions)(SessionOptions*);
  Unused from_101[29];
  Status* (*AddSessionConfigEntry)(SessionOptions*, const char* key, const char* value);
  Unused from_131[39];
  Status* (*AppendTensorRt)(SessionOptions*, const TensorRtOptions*);  // SessionOptionsAppendExecutionProvider_..._V2
  Status* (*CreateTensorRtOptions)(TensorRtOptions**);
  Status* (*UpdateTensorRtOptions)(TensorRtOptions*, Texts keys, Texts values, std::size_t count);
  Unused from_173[1];
  void (*ReleaseTensorRtOptions)(TensorRtOptions*);
  Unused from_175[29];
  Status* (*AppendCuda)(SessionOptions*, const CudaOptions*);
  Status* (*CreateCudaOptions)(CudaOptions**);
  Status* (*UpdateCudaOptions)(CudaOptions*, Texts keys, Texts values, std::size_t count);
  Unused from_207[1];
  void (*ReleaseCudaOptions)(CudaOptions*);
};

#define MRISR_PLACE(function, place) \
  static_assert(offsetof(Api, function) == (place) * sizeof(Unused), "the table's order is ONNX Runtime's")
MRISR_PLACE(GetErrorMessage, 2);
MRISR_PLACE(CreateEnvWithCustomLogger, 4);
MRISR_PLACE(DisableTelemetryEvents, 6);
MRISR_PLACE(CreateSession, 7);
MRISR_PLACE(Run, 9);
MRISR_PLACE(CreateSessionOptions, 10);
MRISR_PLACE(DisableCpuMemArena, 19);
MRISR_PLACE(SetIntraOpNumThreads, 24);
MRISR_PLACE(CreateRunOptions, 39);
MRISR_PLACE(RunOptionsSetTerminate, 46);
MRISR_PLACE(CreateTensorWithDataAsOrtValue, 49);
MRISR_PLACE(CreateCpuMemoryInfo, 69);
MRISR_PLACE(ReleaseEnv, 92);
MRISR_PLACE(ReleaseSessionOptions, 100);
MRISR_PLACE(AddSessionConfigEntry, 130);
MRISR_PLACE(AppendTensorRt, 170);
MRISR_PLACE(ReleaseTensorRtOptions, 174);
MRISR_PLACE(AppendCuda, 204);
MRISR_PLACE(ReleaseCudaOptions, 208);
#undef MRISR_PLACE

struct ApiBase {
  const Api* (*GetApi)(std::uint32_t version);  // null where the library is older
  const char* (*GetVersionString)();
};

using GetApiBase = const ApiBase* (*)();  // the library's one symbol: OrtGetApiBase

}  // namespace mrisr::runtime::ort
