// Holds kernels to the numbers of their native twins: `native FILE`, which tests/cuda.rs writes. The numbers of a case follow its
// header: first the inputs, then what the native kernel made of them.
#include "machine.hpp"

#include "../../src/cuda/kernels.cu"
#include "numbers.hpp"

static FILE *file;
static Tally tally;

enum Operation : uint32_t { PRODUCT, RMS_NORM, SOFTMAX, GELU_TANH, GELU, SILU, ROPE, WEIGHTED_SUM };
/// What a case is: of `rows` and `cols`, and of `tokens` where it is a product.
struct Header {
    Operation operation;
    uint32_t bytes_of_number, tokens, rows, cols;
};

template <class E> std::vector<E> numbers(size_t n) {
    std::vector<E> all(n);
    if (fread((void *)all.data(), sizeof(E), n, file) != n) {
        fprintf(stderr, "the file ends within a case\n");
        exit(2);
    }
    return all;
}

/// What a kernel of E made of it against the next numbers of the file.
template <class E, class N> void compare(const char *kernel, const Buffer<N> &got) {
    using Plain = std::conditional_t<sizeof(N) == 2, naive::bf16, N>;
    auto all = got.read();
    auto want = numbers<N>(all.size());
    auto plain = [](std::vector<N> &v) { return std::vector<Plain>((const Plain *)v.data(), (const Plain *)v.data() + v.size()); };
    tally.compare(kernel, sizeof(E) == 8 ? "f64" : sizeof(E) == 4 ? "f32" : "bf16", plain(all), plain(want));
}

/// The kernels of a type, by the names of their operations.
template <class E> struct Kernels;
#define KERNELS(E)                                                                                                     \
    template <> struct Kernels<E> {                                                                                    \
        static constexpr auto one = multiply_one_##E##_##E, few = multiply_few_##E##_##E, many = multiply_many_##E##_##E; \
        static constexpr auto norm = norm_add_norm_##E;                                                                \
        static constexpr auto gelu_tanh = gelu_tanh_##E, gelu = gelu_##E, silu = silu_##E;                             \
        static constexpr auto heads = heads_##E;                                                                       \
        static constexpr auto probabilities = probabilities_##E;                                                       \
        static constexpr auto sums_few = weighted_sums_few_##E, sums_many = weighted_sums_many_##E;                    \
    };
KERNELS(f64)
KERNELS(f32)
KERNELS(bf16)

static unsigned pieces(unsigned n, unsigned size) { return (n + size - 1) / size; }

template <class E> void product(Header h) {
    using Tile = TileOf<E>;
    Buffer<E> x(numbers<E>(h.tokens * h.cols)), w(numbers<E>(h.rows * h.cols));
    long at = ftell(file);
    auto check = [&](const char *name, auto *kernel, dim3 grid, unsigned threads) {
        Buffer<Acc<E>> sums(h.tokens * h.rows);
        const Acc<E> *no_bias = nullptr;
        E *no_w = nullptr, *no_out = nullptr;
        Acc<E> *no_sums = nullptr;
        launch(kernel, grid, threads, x.data(), w.data(), no_bias, false, sums.data(), no_out, h.rows, no_w, no_bias, false, no_sums, no_out,
               0u, no_w, no_bias, false, no_sums, no_out, 0u, h.tokens, h.cols);
        fseek(file, at, SEEK_SET);
        compare<E>(name, sums);
    };
    const unsigned few = pieces(h.rows, FEW_ROWS);
    if (h.tokens == 1)
        check("multiply_one", Kernels<E>::one, {few}, FEW_THREADS);
    check("multiply_few", Kernels<E>::few, {few, pieces(h.tokens, FEW_TOKENS<E>)}, FEW_THREADS);
    check("multiply_many", Kernels<E>::many, {pieces(h.tokens, Tile::ALL_TOKENS), pieces(h.rows, Tile::ALL_ROWS)}, TILE_THREADS);
}

