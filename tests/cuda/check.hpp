// What the checks of all kernels share.
#pragma once
#include "machine.hpp"
#ifndef __CUDACC__
#include "table.hpp"
#else
#include "../../src/cuda/kernels.cu"
#endif
#include "numbers.hpp"

inline Tally tally;
inline std::vector<Kind> kinds(std::begin(KINDS), std::end(KINDS));
inline Random randomness(18);

/// The type of the plain loops.
template <class E> struct PlainOf {
    using type = E;
};
template <> struct PlainOf<bf16> {
    using type = naive::bf16;
};
template <class E> using Plain = typename PlainOf<E>::type;
template <class E> using Numbers = std::vector<Plain<E>>;

/// Numbers in the machine's memory.
template <class E> struct Memory : Buffer<Plain<E>> {
    using Buffer<Plain<E>>::Buffer;
    E *at() const { return (E *)this->data(); }
};

template <class E> const char *name_of() { return sizeof(E) == 8 ? "f64" : sizeof(E) == 4 ? "f32" : "bf16"; }
template <class E> Numbers<E> random_vector(Kind kind, size_t n) { return random_numbers<Plain<E>>(randomness, kind, n); }
inline unsigned pieces(size_t n, unsigned size) { return (unsigned)((n + size - 1) / size); }
