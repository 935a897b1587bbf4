// Checks of what is done to one number after the other.
#pragma once
#include "check.hpp"

/// Numbers for functions of one: every bf16, or some of a kind, half of them larger.
template <class E> Numbers<E> arguments(Kind kind) {
    if constexpr (sizeof(E) == 2) {
        Numbers<E> all;
        for (unsigned bits = 0; bits < 1 << 16; bits++)
            all.push_back({(uint16_t)bits});
        return all;
    } else {
        Numbers<E> x = random_vector<E>(kind, 20011);
        for (size_t i = 0; i < x.size() / 2; i++)
            x[i] *= 8;
        return x;
    }
}

/// By itself, and times other numbers.
template <class E, class Kernel> void check_activation(const char *name, Kernel *kernel, auto function) {
    for (Kind kind : kinds) {
        Numbers<E> x = arguments<E>(kind), up = random_vector<E>(kind, x.size()), want, product;
        for (size_t i = 0; i < x.size(); i++) {
            want.push_back(function(x[i]));
            product.push_back(naive::multiply(want[i], up[i]));
        }
        Memory<E> x_there(x), alone(x.size()), out(x.size()), up_there(up), product_there(x.size());
        E *none = nullptr;
        launch(kernel, {pieces(x.size(), 256)}, 256, x_there.at(), alone.at(), none, none, x.size());
        launch(kernel, {pieces(x.size(), 256)}, 256, x_there.at(), out.at(), up_there.at(), product_there.at(), x.size());
        tally.compare(name, name_of<E>(), alone.read(), want);
        tally.compare(name, name_of<E>(), out.read(), want);
        tally.compare(name, name_of<E>(), product_there.read(), product);
        if (sizeof(E) == 2)
            break;
    }
}

template <class E, class Kernel> void check_softcap(Kernel *kernel) {
    for (double cap : {30.0, 50.0, 0.7})
        for (Kind kind : kinds) {
            Numbers<E> x = arguments<E>(kind), want;
            for (auto &number : x) {
                if constexpr (sizeof(E) > 2)
                    number *= 10;
                want.push_back(naive::softcapped<Plain<E>>(naive::acc(number), cap));
            }
            Memory<E> x_there(x), out(x.size());
            launch(kernel, {pieces(x.size(), 256)}, 256, x_there.at(), cap, out.at(), x.size());
            tally.compare("softcap", name_of<E>(), out.read(), want);
            if (sizeof(E) == 2)
                break;
        }
}

template <class E, class Kernel> void check_pairs(const char *name, Kernel *kernel, auto function) {
    for (Kind kind : kinds) {
        Numbers<E> x = random_vector<E>(kind, 5003), y = random_vector<E>(kind, x.size()), want;
        for (size_t i = 0; i < x.size(); i++)
            want.push_back(function(x[i], y[i]));
        Memory<E> x_there(x), y_there(y), out(x.size());
        launch(kernel, {pieces(x.size(), 256)}, 256, x_there.at(), y_there.at(), out.at(), x.size());
        tally.compare(name, name_of<E>(), out.read(), want);
    }
}

template <class E, class Kernel> void check_round(Kernel *kernel) {
    for (Kind kind : kinds)
        for (bool changed : {false, true}) {
            Numbers<Acc<E>> sums = random_vector<Acc<E>>(kind, 5003), change = random_vector<Acc<E>>(kind, sums.size());
            Numbers<E> want;
            for (size_t i = 0; i < sums.size(); i++)
                want.push_back(naive::rounded<Plain<E>>(changed ? sums[i] + change[i] : sums[i]));
            Memory<Acc<E>> sums_there(sums), change_there(change);
            Memory<E> out(sums.size());
            const Acc<E> *change_at = changed ? change_there.at() : nullptr;
            launch(kernel, {pieces(sums.size(), 256)}, 256, sums_there.at(), change_at, out.at(), sums.size());
            tally.compare("round", name_of<E>(), out.read(), want);
        }
}

