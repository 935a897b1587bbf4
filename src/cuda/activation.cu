// The functions between the linear maps, and what their outcome multiplies: a thread computes one number.
#include "normal.cuh"
#include "tanh.cuh"

constexpr f64 SQRT_8_OVER_PI = 1.5957691216057307;
constexpr f64 CUBIC = 0.044715;

__device__ inline f64 twice_u(f64 x) { return SQRT_8_OVER_PI * (x + CUBIC * (x * x * x)); }

/// GeLU in the tanh form, x / (1 + e^(−2u)) with u = √(2/π) (x + 0.044715 x³).
__device__ inline f64 gelu_tanh(f64 x) { return x / (1 + exponential(-twice_u(x))); }
__device__ inline f32 gelu_tanh(f32 x) {
    f64 wide = x;
    return x != x ? x : (f32)(wide / (1 + exp_wide(-twice_u(wide))));
}

/// The same in bf16 as `gelu_new` of Hugging Face: x/2 · (1 + tanh u), each operation rounded.
__device__ inline bf16 gelu_new(bf16 narrow) {
    auto round = [](f64 x) { return widen<f64>(rounded_once<bf16>(x)); };
    f64 x = widen<f64>(narrow);
    f64 cube = round(round(x * x) * x);
    f64 sum = round(x + round(CUBIC * cube));
    f64 tanh = round(tanh_of(round(SQRT_8_OVER_PI / 2 * sum)));
    return rounded_once<bf16>(round(0.5 * x) * round(1 + tanh));
}

/// GeLU itself, x Φ(x), in f64.
template <class A> __device__ inline A gelu(A x) { return (A)((f64)x * normal_below(x)); }

/// x / (1 + e^−x).
template <class A> __device__ inline A silu(A x) { return x / ((A)1 + exponential(-x)); }

/// A NaN stays one.
template <class A> __device__ inline A relu(A x) { return x < 0 ? 0 : x; }

/// An activation goes to `out`, and times `up`, if that is not null, to `product`.
template <class E> __device__ inline void store_activation(E act, unsigned long long i, E *out, const E *up, E *product) {
    out[i] = act;
    if (up)
        product[i] = rounded<E>(acc(act) * acc(up[i]));
}

#define KERNEL(name, E)                                                                                                \
    extern "C" __global__ void name##_##E(const E *x, E *out, const E *up, E *product, size_t n) {                     \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n)                                                                                                     \
            store_activation(rounded<E>(name(acc(x[i]))), i, out, up, product);                                        \
    }
#define KERNELS(E) KERNEL(gelu_tanh, E) KERNEL(gelu, E) KERNEL(silu, E) KERNEL(relu, E)
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)
#undef KERNELS
#undef KERNEL

extern "C" __global__ void gelu_new_bf16(const bf16 *x, bf16 *out, const bf16 *up, bf16 *product, size_t n) {
    wait_for_last_kernel();
    unsigned long long i = thread_of_grid();
    if (i < n)
        store_activation(gelu_new(x[i]), i, out, up, product);
}

/// Logits, softly cut to ±cap.
#define SOFTCAP(E)                                                                                                     \
    extern "C" __global__ void softcap_##E(const E *x, f64 cap, E *out, size_t n) {                                    \
        wait_for_last_kernel();                                                                                        \
        unsigned long long i = thread_of_grid();                                                                       \
        if (i < n)                                                                                                     \
            out[i] = softcapped<E>(acc(x[i]), cap);                                                                    \
    }
SOFTCAP(f64)
SOFTCAP(f32)
SOFTCAP(bf16)
#undef SOFTCAP
