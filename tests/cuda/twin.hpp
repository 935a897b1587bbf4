// Plays a GPU on the CPU, so that the kernels' own source runs under a plain C++ compiler.
//
// Every thread of a block is a fiber. A fiber runs until it waits for others: at __syncthreads for its block, at a shuffle for its
// warp. Blocks run one after another. `twin::backwards` lets the threads run in the opposite order, which shows a missing barrier.
#pragma once
#include <cmath>
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace twin {

inline bool backwards = false;

/// Threads that wait for each other.
struct Group {
    unsigned size = 0, arrived = 0;
    unsigned long long generation = 0;
};

/// A copy that has been asked for.
struct Copy {
    void *to;
    const void *from;
    size_t bytes;
};

/// A thread of a block.
struct Fiber {
    /// Where it starts, and where it goes on.
    ucontext_t start;
    jmp_buf here;
    bool started = false, done = false;
    /// What it waits for: the end of a generation.
    const Group *group = nullptr;
    unsigned long long generation = 0;
    /// What it shows to its warp.
    unsigned long long exchanged = 0;
    /// Groups of copies that have not arrived, of which the last is not yet complete.
    std::deque<std::vector<Copy>> copies{{}};

    bool waits() const { return group && group->generation == generation; }
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Group> warps;
    Group all;
    const std::function<void()> &body;
};
inline Block *block = nullptr;
inline unsigned current = 0;
inline jmp_buf scheduler;
inline dim3 thread_index, block_index, block_size, grid_size;

// Jumps, because the functions of ucontext.h ask the system for the signal mask at every switch.
__attribute__((noinline)) inline void switch_to_scheduler(Fiber &fiber) {
    if (_setjmp(fiber.here) == 0)
        _longjmp(scheduler, 1);
}
__attribute__((noinline)) inline void switch_to(Fiber &fiber) {
    if (_setjmp(scheduler) != 0)
        return;
    if (fiber.started)
        _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.start);
}

/// Waits until all of a group have come here.
inline void wait(Group &group) {
    if (++group.arrived == group.size) {
        group.arrived = 0;
        group.generation++;
        return;
    }
    Fiber &fiber = block->fibers[current];
    fiber.group = &group;
    fiber.generation = group.generation;
    switch_to_scheduler(fiber);
}

inline void run_fiber() {
    block->body();
    block->fibers[current].done = true;
    _longjmp(scheduler, 1);
}

/// Lets the threads of a block run until all are done.
inline void run_block(Block &b) {
    constexpr size_t STACK = 64 << 10;
    static std::vector<std::unique_ptr<char[]>> stacks;
    unsigned threads = b.fibers.size();
    while (stacks.size() < threads)
        stacks.emplace_back(new char[STACK]);
    block = &b;
    for (unsigned t = 0; t < threads; t++) {
        ucontext_t &start = b.fibers[t].start;
        getcontext(&start);
        start.uc_stack.ss_sp = stacks[t].get();
        start.uc_stack.ss_size = STACK;
        makecontext(&start, run_fiber, 0);
    }
    for (unsigned left = threads; left > 0;) {
        bool any = false;
        for (unsigned i = 0; i < threads; i++) {
            current = backwards ? threads - 1 - i : i;
            Fiber &fiber = b.fibers[current];
            if (fiber.done || fiber.waits())
                continue;
            any = true;
            thread_index = {current};
            switch_to(fiber);
            left -= b.fibers[current].done;
        }
        if (!any) {
            fprintf(stderr, "twin: threads of a block wait for others that have ended or wait elsewhere\n");
            abort();
        }
    }
}

/// Runs a kernel: `body` for every thread.
inline void launch(dim3 grid, unsigned threads, const std::function<void()> &body) {
    grid_size = grid;
    block_size = {threads};
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = {x, y, z};
                Block b{std::vector<Fiber>(threads), {}, {threads}, body};
                for (unsigned first = 0; first < threads; first += 32)
                    b.warps.push_back({threads - first < 32 ? threads - first : 32});
                run_block(b);
            }
}

/// What the thread `delta` further on in a run of `width` holds; one beyond it is the thread itself.
template <class T> T shuffled_down(T value, unsigned delta, unsigned width) {
    unsigned thread = current;
    Group &warp = block->warps[thread / 32];
    memcpy(&block->fibers[thread].exchanged, &value, sizeof value);
    wait(warp);
    unsigned from = thread % width + delta < width ? thread + delta : thread;
    memcpy(&value, &block->fibers[from].exchanged, sizeof value);
    wait(warp);
    return value;
}

// Copies happen as late as they may: when their thread waits for them.
inline void start_copy(void *to, const void *from, size_t bytes) {
    block->fibers[current].copies.back().push_back({to, from, bytes});
}
inline void end_group() { block->fibers[current].copies.emplace_back(); }
inline void wait_for_groups(unsigned left) {
    auto &groups = block->fibers[current].copies;
    for (; groups.size() > left + 1; groups.pop_front())
        for (Copy copy : groups.front())
            memcpy(copy.to, copy.from, copy.bytes);
}

inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }

/// a · b + c, with a and b of 8 significant bits. Denormal inputs and results are zeros, where a result is denormal that is below
/// 2⁻¹²⁶ after rounding to 24 bits.
inline float fma_ftz(float a, float b, float c) {
    a = flushed(a), b = flushed(b), c = flushed(c);
    float sum = __builtin_fmaf(a, b, c);
    if (std::fabs(sum) == 0x1p-126f && std::fabs(__builtin_fmaf(a * 0x1p60f, b, c * 0x1p60f)) < 0x1p-66f)
        return std::copysign(0.0f, sum);
    return flushed(sum);
}

template <class To, class From> To with_bits_of(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "the bits of one are those of the other");
    memcpy(&to, &from, sizeof to);
    return to;
}

} // namespace twin

#define threadIdx twin::thread_index
#define blockIdx twin::block_index
#define blockDim twin::block_size
#define gridDim twin::grid_size

inline void __syncthreads() { twin::wait(twin::block->all); }
inline void __syncwarp() { twin::wait(twin::block->warps[twin::current / 32]); }
template <class T> T __shfl_down_sync(unsigned, T value, unsigned delta, unsigned width) {
    return twin::shuffled_down(value, delta, width);
}
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float __uint_as_float(unsigned bits) { return twin::with_bits_of<float>(bits); }
inline unsigned __float_as_uint(float x) { return twin::with_bits_of<unsigned>(x); }
inline double __longlong_as_double(unsigned long long bits) { return twin::with_bits_of<double>(bits); }
inline unsigned long long __double_as_longlong(double x) { return twin::with_bits_of<unsigned long long>(x); }
using std::copysign;
using std::fabs;
using std::sqrt;
