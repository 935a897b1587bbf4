// The kernels as a shared library for programs in other languages: `c++ -std=c++20 -O2 -march=native -ffp-contract=off -shared -fPIC`.
#include "table.hpp"

/// Runs a kernel, whose i-th argument's value is at `arguments[i]`; 1 if there is none of that name. One at a time.
extern "C" int twin_launch(const char *kernel, const unsigned grid[3], unsigned threads, void **arguments) {
    for (const Kernel &known : ALL_KERNELS)
        if (strcmp(known.name, kernel) == 0) {
            known.launch({grid[0], grid[1], grid[2]}, threads, arguments);
            return 0;
        }
    return 1;
}

/// How many kernels there are; the names of the first `room` of them go to `names`.
extern "C" unsigned twin_kernels(const char **names, unsigned room) {
    unsigned count = 0;
    for (const Kernel &kernel : ALL_KERNELS)
        if (count++ < room)
            names[count - 1] = kernel.name;
    return count;
}
