// Holds every kernel to plain loops, bit for bit: on a GPU if nvcc compiles this, on the CPU under any other compiler.
#include "check.hpp"

#include "check_attention.hpp"
#include "check_elements.hpp"

/// Fewer than a kernel's unit, whole blocks and incomplete ones, tiles' edges, and rows longer than what is asked for at once.
struct Shape {
    unsigned tokens, rows, cols;
};
constexpr Shape SHAPES[] = {{1, 1, 1},    {1, 5, 16},   {2, 3, 17},   {5, 67, 31},   {3, 6, 64},    {33, 65, 112},
                            {37, 70, 96}, {1, 9, 2085}, {4, 5, 2080}, {1, 130, 640}, {64, 64, 128}, {1, 2, 4096}};

template <class E, class W, class Kernel>
void check_products(const char *kernel_name, Kernel *kernel, dim3 (*grid)(Shape), unsigned threads) {
    for (Kind kind : kinds)
        for (Shape s : SHAPES) {
            Numbers<E> x = random_vector<E>(kind, s.tokens * s.cols);
            Numbers<W> w = random_vector<W>(kind, s.rows * s.cols);
            Numbers<E> wide;
            for (auto number : w)
                wide.push_back(from_double<Plain<E>>(naive::acc(number)));
            Numbers<Acc<E>> sums;
            Numbers<E> out;
            for (unsigned t = 0; t < s.tokens; t++)
                for (unsigned r = 0; r < s.rows; r++) {
                    sums.push_back(naive::dot(&wide[r * s.cols], &x[t * s.cols], s.cols));
                    out.push_back(naive::rounded<Plain<E>>(sums.back()));
                }
            Memory<E> x_there(x), out_there(out.size());
            Memory<W> w_there(w);
            Memory<Acc<E>> sums_there(sums.size());
            launch(kernel, grid(s), threads, x_there.at(), w_there.at(), sums_there.at(), out_there.at(), s.tokens, s.rows,
                   s.cols);
            tally.compare(kernel_name, name_of<E>(), sums_there.read(), sums);
            tally.compare(kernel_name, name_of<E>(), out_there.read(), out);
        }
}

static dim3 few(Shape s) { return {pieces(s.rows, FEW_ROWS), pieces(s.tokens, 4), 1}; }
template <class E> dim3 many(Shape s) {
    return {pieces(s.tokens, TileOf<E>::ALL_TOKENS), pieces(s.rows, TileOf<E>::ALL_ROWS), 1};
}

constexpr unsigned LENGTHS[] = {1, 15, 16, 50, 256, 2048, 2085, 5000};

/// RMSNorm with and without a rounding before the scale, LayerNorm with and without a bias.
template <class E, class Rms, class Layer> void check_norms(Rms *rms_norm, Layer *layer_norm) {
    const unsigned rows = 3;
    const double eps = 1e-6;
    for (Kind kind : kinds)
        for (unsigned n : LENGTHS)
            for (bool either : {false, true}) {
                Numbers<E> u = random_vector<E>(kind, rows * n), rms(rows * n), layer(rows * n);
                Numbers<Acc<E>> w = random_vector<Acc<E>>(kind, n), b = random_vector<Acc<E>>(kind, n);
                for (unsigned row = 0; row < rows; row++) {
                    naive::rms_norm(&u[row * n], w.data(), eps, either, &rms[row * n], n);
                    naive::layer_norm(&u[row * n], w.data(), either ? b.data() : nullptr, eps, &layer[row * n], n);
                }
                Memory<E> u_there(u), rms_there(rms.size()), layer_there(layer.size());
                Memory<Acc<E>> w_there(w), b_there(b);
                const Acc<E> *b_at = either ? b_there.at() : nullptr;
                launch(rms_norm, {rows}, 128, u_there.at(), w_there.at(), eps, either, rms_there.at(), n);
                launch(layer_norm, {rows}, 128, u_there.at(), w_there.at(), b_at, eps, layer_there.at(), n);
                tally.compare("rms_norm", name_of<E>(), rms_there.read(), rms);
                tally.compare("layer_norm", name_of<E>(), layer_there.read(), layer);
            }
}

#define PRODUCTS(E, W)                                                                                                 \
    check_products<E, W>("multiply_few", multiply_few_##E##_##W, few, FEW_THREADS);                                    \
    check_products<E, W>("multiply_many", multiply_many_##E##_##W, many<E>, TILE_THREADS);
#define OPERATIONS(E)                                                                                                  \
    check_norms<E>(rms_norm_##E, layer_norm_##E);                                                                      \
    check_function<E>("gelu_tanh", gelu_tanh_##E, naive::gelu_tanh<Plain<E>>);                                         \
    check_function<E>("gelu", gelu_##E, naive::gelu<Plain<E>>);                                                        \
    check_function<E>("silu", silu_##E, naive::silu<Plain<E>>);                                                        \
    check_function<E>("relu", relu_##E, naive::relu<Plain<E>>);                                                        \
    check_softcap<E>(softcap_##E);                                                                                     \
    check_pairs<E>("add", add_##E, naive::add<Plain<E>>);                                                              \
    check_pairs<E>("multiply", multiply_##E, naive::multiply<Plain<E>>);                                               \
    check_round<E>(round_##E);                                                                                         \
    check_add_bias<E>(add_bias_##E);                                                                                   \
    check_all_finite<E>(all_finite_##E);                                                                               \
    check_rows<E>(select_columns_##E, gather_rows_##E, combine_##E);                                                   \
    check_rope<E>(rope_##E);                                                                                           \
    check_attention<E>(scores_few_##E, scores_many_##E, probabilities_##E, store_key_value_##E, weighted_sums_few_##E,   \
                       weighted_sums_many_##E);

static void check_all() {
    PRODUCTS(f64, f64)
    PRODUCTS(f64, f32)
    PRODUCTS(f64, bf16)
    PRODUCTS(f32, f32)
    PRODUCTS(f32, bf16)
    PRODUCTS(bf16, bf16)
    OPERATIONS(f64)
    OPERATIONS(f32)
    OPERATIONS(bf16)
    check_function<bf16>("gelu_new", gelu_new_bf16, naive::gelu_new);
    check_widen();
}

/// `check N` tries the first N kinds of numbers only; with a second argument it names the first kernel that is wrong, and ends.
int main(int argc, char **argv) {
    if (argc > 1)
        kinds.resize(std::min<size_t>(atoi(argv[1]), kinds.size()));
    tally.one_is_enough = argc > 2;
#ifndef __CUDACC__
    for (bool backwards : {false, true}) {
        twin::backwards = backwards;
        check_all();
    }
    for (const Kernel &kernel : ALL_KERNELS)
        tally.must_have(kernel.name);
    printf("%zu kernels\n", std::size(ALL_KERNELS));
#else
    check_all();
#endif
    tally.print();
    return tally.unequal > 0;
}
