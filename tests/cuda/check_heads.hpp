// The check of what is done to heads between their maps and attention.
#pragma once
#include "check.hpp"

/// Which norm the heads of q and k have, and how they are rotated; half of what is rotated may be 0.
struct Heads {
    unsigned norm;
    bool norm_last;
    unsigned half;
    bool neighbours, round_once;
};
constexpr Heads HEADS[] = {{RMS, false, 11, false, false}, {RMS_ROUNDED_FIRST, true, 4, true, false}, {NO_NORM, false, 4, false, true},
                           {NO_NORM, false, 11, true, true}, {NO_NORM, false, 0, false, false},       {RMS, false, 4, true, false},
                           {RMS, true, 11, false, true}};

template <class E, class Kernel> void check_heads(Kernel *heads) {
    const unsigned tokens = 4, q_heads = 6, key_heads = 2, head_dim = 22, capacity = 9;
    const double eps = 1e-6;
    const std::vector<unsigned> place{2, 3, 5, 8};
    for (Kind kind : kinds)
        for (Heads how : HEADS) {
            Numbers<E> q = random_vector<E>(kind, tokens * q_heads * head_dim), prepared = q;
            Numbers<E> k = random_vector<E>(kind, tokens * key_heads * head_dim), v = random_vector<E>(kind, k.size());
            Numbers<E> keys = random_vector<E>(kind, key_heads * capacity * head_dim), values = keys;
            Numbers<Acc<E>> q_scale = random_vector<Acc<E>>(kind, head_dim), k_scale = random_vector<Acc<E>>(kind, head_dim);
            Numbers<Acc<E>> cos = random_vector<Acc<E>>(kind, tokens * how.half), sin(cos.rbegin(), cos.rend());
            Memory<E> q_there(q), k_there(k), v_there(v), prepared_there(q.size()), keys_there(keys), values_there(values);
            Memory<Acc<E>> q_scale_there(q_scale), k_scale_there(k_scale), cos_there(cos), sin_there(sin);
            Memory<unsigned> place_there(place);
            auto prepare = [&](Plain<E> *head, const Numbers<Acc<E>> &scale, unsigned token) {
                auto norm = [&] {
                    Numbers<E> u(head, head + head_dim);
                    naive::rms_norm(u.data(), scale.data(), eps, how.norm == RMS_ROUNDED_FIRST, head, head_dim);
                };
                if (how.norm != NO_NORM && !how.norm_last)
                    norm();
                naive::rope(head, &cos[token * how.half], &sin[token * how.half], how.half, how.neighbours, how.round_once);
                if (how.norm != NO_NORM && how.norm_last)
                    norm();
            };
            for (unsigned token = 0; token < tokens; token++) {
                for (unsigned head = 0; head < q_heads; head++)
                    prepare(&prepared[(token * q_heads + head) * head_dim], q_scale, token);
                for (unsigned head = 0; head < key_heads; head++) {
                    size_t from = (token * key_heads + head) * head_dim, to = (head * capacity + place[token]) * head_dim;
                    std::copy_n(&k[from], head_dim, &keys[to]);
                    std::copy_n(&v[from], head_dim, &values[to]);
                    prepare(&keys[to], k_scale, token);
                }
            }
            // Once into other memory, and once in place without keys and values.
            auto run = [&](E *to, unsigned of_keys) {
                launch(heads, {tokens, q_heads + 2 * of_keys}, 32, q_there.at(), to, how.norm, how.norm_last, eps,
                       q_scale_there.at(), k_scale_there.at(), cos_there.at(), sin_there.at(), how.half, how.neighbours,
                       how.round_once, k_there.at(), v_there.at(), place_there.at(), keys_there.at(), values_there.at(), capacity,
                       q_heads, of_keys, head_dim);
            };
            run(prepared_there.at(), key_heads);
            run(q_there.at(), 0);
            tally.compare("heads", name_of<E>(), prepared_there.read(), prepared);
            tally.compare("heads", name_of<E>(), q_there.read(), prepared);
            tally.compare("heads", name_of<E>(), keys_there.read(), keys);
            tally.compare("heads", name_of<E>(), values_there.read(), values);
        }
}
