// What a kernel is run on: the GPU under nvcc, its twin under any other compiler.
#pragma once
#ifdef __CUDACC__
#include <cstdio>
#include <cstdlib>
#include <vector>
#else
#include "twin.hpp"
#endif

#ifdef __CUDACC__
/// Ends the program with a message if a call of the CUDA runtime failed.
inline void must(cudaError_t error, const char *what) {
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(2);
}
#endif

/// Numbers in the memory of the machine, between guards that no kernel may touch.
template <class T> class Buffer {
    static constexpr size_t GUARD = 64;
    static constexpr unsigned char FILL = 0xa5;
    size_t n;
    T *memory;

public:
    /// Numbers that a kernel must write: until then they are FILL.
    explicit Buffer(size_t n) : n(n) {
        size_t bytes = (n + 2 * GUARD) * sizeof(T);
#ifdef __CUDACC__
        must(cudaMalloc(&memory, bytes), "cudaMalloc");
        must(cudaMemset(memory, FILL, bytes), "fill");
#else
        memory = (T *)aligned_alloc(64, (bytes + 63) / 64 * 64);
        memset((void *)memory, FILL, bytes);
#endif
    }
    explicit Buffer(const std::vector<T> &numbers) : Buffer(numbers.size()) {
#ifdef __CUDACC__
        must(cudaMemcpy(data(), numbers.data(), n * sizeof(T), cudaMemcpyHostToDevice), "copy");
#else
        memcpy((void *)data(), numbers.data(), n * sizeof(T));
#endif
    }
    Buffer(const Buffer &) = delete;
    ~Buffer() {
#ifdef __CUDACC__
        cudaFree(memory);
#else
        free(memory);
#endif
    }

    T *data() const { return memory + GUARD; }

    /// The numbers, if the guards are as they were; else the program ends.
    std::vector<T> read() const {
        std::vector<T> all(n + 2 * GUARD);
#ifdef __CUDACC__
        must(cudaDeviceSynchronize(), "kernel");
        must(cudaMemcpy(all.data(), memory, all.size() * sizeof(T), cudaMemcpyDeviceToHost), "copy");
#else
        memcpy((void *)all.data(), memory, all.size() * sizeof(T));
#endif
        auto *bytes = (const unsigned char *)all.data();
        for (size_t i = 0; i < GUARD * sizeof(T); i++)
            if (bytes[i] != FILL || bytes[(n + GUARD) * sizeof(T) + i] != FILL) {
                fprintf(stderr, "a kernel wrote outside its output\n");
                exit(2);
            }
        return {all.begin() + GUARD, all.end() - GUARD};
    }
};

/// Runs a kernel.
template <class... Formal, class... Actual>
void launch(void (*kernel)(Formal...), dim3 grid, unsigned threads, Actual... arguments) {
#ifdef __CUDACC__
    kernel<<<grid, threads>>>(arguments...);
    must(cudaGetLastError(), "launch");
#else
    twin::launch(grid, threads, [=] { kernel(arguments...); });
#endif
}
