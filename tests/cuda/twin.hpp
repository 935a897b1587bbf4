// Plays a GPU on the CPU, so that the kernels' own source runs under a plain C++ compiler.
//
// The threads of a block run one after the other on one stack, until one waits for others: at __syncthreads for its block, at
// __syncwarp for its warp, at a shuffle for the thread whose number it asks for. It keeps its stack then, and those that have not
// begun go on on another. Blocks run one after another. `twin::backwards` lets the threads run in the opposite order, which shows a
// missing barrier.
#pragma once
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
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

/// Where to go on.
using Jump = void *[5];

/// Threads that wait for each other.
struct Group {
    unsigned size = 0, arrived = 0;
    /// How often all of them have come together.
    size_t meetings = 0;
};

/// A copy that has been asked for, in a group of its thread's.
struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    unsigned group;
};

/// A thread of a block.
struct Thread {
    /// What it has shown to its warp, and how often it has.
    std::vector<unsigned long long> shown;
    size_t shuffles = 0;
    /// All its copies, of which the first `arrived` are done, and how many groups of them have ended.
    std::vector<Copy> copies;
    size_t arrived = 0;
    unsigned ended_groups = 0;
    /// Whether it has waited for the last kernel.
    bool has_waited = false;

    void reset() {
        shown.clear();
        shuffles = 0;
        copies.clear();
        arrived = 0;
        ended_groups = 0;
        has_waited = false;
    }
};

/// A stack, and the thread that waits on it.
struct Stack {
    std::unique_ptr<char[]> memory;
    ucontext_t start;
    Jump here;
    unsigned thread;
    /// It waits until a count is larger.
    const size_t *count;
    size_t last;
};

/// The block that runs.
struct Block {
    /// Those of the largest block so far: they keep their memory.
    std::vector<Thread> threads;
    std::vector<Group> warps;
    Group all;
    const std::function<void()> *body;
    /// Threads that have begun.
    unsigned begun;
};
inline Block block;
inline unsigned current = 0;
inline dim3 thread_index, block_index, block_size, grid_size;

inline std::vector<std::unique_ptr<Stack>> stacks;
inline std::vector<Stack *> unused, waiting;
inline Stack *running = nullptr;
inline Jump scheduler;

// The compiler's own jumps: the functions of ucontext.h ask the system for the signal mask at every switch, and those of setjmp.h
// take several times as long.
[[noreturn]] __attribute__((noipa)) inline void jump(Jump &to) { __builtin_longjmp(to, 1); }
__attribute__((noipa)) inline void switch_to_scheduler() {
    if (__builtin_setjmp(running->here) == 0)
        jump(scheduler);
}
__attribute__((noipa)) inline void switch_to(Stack &stack, bool is_new) {
    running = &stack;
    if (__builtin_setjmp(scheduler) != 0)
        return;
    if (is_new)
        setcontext(&stack.start);
    jump(stack.here);
}

inline void set_current(unsigned thread) {
    current = thread;
    thread_index = {thread};
}

/// Waits until a count is larger than it was last.
inline void wait_for(const size_t &count, size_t last) {
    if (count > last)
        return;
    running->thread = current;
    running->count = &count;
    running->last = last;
    waiting.push_back(running);
    switch_to_scheduler();
}
/// Waits until all of a group have come here.
inline void meet(Group &group) {
    size_t last = group.meetings;
    if (++group.arrived == group.size) {
        group.arrived = 0;
        group.meetings++;
    }
    wait_for(group.meetings, last);
}

/// What a stack does for ever: the threads that have not begun.
inline void run_threads() {
    for (;;) {
        while (block.begun < block_size.x) {
            unsigned i = block.begun++;
            set_current(backwards ? block_size.x - 1 - i : i);
            (*block.body)();
            if (!block.threads[current].has_waited) {
                printf("a kernel whose threads do not wait for the last one\n");
                fflush(stdout);
                _Exit(1);
            }
        }
        unused.push_back(running);
        switch_to_scheduler();
    }
}

inline Stack &new_stack() {
    constexpr size_t SIZE = 64 << 10;
    Stack &stack = *stacks.emplace_back(new Stack{std::unique_ptr<char[]>(new char[SIZE])});
    getcontext(&stack.start);
    stack.start.uc_stack.ss_sp = stack.memory.get();
    stack.start.uc_stack.ss_size = SIZE;
    makecontext(&stack.start, run_threads, 0);
    return stack;
}

/// Lets the threads of the block run until all are done.
inline void run_block() {
    for (unsigned t = 0; t < block_size.x; t++)
        block.threads[t].reset();
    block.begun = 0;
    while (block.begun < block_size.x) {
        if (unused.empty()) {
            switch_to(new_stack(), true);
        } else {
            Stack *stack = unused.back();
            unused.pop_back();
            switch_to(*stack, false);
        }
    }
    static std::vector<Stack *> round;
    while (!waiting.empty()) {
        round.clear();
        round.swap(waiting);
        bool any = false;
        for (Stack *stack : round) {
            if (*stack->count <= stack->last) {
                waiting.push_back(stack);
                continue;
            }
            any = true;
            set_current(stack->thread);
            switch_to(*stack, false);
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
    block.body = &body;
    if (block.threads.size() < threads)
        block.threads.resize(threads);
    block.all = {threads};
    block.warps.clear();
    for (unsigned first = 0; first < threads; first += 32)
        block.warps.push_back({threads - first < 32 ? threads - first : 32});
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                block_index = {x, y, z};
                run_block();
            }
}

/// What the thread `delta` further on in a run of `width` holds; one beyond it is the thread itself.
template <class T> T shuffled_down(T value, unsigned delta, unsigned width) {
    Thread &self = block.threads[current];
    Thread &other = current % width + delta < width ? block.threads[current + delta] : self;
    size_t shuffle = self.shuffles++;
    self.shown.push_back(0);
    memcpy(&self.shown.back(), &value, sizeof value);
    wait_for(other.shuffles, shuffle);
    memcpy(&value, &other.shown[shuffle], sizeof value);
    return value;
}

/// Kernels run one after the other here; only that each thread waits is checked.
inline void wait_for_last_kernel() { block.threads[current].has_waited = true; }

// Copies happen as late as they may: when their thread waits for them.
inline void start_copy(void *to, const void *from, size_t bytes) {
    Thread &thread = block.threads[current];
    thread.copies.push_back({to, from, bytes, thread.ended_groups});
}
inline void end_group() { block.threads[current].ended_groups++; }
inline void wait_for_groups(unsigned left) {
    Thread &thread = block.threads[current];
    for (; thread.arrived < thread.copies.size(); thread.arrived++) {
        const Copy &copy = thread.copies[thread.arrived];
        if (copy.group + left >= thread.ended_groups)
            break;
        memcpy(copy.to, copy.from, copy.bytes);
    }
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

inline void __syncthreads() { twin::meet(twin::block.all); }
inline void __syncwarp() { twin::meet(twin::block.warps[twin::current / 32]); }
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
