// What a GPU can do, and how much of it the kernels use. benches/cuda.sh builds and runs it.
#include "../tests/cuda/machine.hpp"

#include "../src/cuda/kernels.cu"
#include "../tests/cuda/numbers.hpp"

#include <algorithm>

/// Seconds from one launch of `run(i)` to the next, where `count` follow each other; i counts them.
template <class Run> double seconds_of(Run run, int count) {
    cudaEvent_t start, end;
    must(cudaEventCreate(&start), "event");
    must(cudaEventCreate(&end), "event");
    cudaEventRecord(start);
    for (int i = 0; i < count; i++)
        run(i);
    cudaEventRecord(end);
    must(cudaDeviceSynchronize(), "kernel");
    float milliseconds;
    cudaEventElapsedTime(&milliseconds, start, end);
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    return milliseconds / 1e3 / count;
}

/// The median of several [`seconds_of`] of about two milliseconds, as launches follow each other in a pass.
template <class Run> double seconds(Run run) {
    seconds_of(run, 1);
    int count = std::clamp((int)(2e-3 / seconds_of(run, 1)), 1, 100);
    std::vector<double> each;
    for (int i = 0; i < 9; i++)
        each.push_back(seconds_of(run, count));
    std::sort(each.begin(), each.end());
    return each[4];
}

/// Random numbers between −1 and 1, of a hash of their place.
template <class E> __global__ void fill(E *to, size_t n, unsigned seed) {
    for (size_t i = thread_of_grid(); i < n; i += (size_t)gridDim.x * blockDim.x) {
        unsigned hash = ((unsigned)i ^ seed) * 2654435769u;
        hash = (hash ^ hash >> 15) * 2246822519u;
        hash ^= hash >> 13;
        f32 number = (f32)(int)hash * 0x1p-31f;
        if constexpr (sizeof(E) == 2)
            to[i] = rounded<bf16>(number);
        else
            to[i] = number;
    }
}
template <class E> void fill(Buffer<E> &buffer, size_t n, unsigned seed) {
    fill<<<2048, 256>>>(buffer.data(), n, seed);
    must(cudaGetLastError(), "fill");
}

