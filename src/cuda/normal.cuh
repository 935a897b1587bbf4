// The normal distribution: src/kernels/normal.rs, operation for operation.
#pragma once
#include "exp.cuh"

/// Φ(x): the probability that a number of the standard normal distribution is below x.
__device__ inline f64 normal_below(f64 x) {
    const f64 coefficients[] = {
        -4.412372171591377e-10, 1.5147404913905206e-09, 2.1247874879865943e-09, -1.3308014802505023e-08,
        -8.770472158384658e-09, 8.686248600209437e-08, 6.752637591289214e-08, -5.540529789371985e-07,
        -7.962549846283206e-07, 3.3363388893381767e-06, 9.952577736059616e-06, -1.1875173560424339e-05,
        -0.00010897981415466318, -0.00015957387478938276, 0.0005986753540318707, 0.0041590133594833194,
        0.013823727741280873, 0.03300407323410223, 0.06270663133425991, 0.09906112319399478,
        0.13307650057801135, 0.15383860995001258};
    f64 t = 5 / (5 + fabs(x)), q = 2 * t - 1;
    f64 p = 0;
    for (f64 c : coefficients)
        p = p * q + c;
    f64 beyond = exponential(-0.5 * (x * x)) * (t * p);
    return x < 0 ? beyond : 1 - beyond;
}
