// The check of the attention's kernels, each on what the plain loops of the one before give.
#pragma once
#include "check.hpp"

/// An attention: a token's place among the keys, and how many tokens and heads see how many of them.
struct Scene {
    unsigned first_place, tokens, heads, group, head_dim, window;
    /// A token sees keys from a multiple of it on: so where they begin does not move by one each.
    unsigned grain;
    unsigned place(unsigned token) const { return first_place + token; }
    unsigned first(unsigned token) const {
        unsigned at = place(token), from = at < window ? 0 : at + 1 - window;
        return std::min(at, (from + grain - 1) / grain * grain);
    }
    unsigned stride() const { return first_place + tokens; }
    unsigned capacity() const { return stride() + 3; }
    size_t scores() const { return (size_t)heads * tokens * stride(); }
};
constexpr Scene SCENES[] = {{0, 1, 2, 1, 16, ~0u, 1},  {70, 1, 4, 2, 64, ~0u, 1}, {0, 41, 4, 2, 31, ~0u, 1},
                            {90, 19, 2, 2, 32, 24, 1}, {3, 70, 1, 1, 32, 7, 1},   {300, 2, 2, 1, 40, ~0u, 1},
                            {20, 35, 2, 1, 32, 17, 6}};

/// What is done to a score.
struct Scores {
    double scaling;
    bool rounded;
    double softcap;
};
constexpr Scores SCORES[] = {{0.17f, true, 0}, {0.17f, false, 0}, {0.25, true, 2.0}, {0.17f, false, 0.5}};

/// The caches and queries of a scene, and where its tokens stand.
template <class E> struct Attention {
    Scene s;
    Numbers<E> q, keys, values;
    std::vector<unsigned> first, place;
    Memory<E> q_there, keys_there, values_there;
    Memory<unsigned> first_there, place_there;

    Attention(Scene s, Kind kind)
        : s(s), q(random_vector<E>(kind, s.tokens * s.heads * s.head_dim)),
          keys(random_vector<E>(kind, s.heads / s.group * s.capacity() * s.head_dim)), values(keys.rbegin(), keys.rend()),
          first(of_tokens([=](unsigned t) { return s.first(t); })), place(of_tokens([=](unsigned t) { return s.place(t); })),
          q_there(q), keys_there(keys), values_there(values), first_there(first), place_there(place) {}
    std::vector<unsigned> of_tokens(auto number) const {
        std::vector<unsigned> numbers;
        for (unsigned t = 0; t < s.tokens; t++)
            numbers.push_back(number(t));
        return numbers;
    }
    /// Calls `row(head, t, scores of it, key)` for every head and token, with the place of the first key it sees.
    void each(auto row) const {
        for (unsigned head = 0; head < s.heads; head++)
            for (unsigned t = 0; t < s.tokens; t++)
                row(head, t, ((size_t)head * s.tokens + t) * s.stride() + first[t],
                    ((size_t)head / s.group * s.capacity() + first[t]) * s.head_dim);
    }
    unsigned seen(unsigned t) const { return place[t] + 1 - first[t]; }

    /// Products of queries and keys.
    void products(Numbers<Acc<E>> &scores) const {
        each([&](unsigned head, unsigned t, size_t at, size_t key) {
            for (unsigned j = 0; j < seen(t); j++)
                scores[at + j] = naive::dot(&keys[key + j * s.head_dim], &q[(t * s.heads + head) * s.head_dim], s.head_dim);
        });
    }
    void probabilities(Numbers<Acc<E>> &scores, Scores how) const {
        auto round = [](Acc<E> sum) { return naive::acc(naive::rounded<Plain<E>>(sum)); };
        each([&](unsigned, unsigned t, size_t at, size_t) {
            for (unsigned j = 0; j < seen(t); j++) {
                Acc<E> &score = scores[at + j];
                score = how.rounded ? round(round(score) * (Acc<E>)how.scaling) : score * (Acc<E>)how.scaling;
                if (how.softcap != 0)
                    score = naive::acc(naive::softcapped<Plain<E>>(score, how.softcap));
            }
            naive::softmax(&scores[at], seen(t));
            for (unsigned j = 0; j < seen(t); j++)
                scores[at + j] = round(scores[at + j]);
        });
    }
    Numbers<E> averages(const Numbers<Acc<E>> &p) const {
        Numbers<E> out(q.size());
        each([&](unsigned head, unsigned t, size_t at, size_t key) {
            for (unsigned i = 0; i < s.head_dim; i++)
                out[(t * s.heads + head) * s.head_dim + i] =
                    naive::weighted_sum(&p[at], &values[key + i], seen(t), s.head_dim);
        });
        return out;
    }
};

template <class E, class Few, class Many, class Probabilities, class SumsFew, class SumsMany>
void check_attention(Few *scores_few, Many *scores_many, Probabilities *probabilities, SumsFew *sums_few, SumsMany *sums_many) {
    for (Kind kind : kinds)
        for (Scene s : SCENES) {
            Attention<E> a(s, kind);
            const unsigned *first = a.first_there.at(), *place = a.place_there.at();
            Memory<Acc<E>> few_there(s.scores()), many_there(s.scores());
            launch(scores_few, {pieces(s.stride(), FEW_ROWS), s.tokens, s.heads}, FEW_THREADS, a.q_there.at(),
                   a.keys_there.at(), few_there.at(), first, place, s.tokens, s.heads, s.group, s.head_dim, s.capacity(),
                   s.stride());
            launch(scores_many, {pieces(s.tokens, TileOf<E>::ALL_TOKENS), pieces(s.stride(), TileOf<E>::ALL_ROWS), s.heads},
                   TILE_THREADS, a.q_there.at(), a.keys_there.at(), many_there.at(), first, place, s.tokens, s.heads, s.group,
                   s.head_dim, s.capacity(), s.stride());
            // What no token sees need not be computed, and means nothing: it is compared with itself.
            Numbers<Acc<E>> few = few_there.read(), many = many_there.read(), want_few = few, want_many = many;
            a.products(want_few);
            a.products(want_many);
            tally.compare("scores_few", name_of<E>(), few, want_few);
            tally.compare("scores_many", name_of<E>(), many, want_many);

            Numbers<Acc<E>> p;
            for (Scores how : SCORES) {
                p = want_few;
                a.probabilities(p, how);
                Memory<Acc<E>> p_there(want_few);
                launch(probabilities, {s.tokens, s.heads}, 64, p_there.at(), first, place, how.scaling, how.rounded, how.softcap,
                       s.tokens, s.stride());
                tally.compare("probabilities", name_of<E>(), p_there.read(), p);
            }
            Memory<Acc<E>> p_there(p);
            auto check_sums = [&](const char *name, auto *kernel, unsigned tokens_of_block) {
                Memory<E> out_there(a.q.size());
                launch(kernel, {pieces(s.head_dim, SUM_ELEMENTS), s.heads, pieces(s.tokens, tokens_of_block)}, SUM_THREADS,
                       p_there.at(), a.values_there.at(), first, place, out_there.at(), s.tokens, s.heads, s.group, s.head_dim,
                       s.capacity(), s.stride());
                tally.compare(name, name_of<E>(), out_there.read(), a.averages(p));
            };
            check_sums("weighted_sums_few", sums_few, SUM_WARPS);
            check_sums("weighted_sums_many", sums_many, SUM_WARPS * 8);
        }
}