__global__ void copy(const float4 *from, float4 *to, size_t n) {
    size_t i = thread_of_grid();
    if (i < n)
        to[i] = from[i];
}
/// Reads, and writes only what never is.
__global__ void read(const float4 *from, float *to, size_t n) {
    float4 sum{};
    for (size_t i = thread_of_grid(); i < n; i += (size_t)gridDim.x * blockDim.x) {
        float4 x = __ldcs(from + i);
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    if (sum.x + sum.y + sum.z + sum.w == 12345.678f)
        *to = sum.x;
}
/// 16 independent chains of multiply-adds.
template <class A> __global__ void multiply_adds(A *to, unsigned rounds) {
    A sums[16], w = 0.999, x = threadIdx.x * 1e-3;
    for (int i = 0; i < 16; i++)
        sums[i] = i;
    for (unsigned round = 0; round < rounds; round++)
#pragma unroll
        for (int i = 0; i < 64; i++)
            sums[i % 16] = fused(w, sums[i % 16], x);
    A sum = 0;
    for (A s : sums)
        sum += s;
    if (sum == (A)12345.678)
        *to = sum;
}
__global__ void flush(const f32 *a, const f32 *b, const f32 *c, f32 *out, size_t n) {
    size_t i = thread_of_grid();
    if (i < n)
        out[i] = flushing_fused(a[i], b[i], c[i]);
}

/// Where a GPU takes a result as denormal, against VDPBF16PS and MXCSR.
static void flushing_edge() {
    Random random(3);
    std::vector<float> a, b, c, got;
    // Sums around ±2^-126: a is 8 bits, b a power of two, and c a few units about it.
    for (int sign : {1, -1})
        for (int low = 100; low < 160; low++)
            for (int m = 128; m < 256; m++)
                for (int k = -3; k <= 3; k++) {
                    a.push_back(std::ldexp(sign * m, -7 - 70));
                    b.push_back(std::ldexp(k % 2 ? 1.0 : -1.0, -low + 70));
                    c.push_back(std::ldexp(sign * (1 + k * 0x1p-23), -126));
                }
    while (a.size() < (1 << 22)) {
        a.push_back(naive::acc(from_double<naive::bf16>(random.number(Kind::TINY, -126))));
        b.push_back(naive::acc(from_double<naive::bf16>(random.number(Kind::TINY, -126))));
        c.push_back((float)random.number(Kind::TINY, -252));
    }
    Buffer<float> a_there(a), b_there(b), c_there(c), out(a.size());
    launch(flush, {(unsigned)(a.size() / 256 + 1)}, 256, a_there.data(), b_there.data(), c_there.data(), out.data(), a.size());
    got = out.read();
    auto flushed = [](float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; };
    size_t after = 0, on_grid = 0, before = 0, shown = 0;
    for (size_t i = 0; i < a.size(); i++) {
        float processor = naive::flushing_fma(a[i], b[i], c[i]);
        float aa = flushed(a[i]), bb = flushed(b[i]), cc = flushed(c[i]), exactly = __builtin_fmaf(aa, bb, cc);
        // Exact in its sign: whether the sum is below 2^-126 before it is rounded.
        double side = std::copysign(0x1p-26, exactly);
        double beyond = __builtin_fma(aa * 0x1p100, (double)bb, cc * 0x1p100 - side) * std::copysign(1.0, exactly);
        float unrounded = beyond < 0 ? std::copysign(0.0f, exactly) : exactly;
        after += !same(got[i], processor);
        on_grid += !same(got[i], flushed(exactly));
        before += !same(got[i], unrounded);
        if (!same(got[i], processor) && shown++ < 3)
            printf("  %a * %a + %a: GPU %a, CPU %a\n", a[i], b[i], c[i], got[i], processor);
    }
    printf("fma.ftz of %zu sums: %zu are not the CPU's (tiny after rounding to 24 bits),\n  %zu not tiny before rounding, %zu not "
           "tiny after rounding to denormals\n",
           a.size(), after, before, on_grid);
}

struct Peaks {
    double bytes, f32, f64;
};
static Peaks peaks() {
    const size_t n = (size_t)1 << 28;
    Buffer<float> from(n), to(n);
    double copied = seconds([&](int) {
        copy<<<n / 4 / 256, 256>>>((const float4 *)from.data(), (float4 *)to.data(), n / 4);
    });
    double was_read = seconds([&](int) { read<<<132 * 16, 512>>>((const float4 *)from.data(), to.data(), n / 4); });
    const unsigned blocks = 132 * 8, threads = 256, rounds = 4000;
    auto rate = [&](double time) { return 2.0 * blocks * threads * rounds * 64 / time; };
    double f32 = rate(seconds([&](int) { multiply_adds<<<blocks, threads>>>(to.data(), rounds); }));
    double f64 = rate(seconds([&](int) { multiply_adds<<<blocks, threads>>>((double *)to.data(), rounds); }));
    printf("memory: copy %.0f GB/s, read %.0f GB/s; multiply-adds: f32 %.1f TFLOP/s, f64 %.1f TFLOP/s\n", 8e-9 * n / copied,
           4e-9 * n / was_read, f32 / 1e12, f64 / 1e12);
    for (size_t bytes : {26214400, 52428800, 104857600})
        printf("reading %zu MB, each time others: %.1f us\n", bytes / 1000000, 1e6 * seconds([&](int i) {
            read<<<132 * 16, 512>>>((const float4 *)(from.data() + bytes / 4 * (i % 8)), to.data(), bytes / 16);
        }));
    return {4.0 * n / was_read, f32, f64};
}

/// Some of a product's numbers against plain loops.
template <class E, class W>
size_t wrong(const Buffer<E> &x, const Buffer<W> &w, const Buffer<Acc<E>> &y, unsigned tokens, unsigned rows, unsigned cols) {
    using Plain = std::conditional_t<sizeof(E) == 2, naive::bf16, E>;
    size_t wrong = 0;
    for (unsigned i = 0; i < 64; i++) {
        unsigned token = i * 37 % tokens, row = i * 2654435769u % rows;
        std::vector<E> of_x(cols);
        std::vector<W> of_w(cols);
        Acc<E> got;
        cudaMemcpy(of_x.data(), x.data() + (size_t)token * cols, cols * sizeof(E), cudaMemcpyDeviceToHost);
        cudaMemcpy(of_w.data(), w.data() + (size_t)row * cols, cols * sizeof(W), cudaMemcpyDeviceToHost);
        must(cudaMemcpy(&got, y.data() + (size_t)token * rows + row, sizeof got, cudaMemcpyDeviceToHost), "copy");
        std::vector<Plain> wide;
        for (W number : of_w) {
            if constexpr (sizeof(W) == 2)
                wide.push_back(from_double<Plain>(naive::acc(naive::bf16{number.bits})));
            else
                wide.push_back(from_double<Plain>(number));
        }
        wrong += !same(got, naive::dot(wide.data(), (const Plain *)of_x.data(), cols));
    }
    return wrong;
}

/// The kernels of a pair of types, with the arguments of one W.
template <class E, class W> struct Products {
    using Kernel = void(const E *, const W *, const Acc<E> *, bool, Acc<E> *, E *, unsigned, const W *, const Acc<E> *, bool, Acc<E> *,
                        E *, unsigned, const W *, const Acc<E> *, bool, Acc<E> *, E *, unsigned, unsigned, unsigned);
    Kernel *one, *few, *many;

    static void run(Kernel *kernel, dim3 grid, unsigned threads, const E *x, const W *w, Acc<E> *y, unsigned tokens, unsigned rows,
                    unsigned cols) {
        kernel<<<grid, threads>>>(x, w, nullptr, false, y, nullptr, rows, nullptr, nullptr, false, nullptr, nullptr, 0, nullptr, nullptr,
                                  false, nullptr, nullptr, 0, tokens, cols);
        must(cudaGetLastError(), "launch");
    }
};

template <class E, class W> void products(const char *types, const Peaks &peaks, Products<E, W> kernels) {
    // The 4B's gate or up and down, its attention's output, gate and up together, and a slice of its head.
    const struct {
        unsigned rows, cols;
    } shapes[] = {{10240, 2560}, {2560, 10240}, {2560, 2048}, {20480, 2560}, {65536, 2560}};
    using Tile = TileOf<E>;
    for (auto [rows, cols] : shapes) {
        const size_t n = (size_t)rows * cols;
        const unsigned copies = std::max<size_t>(2, 300e6 / (n * sizeof(W))), tokens = 512;
        Buffer<W> w(n * copies);
        Buffer<E> x((size_t)tokens * cols);
        Buffer<Acc<E>> y((size_t)tokens * rows);
        fill(w, n * copies, 1);
        fill(x, (size_t)tokens * cols, 2);
        auto run = [&](auto *kernel, dim3 grid, unsigned threads, unsigned tokens, unsigned copy) {
            Products<E, W>::run(kernel, grid, threads, x.data(), w.data() + n * copy, y.data(), tokens, rows, cols);
        };
        const dim3 of_one(rows / FEW_ROWS), of_four(rows / FEW_ROWS, 4 / FEW_TOKENS<E>);
        double one = seconds([&](int i) { run(kernels.one, of_one, FEW_THREADS, 1, i % copies); });
        run(kernels.one, of_one, FEW_THREADS, 1, 0);
        size_t unequal = wrong(x, w, y, 1, rows, cols);
        double four = seconds([&](int i) { run(kernels.few, of_four, FEW_THREADS, 4, i % copies); });
        const dim3 tiles(tokens / Tile::ALL_TOKENS, rows / Tile::ALL_ROWS);
        double all = seconds([&](int) { run(kernels.many, tiles, TILE_THREADS, tokens, 0); });
        unequal += wrong(x, w, y, tokens, rows, cols);
        double rate = 2.0 * tokens * n / all;
        printf("%-10s%6u x %-6u %7.1f us %5.0f GB/s %3.0f %%   %7.1f us   %7.2f ms %5.1f TFLOP/s %3.0f %%   %zu\n", types, rows,
               cols, one * 1e6, n * sizeof(W) / one / 1e9, n * sizeof(W) / one / peaks.bytes * 100, four * 1e6, all * 1e3,
               rate / 1e12, rate / (sizeof(E) == 8 ? peaks.f64 : peaks.f32) * 100, unequal);
    }
}

/// The other kernels, in microseconds, for one token and for 512 of the 4B, with 4096 keys.
template <class E> void others(const char *type, auto *norm_add_norm, auto *gelu_tanh, auto *gelu, auto *heads, auto *scores_few,
                               auto *scores_many, auto *probabilities, auto *sums_few, auto *sums_many) {
    const unsigned hidden = 2560, inner = 10240, q_heads = 8, key_heads = 4, group = 2, head_dim = 256, keys = 4096;
    Buffer<E> x((size_t)512 * inner), y((size_t)512 * inner), cache((size_t)4 * keys * head_dim);
    Buffer<Acc<E>> scale((size_t)hidden), scores((size_t)q_heads * 512 * keys);
    fill(x, (size_t)512 * inner, 4);
    fill(cache, (size_t)4 * keys * head_dim, 5);
    fill(scale, (size_t)hidden, 6);
    for (unsigned tokens : {1u, 512u}) {
        std::vector<unsigned> places;
        for (unsigned t = 0; t < tokens; t++)
            places.push_back(keys - tokens + t);
        Buffer<unsigned> first(std::vector<unsigned>(tokens, 0)), place(places);
        size_t n = (size_t)tokens * inner;
        auto us = [](double time) { return time * 1e6; };
        const Acc<E> *s = scale.data();
        E *u = x.data(), *p = y.data(), *v = p + (size_t)tokens * hidden, *z = v + (size_t)tokens * hidden;
        double norms = us(seconds([&](int) {
            norm_add_norm<<<tokens, 512>>>(RMS, s, nullptr, 1e-6, u, p, u, v, nullptr, RMS, s, nullptr, 1e-6, z, hidden);
        }));
        double of_tanh = us(seconds([&](int) { gelu_tanh<<<n / 256, 256>>>(u, p, u, p, n); }));
        double of_erf = us(seconds([&](int) { gelu<<<n / 256, 256>>>(u, p, u, p, n); }));
        double prepared = us(seconds([&](int) {
            heads<<<dim3(tokens, q_heads + 2 * key_heads), 128>>>(u, p, RMS, false, 1e-6, s, s, scores.data(), scores.data(), head_dim / 2,
                                                                  false, false, u, u, place.data(), cache.data(), cache.data(), keys,
                                                                  q_heads, key_heads, head_dim);
        }));
        double few = us(seconds([&](int) {
            scores_few<<<dim3(keys / FEW_ROWS, tokens, q_heads), FEW_THREADS>>>(x.data(), cache.data(), scores.data(), first.data(),
                                                                              place.data(), tokens, q_heads, group, head_dim, keys, keys);
        }));
        double many = us(seconds([&](int) {
            scores_many<<<dim3((tokens + 31) / 32, keys / TileOf<E>::ALL_ROWS, q_heads), TILE_THREADS>>>(
                x.data(), cache.data(), scores.data(), first.data(), place.data(), tokens, q_heads, group, head_dim, keys, keys);
        }));
        double softmax = us(seconds([&](int) {
            probabilities<<<dim3(tokens, q_heads), 256>>>(scores.data(), first.data(), place.data(), 0.0625, true, 0.0, tokens, keys);
        }));
        auto sums = [&](auto *kernel, unsigned tokens_of_block) {
            return us(seconds([&](int) {
                kernel<<<dim3(head_dim / SUM_ELEMENTS, q_heads, (tokens + tokens_of_block - 1) / tokens_of_block), SUM_THREADS>>>(
                    scores.data(), cache.data(), first.data(), place.data(), y.data(), tokens, q_heads, group, head_dim, keys, keys);
            }));
        };
        printf("%-6s%6u%14.1f%10.1f%6.1f%8.1f%12.1f%12.1f%14.1f%10.1f%11.1f\n", type, tokens, norms, of_tanh, of_erf, prepared, few,
               many, softmax, sums(sums_few, SUM_WARPS), sums(sums_many, SUM_WARPS * 8));
    }
}

int main() {
    cudaDeviceProp device;
    must(cudaGetDeviceProperties(&device, 0), "no device");
    printf("%s, %d multiprocessors, L2 %d MiB\n", device.name, device.multiProcessorCount, device.l2CacheSize >> 20);
    flushing_edge();
    Peaks best = peaks();
    printf("\nproducts                    one token, of what reading gives  four tokens   512 tokens, of f32 or f64 peak   wrong of 128\n");
#define PRODUCTS(E, W) products<E, W>(#E " " #W, best, {multiply_one_##E##_##W, multiply_few_##E##_##W, multiply_many_##E##_##W});
    PRODUCTS(f32, f32)
    PRODUCTS(f32, bf16)
    PRODUCTS(bf16, bf16)
    PRODUCTS(f64, f64)
    PRODUCTS(f64, bf16)
    printf("\nus    tokens norm_add_norm gelu_tanh  gelu   heads  scores_few scores_many probabilities  sums_few  sums_many (4096 keys)\n");
#define OTHERS(E)                                                                                                      \
    others<E>(#E, norm_add_norm_##E, gelu_tanh_##E, gelu_##E, heads_##E, scores_few_##E, scores_many_##E, probabilities_##E,            \
              weighted_sums_few_##E, weighted_sums_many_##E);
    OTHERS(f64)
    OTHERS(f32)
    OTHERS(bf16)
}