template <class E, class Kernel> void check_add_bias(Kernel *kernel) {
    const unsigned tokens = 3, rows = 259;
    for (Kind kind : kinds)
        for (bool rounded_first : {false, true}) {
            Numbers<Acc<E>> sums = random_vector<Acc<E>>(kind, tokens * rows), bias = random_vector<Acc<E>>(kind, rows);
            Numbers<E> want;
            for (size_t i = 0; i < sums.size(); i++) {
                Acc<E> first = rounded_first ? naive::acc(naive::rounded<Plain<E>>(sums[i])) : sums[i];
                want.push_back(naive::rounded<Plain<E>>(first + bias[i % rows]));
            }
            Memory<Acc<E>> sums_there(sums), bias_there(bias);
            Memory<E> out(want.size());
            launch(kernel, {pieces(rows, 128), tokens}, 128, sums_there.at(), bias_there.at(), rounded_first, out.at(), tokens,
                   rows);
            tally.compare("add_bias", name_of<E>(), out.read(), want);
        }
}

template <class E, class Kernel> void check_all_finite(Kernel *kernel) {
    const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
    const size_t n = 777;
    for (double special : {0.0, infinity, -infinity, nan})
        for (size_t at : {(size_t)0, n / 2, n - 1}) {
            Numbers<E> x = random_vector<E>(Kind::WIDE, n);
            x[at] = from_double<Plain<E>>(special);
            Memory<E> x_there(x);
            Memory<unsigned> flag(std::vector<unsigned>{0});
            launch(kernel, {pieces(n, 256)}, 256, x_there.at(), n, flag.at());
            std::vector<float> got{(float)flag.read()[0]}, want{special == 0 ? 0.0f : 1.0f};
            tally.compare("all_finite", name_of<E>(), got, want);
        }
}

inline void check_widen() {
    Numbers<bf16> x = arguments<bf16>(Kind::ORDINARY);
    Numbers<f32> want;
    for (auto number : x)
        want.push_back(naive::acc(number));
    Memory<bf16> x_there(x);
    Memory<f32> out(x.size());
    launch(widen_bf16, {pieces(x.size(), 256)}, 256, x_there.at(), out.at(), x.size());
    tally.compare("widen", "bf16", out.read(), want);
}

/// Rows and columns that go elsewhere.
template <class E, class Select, class Gather, class Combine>
void check_rows(Select *select_columns, Gather *gather_rows, Combine *combine) {
    const unsigned all_rows = 5, cols = 141;
    const std::vector<unsigned> columns{140, 3, 3, 0, 77}, rows{0, 2, 4};
    const std::vector<double> gates{0.3, 0.7, 1e-3};
    for (Kind kind : kinds) {
        Numbers<E> x = random_vector<E>(kind, all_rows * cols), said = random_vector<E>(kind, rows.size() * cols);
        Numbers<E> selected, gathered, sums = x;
        for (unsigned row = 0; row < all_rows; row++)
            for (unsigned column : columns)
                selected.push_back(x[row * cols + column]);
        for (size_t i = 0; i < rows.size(); i++)
            for (unsigned column = 0; column < cols; column++) {
                gathered.push_back(x[rows[i] * cols + column]);
                Plain<E> &sum = sums[rows[i] * cols + column];
                Plain<E> share = naive::rounded<Plain<E>>(naive::acc(said[i * cols + column]) * (Acc<E>)gates[i]);
                sum = naive::add(sum, share);
            }
        Memory<E> x_there(x), said_there(said), selected_there(selected.size()), gathered_there(gathered.size());
        Memory<unsigned> columns_there(columns), rows_there(rows);
        Memory<f64> gates_there(gates);
        launch(select_columns, {1, all_rows}, 128, x_there.at(), columns_there.at(), selected_there.at(), cols,
               (unsigned)columns.size());
        const dim3 grid{pieces(cols, 128), (unsigned)rows.size()};
        launch(gather_rows, grid, 128, x_there.at(), rows_there.at(), gathered_there.at(), cols);
        launch(combine, grid, 128, said_there.at(), rows_there.at(), gates_there.at(), x_there.at(), cols);
        tally.compare("select_columns", name_of<E>(), selected_there.read(), selected);
        tally.compare("gather_rows", name_of<E>(), gathered_there.read(), gathered);
        tally.compare("combine", name_of<E>(), x_there.read(), sums);
    }
}
