// onnxruntime MODEL SAMPLE PRECISION THREADS OUTPUT: one session, all optimizations, input and output in place.
#include <onnxruntime_c_api.h>

#include <cstdlib>

#include "take_turns.hpp"

static const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);

static void check(OrtStatus* status) {
    if (!status) return;
    std::fprintf(stderr, "%s\n", api->GetErrorMessage(status));
    std::exit(1);
}

int main(int, char** arguments) {
    auto sample = read_file(arguments[2]);
    OrtEnv* environment;
    OrtSessionOptions* options;
    OrtSession* session;
    check(api->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "native", &environment));
    check(api->CreateSessionOptions(&options));
    check(api->SetIntraOpNumThreads(options, std::atoi(arguments[4])));
    check(api->SetInterOpNumThreads(options, 1));
    check(api->SetSessionGraphOptimizationLevel(options, ORT_ENABLE_ALL));
    check(api->CreateSession(environment, arguments[1], options, &session));

    OrtAllocator* allocator;
    OrtTypeInfo* type;
    const OrtTensorTypeAndShapeInfo* tensor;
    ONNXTensorElementDataType element;
    size_t rank;
    check(api->GetAllocatorWithDefaultOptions(&allocator));
    check(api->SessionGetInputTypeInfo(session, 0, &type));
    check(api->CastTypeInfoToTensorInfo(type, &tensor));
    check(api->GetTensorElementType(tensor, &element));
    check(api->GetDimensionsCount(tensor, &rank));
    std::vector<int64_t> shape(rank);
    check(api->GetDimensions(tensor, shape.data(), rank));
    if (shape[0] < 0) shape[0] = 1;

    char *input_name, *output_name;
    OrtMemoryInfo* memory;
    OrtValue* input;
    OrtValue* output = nullptr;  // made by the first call, and used again by those after it
    check(api->SessionGetInputName(session, 0, allocator, &input_name));
    check(api->SessionGetOutputName(session, 0, allocator, &output_name));
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    std::vector<char> place(sample);
    check(api->CreateTensorWithDataAsOrtValue(memory, place.data(), place.size(), shape.data(), rank, element, &input));
    const auto call = [&] {
        check(api->Run(session, nullptr, &input_name, &input, 1, &output_name, 1, &output));
    };
    call();
    void* found;
    OrtTensorTypeAndShapeInfo* made;
    size_t count;
    check(api->GetTensorMutableData(output, &found));
    check(api->GetTensorTypeAndShape(output, &made));
    check(api->GetTensorShapeElementCount(made, &count));
    std::ofstream(arguments[5], std::ios::binary).write(static_cast<char*>(found), count * sizeof(float));
    return take_turns(place.data(), sample, call);
}
