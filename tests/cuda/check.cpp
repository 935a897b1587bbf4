// Holds every kernel to plain loops, bit for bit: on a GPU if nvcc compiles this, on the CPU under any other compiler.
#include "machine.hpp"

#include "../../src/cuda/kernels.cu"
#include "numbers.hpp"

static Tally tally;
static std::vector<Kind> kinds(std::begin(KINDS), std::end(KINDS));
static Random randomness(18);

template <class E> struct Plain {
    using type = E;
};
template <> struct Plain<bf16> {
    using type = naive::bf16;
};
template <class E> using Numbers = std::vector<typename Plain<E>::type>;

/// Numbers in the machine's memory.
template <class E> struct Memory : Buffer<typename Plain<E>::type> {
    using Buffer<typename Plain<E>::type>::Buffer;
    E *at() const { return (E *)this->data(); }
};

template <class E> const char *name_of() { return sizeof(E) == 8 ? "f64" : sizeof(E) == 4 ? "f32" : "bf16"; }
template <class E> Numbers<E> random_vector(Kind kind, size_t n) {
    return random_numbers<typename Plain<E>::type>(randomness, kind, n);
}
static unsigned pieces(size_t n, unsigned size) { return (unsigned)((n + size - 1) / size); }

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
                wide.push_back(from_double<typename Plain<E>::type>(naive::acc(number)));
            Numbers<Acc<E>> sums;
            Numbers<E> out;
            for (unsigned t = 0; t < s.tokens; t++)
                for (unsigned r = 0; r < s.rows; r++) {
                    sums.push_back(naive::dot(&wide[r * s.cols], &x[t * s.cols], s.cols));
                    out.push_back(naive::rounded<typename Plain<E>::type>(sums.back()));
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

template <class E, class Rms, class Layer> void check_norms(Rms *rms_norm, Layer *layer_norm) {
    const unsigned rows = 3;
    const double eps = 1e-6;
    for (Kind kind : kinds)
        for (unsigned n : LENGTHS)
            for (bool round_first : {false, true}) {
                Numbers<E> u = random_vector<E>(kind, rows * n), rms(rows * n), layer(rows * n);
                Numbers<Acc<E>> w = random_vector<Acc<E>>(kind, n), b = random_vector<Acc<E>>(kind, n);
                for (unsigned row = 0; row < rows; row++) {
                    naive::rms_norm(&u[row * n], w.data(), eps, round_first, &rms[row * n], n);
                    naive::layer_norm(&u[row * n], w.data(), b.data(), eps, &layer[row * n], n);
                }
                Memory<E> u_there(u), rms_there(rms.size()), layer_there(layer.size());
                Memory<Acc<E>> w_there(w), b_there(b);
                launch(rms_norm, {rows}, 128, u_there.at(), w_there.at(), eps, round_first, rms_there.at(), n);
                launch(layer_norm, {rows}, 128, u_there.at(), w_there.at(), b_there.at(), eps, layer_there.at(), n);
                tally.compare("rms_norm", name_of<E>(), rms_there.read(), rms);
                tally.compare("layer_norm", name_of<E>(), layer_there.read(), layer);
            }
}

template <class A, class Kernel> void check_softmax(Kernel *kernel) {
    const unsigned rows = 2;
    for (Kind kind : kinds)
        for (unsigned n : LENGTHS) {
            Numbers<A> scores = random_vector<A>(kind, rows * n);
            Memory<A> there(scores);
            for (unsigned row = 0; row < rows; row++)
                naive::softmax(&scores[row * n], n);
            launch(kernel, {rows}, 128, there.at(), n);
            tally.compare("softmax", name_of<A>(), there.read(), scores);
        }
}

template <class E, class Kernel> void check_function(const char *kernel_name, Kernel *kernel, auto function) {
    for (Kind kind : kinds) {
        Numbers<E> x = random_vector<E>(kind, 20011), want;
        for (size_t i = 0; i < x.size() / 2; i++)
            x[i] = from_double<typename Plain<E>::type>(8 * naive::acc(x[i]));
        for (auto number : x)
            want.push_back(function(number));
        Memory<E> x_there(x), out(x.size());
        launch(kernel, {pieces(x.size(), 256)}, 256, x_there.at(), out.at(), x.size());
        tally.compare(kernel_name, name_of<E>(), out.read(), want);
    }
}

template <class E, class Kernel> void check_pairs(const char *kernel_name, Kernel *kernel, auto function) {
    for (Kind kind : kinds) {
        Numbers<E> x = random_vector<E>(kind, 5003), y = random_vector<E>(kind, x.size()), want;
        for (size_t i = 0; i < x.size(); i++)
            want.push_back(function(x[i], y[i]));
        Memory<E> x_there(x), y_there(y), out(x.size());
        launch(kernel, {pieces(x.size(), 256)}, 256, x_there.at(), y_there.at(), out.at(), x.size());
        tally.compare(kernel_name, name_of<E>(), out.read(), want);
    }
}

template <class E, class Kernel> void check_round(Kernel *kernel) {
    for (Kind kind : kinds)
        for (bool changed : {false, true}) {
            Numbers<Acc<E>> sums = random_vector<Acc<E>>(kind, 5003), change = random_vector<Acc<E>>(kind, sums.size());
            Numbers<E> want;
            for (size_t i = 0; i < sums.size(); i++)
                want.push_back(naive::rounded<typename Plain<E>::type>(changed ? sums[i] + change[i] : sums[i]));
            Memory<Acc<E>> sums_there(sums), change_there(change);
            Memory<E> out(sums.size());
            const Acc<E> *change_at = changed ? change_there.at() : nullptr;
            launch(kernel, {pieces(sums.size(), 256)}, 256, sums_there.at(), change_at, out.at(), sums.size());
            tally.compare("round", name_of<E>(), out.read(), want);
        }
}

template <class E, class W, class Kernel> void check_embed(Kernel *kernel) {
    const unsigned vocab = 11, n = 77;
    const double scale = 8.75;
    for (Kind kind : kinds) {
        Numbers<W> weight = random_vector<W>(kind, vocab * n);
        std::vector<unsigned> tokens{10, 0, 3, 3};
        Numbers<E> want;
        for (unsigned token : tokens)
            for (unsigned i = 0; i < n; i++) {
                Acc<E> number = naive::acc(weight[token * n + i]);
                want.push_back(naive::rounded<typename Plain<E>::type>(number * (Acc<E>)scale));
            }
        Memory<W> weight_there(weight);
        Memory<unsigned> tokens_there(tokens);
        Memory<E> out(want.size());
        launch(kernel, {pieces(n, 32), (unsigned)tokens.size()}, 32, weight_there.at(), tokens_there.at(), scale, out.at(), n);
        tally.compare("embed", name_of<E>(), out.read(), want);
    }
}

template <class E, class Kernel> void check_rope(Kernel *kernel) {
    const unsigned heads = 3, head_dim = 22;
    const std::vector<unsigned> positions{5, 6, 9, 0};
    for (Kind kind : kinds)
        for (unsigned half : {11u, 4u})
            for (bool neighbours : {false, true}) {
                Numbers<E> x = random_vector<E>(kind, positions.size() * heads * head_dim);
                Numbers<E> cos = random_vector<E>(kind, 10 * half), sin = random_vector<E>(kind, 10 * half);
                Memory<E> x_there(x), cos_there(cos), sin_there(sin);
                Memory<unsigned> positions_there(positions);
                for (unsigned head = 0; head < positions.size() * heads; head++) {
                    unsigned angle = positions[head / heads] * half;
                    naive::rope(&x[head * head_dim], &cos[angle], &sin[angle], half, neighbours);
                }
                launch(kernel, {pieces(x.size(), 64)}, 64, x_there.at(), cos_there.at(), sin_there.at(), positions_there.at(),
                       (unsigned)positions.size(), heads, head_dim, half, neighbours);
                tally.compare("rope", name_of<E>(), x_there.read(), x);
            }
}

/// An attention: a first position, and how many tokens and heads see how many keys.
struct Scene {
    unsigned first, tokens, heads, group, head_dim, window;
    unsigned position(unsigned token) const { return first + token; }
    unsigned from(unsigned token) const { return position(token) < window ? 0 : position(token) + 1 - window; }
    unsigned stride() const { return first + tokens; }
    unsigned capacity() const { return stride() + 3; }
};
constexpr Scene SCENES[] = {
    {0, 1, 2, 1, 16, ~0u}, {70, 1, 4, 2, 64, ~0u}, {0, 41, 4, 2, 31, ~0u}, {90, 19, 2, 2, 32, 24}, {3, 70, 1, 1, 32, 7},
    {300, 2, 2, 1, 40, ~0u}};

template <class E, class Few, class Many, class Probabilities, class Store, class SumsFew, class SumsMany>
void check_attention(Few *scores_few, Many *scores_many, Probabilities *probabilities, Store *store, SumsFew *sums_few,
                     SumsMany *sums_many) {
    using Wide = Numbers<Acc<E>>;
    for (Kind kind : kinds)
        for (Scene s : SCENES) {
            unsigned key_heads = s.heads / s.group, width = s.heads * s.head_dim;
            std::vector<unsigned> positions;
            for (unsigned t = 0; t < s.tokens; t++)
                positions.push_back(s.position(t));
            Numbers<E> q = random_vector<E>(kind, s.tokens * width), k, v;
            Numbers<E> keys = random_vector<E>(kind, key_heads * s.capacity() * s.head_dim), values = keys;
            Memory<E> keys_there(keys), values_there(values), q_there(q);
            for (unsigned t = 0; t < s.tokens; t++)
                for (unsigned head = 0; head < key_heads; head++)
                    for (unsigned i = 0; i < s.head_dim; i++) {
                        size_t at = (head * s.capacity() + s.position(t)) * s.head_dim + i;
                        k.push_back(keys[at] = random_vector<E>(kind, 1)[0]);
                        v.push_back(values[at] = random_vector<E>(kind, 1)[0]);
                    }
            Memory<E> k_there(k), v_there(v);
            Memory<unsigned> at(positions);
            launch(store, {s.tokens, key_heads}, 32, k_there.at(), v_there.at(), at.at(), keys_there.at(), values_there.at(),
                   key_heads, s.head_dim, s.capacity());
            tally.compare("store_key_value", name_of<E>(), keys_there.read(), keys);
            tally.compare("store_key_value", name_of<E>(), values_there.read(), values);

            size_t all = (size_t)s.heads * s.tokens * s.stride();
            Memory<Acc<E>> few_there(all), many_there(all);
            launch(scores_few, {pieces(s.stride(), FEW_ROWS), s.tokens, s.heads}, FEW_THREADS, q_there.at(), keys_there.at(),
                   few_there.at(), at.at(), s.tokens, s.heads, s.group, s.head_dim, s.capacity(), s.stride(), s.window);
            launch(scores_many,
                   {pieces(s.tokens, TileOf<E>::ALL_TOKENS), pieces(s.stride(), TileOf<E>::ALL_ROWS), s.heads}, TILE_THREADS,
                   q_there.at(), keys_there.at(), many_there.at(), at.at(), s.tokens, s.heads, s.group, s.head_dim,
                   s.capacity(), s.stride(), s.window);
            // What no token sees is not computed, and means nothing.
            Wide few = few_there.read(), many = many_there.read(), scores = few, p = few;
            Numbers<E> out(q.size());
            const Acc<E> scaling = 0.17f;
            for (unsigned head = 0; head < s.heads; head++)
                for (unsigned t = 0; t < s.tokens; t++) {
                    size_t row = ((size_t)head * s.tokens + t) * s.stride(), from = s.from(t), to = s.position(t) + 1;
                    size_t first_key = head / s.group * s.capacity();
                    auto round = [](Acc<E> sum) { return naive::acc(naive::rounded<typename Plain<E>::type>(sum)); };
                    for (size_t key = 0; key < s.stride(); key++) {
                        bool seen = key >= from && key < to;
                        if (seen)
                            scores[row + key] = naive::dot(&keys[(first_key + key) * s.head_dim],
                                                           &q[(t * s.heads + head) * s.head_dim], s.head_dim);
                        else
                            many[row + key] = few[row + key];
                        p[row + key] = seen ? round(round(scores[row + key]) * scaling) : scores[row + key];
                    }
                    for (size_t key = 0; key < s.stride(); key++)
                        if (key < from || key >= to)
                            scores[row + key] = few[row + key];
                    naive::softmax(&p[row + from], to - from);
                    for (size_t key = from; key < to; key++)
                        p[row + key] = round(p[row + key]);
                    for (unsigned i = 0; i < s.head_dim; i++)
                        out[(t * s.heads + head) * s.head_dim + i] = naive::weighted_sum(
                            &p[row + from], &values[(first_key + from) * s.head_dim + i], to - from, s.head_dim);
                }
            tally.compare("scores_few", name_of<E>(), few, scores);
            tally.compare("scores_many", name_of<E>(), many, scores);
            Memory<Acc<E>> p_there(scores);
            launch(probabilities, {s.tokens, s.heads}, 64, p_there.at(), at.at(), (double)scaling, s.tokens, s.stride(),
                   s.window);
            tally.compare("probabilities", name_of<E>(), p_there.read(), p);
            Memory<Acc<E>> want_there(p);
            auto check_sums = [&](const char *name, auto *kernel, unsigned tokens_of_block) {
                Memory<E> out_there(q.size());
                launch(kernel, {pieces(s.head_dim, SUM_ELEMENTS), s.heads, pieces(s.tokens, tokens_of_block)}, SUM_THREADS,
                       want_there.at(), values_there.at(), at.at(), out_there.at(), s.tokens, s.heads, s.group, s.head_dim,
                       s.capacity(), s.stride(), s.window);
                tally.compare(name, name_of<E>(), out_there.read(), out);
            };
            check_sums("weighted_sums_few", sums_few, SUM_WARPS);
            check_sums("weighted_sums_many", sums_many, SUM_WARPS * 8);
        }
}

#define PRODUCTS(E, W)                                                                                                 \
    check_products<E, W>("multiply_few", multiply_few_##E##_##W, few, FEW_THREADS);                                    \
    check_products<E, W>("multiply_many", multiply_many_##E##_##W, many<E>, TILE_THREADS);
#define OPERATIONS(E)                                                                                                  \
    check_norms<E>(rms_norm_##E, layer_norm_##E);                                                                      \
    check_function<E>("gelu_tanh", gelu_tanh_##E, naive::gelu_tanh<Plain<E>::type>);                                   \
    check_function<E>("silu", silu_##E, naive::silu<Plain<E>::type>);                                                  \
    check_function<E>("relu", relu_##E, naive::relu<Plain<E>::type>);                                                  \
    check_pairs<E>("add", add_##E, naive::add<Plain<E>::type>);                                                        \
    check_pairs<E>("multiply", multiply_##E, naive::multiply<Plain<E>::type>);                                         \
    check_round<E>(round_##E);                                                                                         \
    check_embed<E, bf16>(embed_##E##_bf16);                                                                            \
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
    check_embed<f64, f64>(embed_f64_f64);
    check_embed<f64, f32>(embed_f64_f32);
    check_embed<f32, f32>(embed_f32_f32);
    check_softmax<f64>(softmax_f64);
    check_softmax<f32>(softmax_f32);
}

/// `check N` tries the first N kinds of numbers only.
int main(int argc, char **argv) {
    if (argc > 1)
        kinds.resize(std::min<size_t>(atoi(argv[1]), kinds.size()));
#ifndef __CUDACC__
    for (bool backwards : {false, true}) {
        twin::backwards = backwards;
        check_all();
    }
#else
    check_all();
#endif
    tally.print();
    return tally.unequal > 0;
}
