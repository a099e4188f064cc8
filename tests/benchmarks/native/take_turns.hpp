// The timed loop of `edgeopt.bench.candidate`, in C++: blocks of calls on request, from standard input to standard output.
//
// A line "<ns> <calls>" asks for a block of at least so long and so many calls; the answer is a line of JSON as
// `edgeopt.measurement.Block` reads it. Before each call `input` is written anew with the clock stopped, as edgeopt does.
#pragma once
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iterator>
#include <vector>

inline std::vector<char> read_file(const char* path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline long long now_ns() {
    using namespace std::chrono;
    return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

inline long switches() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nivcsw;
}

template <typename Call>
int take_turns(void* input, const std::vector<char>& sample, Call call) {
    long long budget;
    size_t least;
    while (std::scanf("%lld %zu", &budget, &least) == 2) {
        std::vector<long long> latencies;
        std::vector<size_t> switched;
        call();
        const auto cpu = std::clock();
        const auto opened = now_ns();
        auto last = opened;
        while (last - opened < budget || latencies.size() < least) {
            std::memcpy(input, sample.data(), sample.size());
            const auto before = switches();
            const auto start = now_ns();
            call();
            last = now_ns();
            if (switches() != before) switched.push_back(latencies.size());
            latencies.push_back(last - start);
        }
        std::printf("{\"latencies_ns\":[");
        for (size_t i = 0; i < latencies.size(); ++i) std::printf(i ? ",%lld" : "%lld", latencies[i]);
        std::printf("],\"switched\":[");
        for (size_t i = 0; i < switched.size(); ++i) std::printf(i ? ",%zu" : "%zu", switched[i]);
        const auto cpu_ns = (std::clock() - cpu) * (1000000000LL / CLOCKS_PER_SEC);
        std::printf("],\"wall_ns\":%lld,\"cpu_ns\":%lld}\n", last - opened, cpu_ns);
        std::fflush(stdout);
    }
    return 0;
}
