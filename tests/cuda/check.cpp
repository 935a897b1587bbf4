// Holds every kernel to plain loops, bit for bit: on a GPU if nvcc compiles this, on the CPU under any other compiler.
#include "check.hpp"

#include "check_attention.hpp"
#include "check_elements.hpp"
#include "check_heads.hpp"

/// Fewer than a kernel's unit, whole blocks and incomplete ones, tiles' edges, and rows longer than what is asked for at once.
struct Shape {
    unsigned tokens, rows, cols;
};
constexpr Shape SHAPES[] = {{1, 1, 1},    {1, 5, 16},   {2, 3, 17},   {5, 67, 31},   {3, 6, 64},    {33, 65, 112},
                            {37, 70, 96}, {1, 9, 2085}, {4, 5, 2080}, {1, 130, 640}, {64, 64, 128}, {1, 2, 4096}};

/// How a kernel of products divides them: the rows and tokens of a block, its threads, and whether tokens are counted in gridDim.x.
struct Division {
    const char *kernel;
    unsigned rows, tokens, threads;
    bool tokens_first;
};

/// W is three maps of the same x, the last of which may have no rows; two of them have a bias, of which one is added to rounded products.
template <class E, class W, class Kernel> void check_products(Division how, Kernel *kernel) {
    for (Kind kind : kinds)
        for (Shape s : SHAPES) {
            if (how.tokens == 1 && s.tokens > 1)
                continue;
            Numbers<E> x = random_vector<E>(kind, s.tokens * s.cols);
            Numbers<W> w = random_vector<W>(kind, s.rows * s.cols);
            Numbers<E> wide;
            for (auto number : w)
                wide.push_back(from_double<Plain<E>>(naive::acc(number)));
            Numbers<Acc<E>> bias = random_vector<Acc<E>>(kind, s.rows);
            Memory<E> x_there(x);
            Memory<W> w_there(w);
            Memory<Acc<E>> bias_there(bias);
            const unsigned rows[] = {s.rows - s.rows / 3 - s.rows / 5, s.rows / 3, s.rows / 5};
            const unsigned first[] = {0, rows[0], rows[0] + rows[1]};
            Memory<Acc<E>> sums[] = {Memory<Acc<E>>(s.tokens * rows[0]), Memory<Acc<E>>(s.tokens * rows[1]),
                                     Memory<Acc<E>>(s.tokens * rows[2])};
            Memory<E> out[] = {Memory<E>(s.tokens * rows[0]), Memory<E>(s.tokens * rows[1]), Memory<E>(s.tokens * rows[2])};
            unsigned of_rows = 0, of_tokens = pieces(s.tokens, how.tokens);
            for (unsigned count : rows)
                of_rows += pieces(count, how.rows);
            auto at = [&](unsigned map) { return w_there.at() + first[map] * s.cols; };
            const Acc<E> *b = bias_there.at(), *none = nullptr;
            launch(kernel, how.tokens_first ? dim3{of_tokens, of_rows} : dim3{of_rows, of_tokens}, how.threads, x_there.at(), at(0), b,
                   false, sums[0].at(), out[0].at(), rows[0], at(1), none, false, sums[1].at(), out[1].at(), rows[1], at(2),
                   b + first[2], true, sums[2].at(), out[2].at(), rows[2], s.tokens, s.cols);
            for (unsigned map = 0; map < 3; map++) {
                Numbers<Acc<E>> want;
                Numbers<E> want_out;
                for (unsigned t = 0; t < s.tokens; t++)
                    for (unsigned r = 0; r < rows[map]; r++) {
                        want.push_back(naive::dot(&wide[(first[map] + r) * s.cols], &x[t * s.cols], s.cols));
                        Plain<E> rounded = naive::rounded<Plain<E>>(want.back());
                        Acc<E> sum = map == 2 ? naive::acc(rounded) : want.back();
                        want_out.push_back(map == 1 ? rounded : naive::rounded<Plain<E>>(sum + bias[first[map] + r]));
                    }
                tally.compare(how.kernel, name_of<E>(), sums[map].read(), want);
                tally.compare(how.kernel, name_of<E>(), out[map].read(), want_out);
            }
        }
}

constexpr unsigned LENGTHS[] = {1, 15, 16, 50, 256, 2048, 2085, 5000};

/// A norm of the kernel, by plain loops.
template <class E>
void plain_norm(unsigned kind, const Numbers<Acc<E>> &w, const Acc<E> *b, double eps, const Plain<E> *u, Plain<E> *out) {
    if (kind == LAYER)
        naive::layer_norm(u, w.data(), b, eps, out, w.size());
    else
        naive::rms_norm(u, w.data(), eps, kind == RMS_ROUNDED_FIRST, out, w.size());
}