template <class E> void rms_norm(Header h) {
    Buffer<E> u(numbers<E>(h.rows * h.cols)), out(h.rows * h.cols);
    Buffer<Acc<E>> scale(numbers<Acc<E>>(h.cols));
    E *none = nullptr;
    const Acc<E> *no_bias = nullptr;
    launch(Kernels<E>::norm, {h.rows}, 128, RMS, scale.data(), no_bias, 1e-6, u.data(), out.data(), none, none, (unsigned *)nullptr,
           NO_NORM, no_bias, no_bias, 0.0, none, h.cols);
    compare<E>("rms_norm", out);
}

template <class E> void function(Header h, const char *name, void (*kernel)(const E *, E *, const E *, E *, size_t)) {
    Buffer<E> x(numbers<E>(h.cols)), out(h.cols);
    E *none = nullptr;
    launch(kernel, {pieces(h.cols, 128)}, 128, x.data(), out.data(), none, none, h.cols);
    compare<E>(name, out);
}

/// `rows` heads of `cols` numbers, all at one position.
template <class E> void rope(Header h) {
    Buffer<E> x(numbers<E>(h.rows * h.cols));
    Buffer<Acc<E>> cos(numbers<Acc<E>>(h.cols / 2)), sin(numbers<Acc<E>>(h.cols / 2));
    E *none = nullptr;
    const Acc<E> *no_scale = nullptr;
    launch(Kernels<E>::heads, {1, h.rows}, 64, x.data(), x.data(), NO_NORM, false, 0.0, no_scale, no_scale, cos.data(), sin.data(),
           h.cols / 2, false, false, none, none, (unsigned *)nullptr, none, none, 0u, h.rows, 0u, h.cols);
    compare<E>("heads", x);
}

/// One token that sees `rows` keys of `cols` numbers.
template <class E> void weighted_sum(Header h) {
    Buffer<Acc<E>> p(numbers<Acc<E>>(h.rows));
    Buffer<E> values(numbers<E>(h.rows * h.cols)), few(h.cols), many(h.cols);
    Buffer<unsigned> first(std::vector<unsigned>{0}), place(std::vector<unsigned>{h.rows - 1});
    for (bool as_many : {false, true})
        launch(as_many ? Kernels<E>::sums_many : Kernels<E>::sums_few, {pieces(h.cols, SUM_ELEMENTS)}, SUM_THREADS, p.data(),
               values.data(), first.data(), place.data(), as_many ? many.data() : few.data(), 1u, 1u, 1u, h.cols, h.rows, h.rows);
    long at = ftell(file);
    compare<E>("weighted_sums_few", few);
    fseek(file, at, SEEK_SET);
    compare<E>("weighted_sums_many", many);
}

/// One token that sees as many keys as there are scores, which are not changed before.
template <class A> void softmax(Header h) {
    Buffer<A> scores(numbers<A>(h.cols));
    Buffer<unsigned> first(std::vector<unsigned>{0}), place(std::vector<unsigned>{h.cols - 1});
    launch(Kernels<A>::probabilities, {1}, 128, scores.data(), first.data(), place.data(), 1.0, false, 0.0, 1u, h.cols);
    compare<A>("probabilities", scores);
}

template <class E> void run(Header h) {
    switch (h.operation) {
    case PRODUCT:
        return product<E>(h);
    case RMS_NORM:
        return rms_norm<E>(h);
    case GELU_TANH:
        return function(h, "gelu_tanh", Kernels<E>::gelu_tanh);
    case GELU:
        return function(h, "gelu", Kernels<E>::gelu);
    case SILU:
        return function(h, "silu", Kernels<E>::silu);
    case ROPE:
        return rope<E>(h);
    case WEIGHTED_SUM:
        return weighted_sum<E>(h);
    case SOFTMAX:
        if constexpr (sizeof(E) > 2)
            return softmax<E>(h);
    }
    fprintf(stderr, "a case of no operation: %u\n", (unsigned)h.operation);
    exit(2);
}

int main(int argc, char **argv) {
    file = argc == 2 ? fopen(argv[1], "rb") : nullptr;
    if (!file) {
        fprintf(stderr, "usage: native FILE, which tests/cuda.rs writes\n");
        return 2;
    }
    Header h;
    while (fread(&h, sizeof h, 1, file) == 1)
        h.bytes_of_number == 8 ? run<f64>(h) : h.bytes_of_number == 4 ? run<f32>(h) : run<bf16>(h);
    tally.print();
    return tally.unequal > 0;
}
