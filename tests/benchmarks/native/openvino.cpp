// openvino MODEL SAMPLE PRECISION THREADS OUTPUT: one synchronous request, compiled as edgeopt compiles for batch 1.
#include <openvino/openvino.hpp>

#include "take_turns.hpp"

int main(int, char** arguments) {
    const auto sample = read_file(arguments[2]);
    ov::Core core;
    auto model = core.read_model(arguments[1]);
    auto shape = model->input().get_partial_shape();
    if (shape[0].is_dynamic()) {
        shape[0] = 1;
        model->reshape(shape);
    }
    auto request = core.compile_model(model, "CPU", {{"PERFORMANCE_HINT", "LATENCY"},
                                                     {"NUM_STREAMS", "1"},
                                                     {"INFERENCE_NUM_THREADS", std::string(arguments[4])},
                                                     {"INFERENCE_PRECISION_HINT", std::string(arguments[3])}})
                       .create_infer_request();
    auto input = request.get_input_tensor();
    std::memcpy(input.data(), sample.data(), sample.size());
    request.infer();
    const auto output = request.get_output_tensor();
    std::ofstream(arguments[5], std::ios::binary).write(static_cast<const char*>(output.data()), output.get_byte_size());
    return take_turns(input.data(), sample, [&] { request.infer(); });
}
