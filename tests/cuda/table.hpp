// All kernels by name, for whoever launches them without their types.
#pragma once
#include "twin.hpp"

#include "../../src/cuda/kernels.cu"
#include <utility>

struct Kernel {
    const char *name;
    /// `arguments[i]` is where the i-th argument's value is.
    void (*launch)(dim3 grid, unsigned threads, void **arguments);
};

template <class... Formal>
void launch_by_address(void (*kernel)(Formal...), dim3 grid, unsigned threads, void **arguments) {
    [&]<size_t... I>(std::index_sequence<I...>) {
        twin::launch(grid, threads, [&] { kernel(*(Formal *)arguments[I]...); });
    }(std::index_sequence_for<Formal...>());
}

#define ONE(name)                                                                                                      \
    Kernel{#name, [](dim3 grid, unsigned threads, void **arguments) { launch_by_address(name, grid, threads, arguments); }},
#define EACH(name) ONE(name##_f64) ONE(name##_f32) ONE(name##_bf16)
#define PRODUCTS(name) EACH(name##_f64) ONE(name##_f32_f32) ONE(name##_f32_bf16) ONE(name##_bf16_bf16)
static const Kernel ALL_KERNELS[] = {
    PRODUCTS(multiply_one) PRODUCTS(multiply_few) PRODUCTS(multiply_many)
    EACH(scores_few) EACH(scores_many) EACH(probabilities) EACH(weighted_sums_few) EACH(weighted_sums_many)
    EACH(heads) EACH(norm_add_norm)
    EACH(gelu_tanh) EACH(gelu) EACH(silu) EACH(relu) EACH(softcap) ONE(gelu_new_bf16)
    EACH(add) EACH(multiply) EACH(round) EACH(add_bias) EACH(all_finite) ONE(widen_bf16)
    EACH(select_columns) EACH(gather_rows) EACH(combine)
};
#undef PRODUCTS
#undef EACH
#undef ONE
