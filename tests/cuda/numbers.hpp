// Random numbers of every kind that an operation may meet, and the comparison of what kernels make of them.
#pragma once
#include "naive.hpp"
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

/// Numbers of the checks' inputs.
enum class Kind {
    /// About the size of activations.
    ORDINARY,
    /// Of any exponent, denormal ones too.
    WIDE,
    /// Such that products are about the smallest normal number.
    TINY,
    /// Ordinary ones, and here and there NaN, infinity, −0, denormal or huge ones.
    SPECIAL,
};
constexpr Kind KINDS[] = {Kind::ORDINARY, Kind::WIDE, Kind::TINY, Kind::SPECIAL};

class Random {
    uint64_t state;

public:
    explicit Random(uint64_t seed) : state(seed) {}

    uint64_t bits() {
        state += 0x9e3779b97f4a7c15;
        uint64_t z = (state ^ state >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    /// An integer from `low` to `high`.
    int between(int low, int high) { return low + (int)(bits() % (uint64_t)(high - low + 1)); }
    /// From −1 to 1.
    double unit() { return std::ldexp((double)(int64_t)bits(), -63); }

    /// A number for a type whose smallest exponent is `lowest`.
    double number(Kind kind, int lowest) {
        double x = unit();
        switch (kind) {
        case Kind::ORDINARY:
            return 3 * x;
        case Kind::WIDE:
            return std::ldexp(x, between(lowest, -lowest - 3));
        case Kind::TINY:
            return std::ldexp(x, between(lowest / 2 - 4, lowest / 2 + 4));
        case Kind::SPECIAL:
            break;
        }
        const double infinity = std::numeric_limits<double>::infinity();
        const double specials[] = {infinity, -infinity, -0.0, 0.0, std::ldexp(x, lowest - 4), std::ldexp(x, -lowest),
                                   std::numeric_limits<double>::quiet_NaN()};
        return between(0, 150) == 0 ? specials[between(0, 6)] : 3 * x;
    }
};

template <class E> E from_double(double x);
template <> inline double from_double(double x) { return x; }
template <> inline float from_double(double x) { return (float)x; }
template <> inline naive::bf16 from_double(double x) { return naive::rounded<naive::bf16>((float)x); }

template <class E> std::vector<E> random_numbers(Random &random, Kind kind, size_t n) {
    std::vector<E> numbers;
    for (size_t i = 0; i < n; i++)
        numbers.push_back(from_double<E>(random.number(kind, sizeof(E) == 8 ? -1022 : -126)));
    return numbers;
}

/// Whether two numbers have the same bits, or are both NaN.
inline bool same(double a, double b) { return memcmp(&a, &b, 8) == 0 || (std::isnan(a) && std::isnan(b)); }
inline bool same(float a, float b) { return same((double)a, (double)b); }
inline bool same(naive::bf16 a, naive::bf16 b) { return same(naive::acc(a), naive::acc(b)); }

/// What was compared, by kernel and type.
class Tally {
    struct Count {
        size_t numbers = 0, unequal = 0;
    };
    std::map<std::string, std::map<std::string, Count>> counts;

public:
    size_t unequal = 0;
    /// Whether the program ends at the first number that is not what it should be.
    bool one_is_enough = false;

    template <class E>
    void compare(const char *kernel, const char *type, const std::vector<E> &got, const std::vector<E> &want) {
        Count &count = counts[kernel][type];
        for (size_t i = 0; i < want.size(); i++) {
            count.numbers++;
            if (same(got[i], want[i]))
                continue;
            if (count.unequal++ == 0)
                fprintf(stderr, "%s %s: number %zu of %zu is %a and should be %a\n", kernel, type, i, want.size(),
                        (double)naive::acc(got[i]), (double)naive::acc(want[i]));
            unequal++;
            if (one_is_enough) {
                printf("%s %s\n", kernel, type);
                exit(1);
            }
        }
    }

    /// A kernel, under its name with its types, that was not compared is as bad as an unequal number.
    void must_have(const char *name) {
        for (const auto &[kernel, types] : counts)
            for (const auto &[type, _] : types)
                if (std::string(name).starts_with(kernel + "_" + type))
                    return;
        fprintf(stderr, "%s is not checked\n", name);
        unequal++;
    }

    /// A line a kernel: for each type how many numbers, and how many of them are not what they should be.
    void print() const {
        printf("%-20s%20s%20s%20s\n", "kernel", "f64", "f32", "bf16");
        for (const auto &[kernel, types] : counts) {
            printf("%-20s", kernel.c_str());
            for (const char *type : {"f64", "f32", "bf16"}) {
                auto found = types.find(type);
                char cell[64] = "";
                if (found != types.end() && found->second.unequal > 0)
                    snprintf(cell, sizeof cell, "%zu of %zu WRONG", found->second.unequal, found->second.numbers);
                else if (found != types.end())
                    snprintf(cell, sizeof cell, "%zu equal", found->second.numbers);
                printf("%20s", cell);
            }
            printf("\n");
        }
    }
};