/// Every norm first and then second, with a sum between them or without, and only the sum. Numbers that are not finite are found.
template <class E, class Kernel> void check_norms(Kernel *norm_add_norm) {
    struct Norms {
        unsigned first, second;
        bool sum, bias;
    };
    const Norms all[] = {{RMS, RMS, true, false},   {RMS_ROUNDED_FIRST, NO_NORM, false, false}, {LAYER, LAYER, true, true},
                         {NO_NORM, LAYER, true, false}, {NO_NORM, NO_NORM, true, false},        {LAYER, NO_NORM, false, true},
                         {RMS, NO_NORM, true, false},   {NO_NORM, RMS_ROUNDED_FIRST, true, false}};
    const unsigned rows = 3;
    const double eps = 1e-6;
    for (Kind kind : kinds)
        for (unsigned n : LENGTHS)
            for (Norms how : all) {
                Numbers<E> u = random_vector<E>(kind, rows * n), p = random_vector<E>(kind, rows * n);
                Numbers<E> x = random_vector<E>(kind, rows * n), v = x, z = x;
                Numbers<Acc<E>> w = random_vector<Acc<E>>(kind, n), b = random_vector<Acc<E>>(kind, n), w2 = b;
                std::reverse(w2.begin(), w2.end());
                Memory<E> u_there(u), p_there(p), x_there(x), v_there(v), z_there(z);
                Memory<Acc<E>> w_there(w), b_there(b), w2_there(w2);
                Memory<unsigned> flag(std::vector<unsigned>{0});
                const Acc<E> *plain_b = how.bias ? b.data() : nullptr, *b_at = how.bias ? b_there.at() : nullptr;
                for (unsigned at = 0; at < rows * n; at += n) {
                    if (how.first != NO_NORM)
                        plain_norm<E>(how.first, w, plain_b, eps, &u[at], &p[at]);
                    for (unsigned i = at; how.sum && i < at + n; i++)
                        v[i] = naive::add(x[i], p[i]);
                    if (how.second != NO_NORM)
                        plain_norm<E>(how.second, w2, plain_b, eps, &v[at], &z[at]);
                }
                bool finite = true;
                for (auto number : v)
                    finite &= !how.sum || std::isfinite(naive::acc(number));
                launch(norm_add_norm, {rows}, 128, how.first, w_there.at(), b_at, eps, u_there.at(), p_there.at(),
                       how.sum ? x_there.at() : nullptr, v_there.at(), flag.at(), how.second, w2_there.at(), b_at, eps, z_there.at(),
                       n);
                tally.compare("norm_add_norm", name_of<E>(), p_there.read(), p);
                tally.compare("norm_add_norm", name_of<E>(), v_there.read(), v);
                tally.compare("norm_add_norm", name_of<E>(), z_there.read(), z);
                std::vector<float> got{(float)flag.read()[0]}, want{finite ? 0.0f : 1.0f};
                tally.compare("norm_add_norm", name_of<E>(), got, want);
            }
}

#define PRODUCTS(E, W)                                                                                                 \
    check_products<E, W>({"multiply_one", FEW_ROWS, 1, FEW_THREADS, false}, multiply_one_##E##_##W);                   \
    check_products<E, W>({"multiply_few", FEW_ROWS, FEW_TOKENS<E>, FEW_THREADS, false}, multiply_few_##E##_##W);       \
    check_products<E, W>({"multiply_many", TileOf<E>::ALL_ROWS, TileOf<E>::ALL_TOKENS, TILE_THREADS, true},            \
                         multiply_many_##E##_##W);
#define OPERATIONS(E)                                                                                                  \
    check_norms<E>(norm_add_norm_##E);                                                                                 \
    check_activation<E>("gelu_tanh", gelu_tanh_##E, naive::gelu_tanh<Plain<E>>);                                       \
    check_activation<E>("gelu", gelu_##E, naive::gelu<Plain<E>>);                                                      \
    check_activation<E>("silu", silu_##E, naive::silu<Plain<E>>);                                                      \
    check_activation<E>("relu", relu_##E, naive::relu<Plain<E>>);                                                      \
    check_softcap<E>(softcap_##E);                                                                                     \
    check_pairs<E>("add", add_##E, naive::add<Plain<E>>);                                                              \
    check_pairs<E>("multiply", multiply_##E, naive::multiply<Plain<E>>);                                               \
    check_round<E>(round_##E);                                                                                         \
    check_add_bias<E>(add_bias_##E);                                                                                   \
    check_all_finite<E>(all_finite_##E);                                                                               \
    check_rows<E>(select_columns_##E, gather_rows_##E, combine_##E);                                                   \
    check_heads<E>(heads_##E);                                                                                         \
    check_attention<E>(scores_few_##E, scores_many_##E, probabilities_##E, weighted_sums_few_##E, weighted_sums_many_##E);

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
    check_activation<bf16>("gelu_new", gelu_new_bf16, naive::gelu_new);
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
