//! How far a patched block may be from its target: the derivation.
//!
//! u is the unit roundoff of the compute type, a that of the type of sums, which is u in f64 and f32 and 2⁻²⁴ in bf16, u₆₄ that of
//! f64. γ_k(u) = k u/(1 − k u) is what k roundings can do to a product (Higham, *Accuracy and Stability of Numerical
//! Algorithms*, §3.1). r is one operation of the compute type: u, or in bf16 a + u + a u, as its result is rounded twice. All
//! bounds hold for each coordinate, and hold always: nothing is taken as random.
//!
//! **A linear map** y = W x + b of n inputs. A product is rounded ⌈n/16⌉ times in its lane and 4 times in the
//! tree, and once more where b is added. So the sum is off by at most γ_k(a) (Σ_j |W_ij x_j| + |b_i|) with k = ⌈n/16⌉ + 4 or
//! 5, and in bf16 y by γ₁(u) more of itself, once, or twice where W x is rounded before b is added. A patched weight was itself
//! rounded to the compute type when it was stored (for f64 that is the sum W + ΔW): γ₁(u) of each product.
//!
//! **Solving** is done in f64, from the activations that were really computed; they count as exact. ‖h‖² is a sum of n
//! squares: n + 2 roundings, halved by the root, two more, doubled again by dividing twice; with the rounding of both
//! factors and of their product ΔW h is off by (n + 9) u₆₄ |δy|. δy itself is two differences, off by
//! u₆₄ (|T − v| + |δy|), and in a parallel block, where x + A stands for v, by u₆₄ |x + A| more.
//!
//! **The condition of the division** cancels: Lemma 9 divides by ‖h‖² and Lemma 10 by n(d), and the patched block
//! multiplies by the same h and the same n(d) again, so a small divisor makes a large patch but not a large error. What stays
//! is the cancellation in (W + ΔW) h, whose terms add up to at most Σ_j |W_ij h_j| + |δy_i|.
//!
//! **The block** says v + g(h), rounded once more; a parallel one (g(h) + A) + x, rounded twice. Together, for the outer
//! functions:
//!
//! | lemma | \|T(C∖Y, x) − T(C, x)\| is at most r \|T\| [+ r \|g + A\|] + what δy is off by and |
//! |---|---|
//! | 8 | r (\|W h + b\| + \|W h + b + δy\|) + (u + u₆₄) \|b + δy\|: both times W h is the same, to the bit |
//! | 9 | the linear map's bound for W and for W + ΔW, + (n + 9) u₆₄ \|δy\| |
//! | 10 | r (\|m n\| + \|(m + Δm) n\|) + (u + u₆₄) \|(m + Δm) n\| + u₆₄ \|δy\|; where 1 + w is stored as w, (u₆₄ + a) \|(m + Δm) n\| + (u + u₆₄) \|(m + Δm − 1) n\| in the place of the second |
//! | 11 | Σ s_j (that of Lemma 9 for W_j, and γ_{e+1}(r) of W_j h_j and of (W_j + ΔW_j) h_j) + (n + e + 10) u₆₄ \|δy\|, of e active experts |
//!
//! **Inside**, (W + ΔW) z may differ from W z_C by the linear map's bound for both, + (n + 9) u₆₄ |W δz| for solving and
//! γ_k(u₆₄) (k = ⌈n/16⌉ + 5) Σ_j |W_ij δz_j| for the rounding of δz and of W δz; the former is taken as (n + 9) u₆₄
//! Σ_j |W_ij δz_j|, which is more.
//!
//! To each comes what underflow can take: the smallest positive number for each operation, and the smallest normal one in bf16,
//! whose products take denormal numbers as zeros.

use crate::kernels::{Backend, Level};
use crate::model::{Block, ForwardRun, Linear, Maps, Norm, Pass, Rest};
use crate::patch::theorem_5::Patched;
use crate::patch::{LayerPatch, LowRank, TensorChange, active};
use crate::tensor::{Dtype, Element, Matrix};

/// u₆₄.
const U64: f64 = Dtype::F64.unit_roundoff();

/// u.
fn unit<E: Element>() -> f64 {
    E::DTYPE.unit_roundoff()
}

/// r.
fn operation<E: Element>() -> f64 {
    let (sum, unit) = (unit::<E::Acc>(), unit::<E>());
    if E::DTYPE == <E::Acc as Element>::DTYPE {
        unit
    } else {
        sum + unit + sum * unit
    }
}

/// γ_k(u).
fn gamma(u: f64, k: f64) -> f64 {
    k * u / (1.0 - k * u)
}

/// The roundings of a product on its way through a dot product of n terms.
fn dot_roundings(n: usize) -> f64 {
    n.div_ceil(16) as f64 + 4.0
}

/// What an underflow can take.
fn tiny<E: Element>() -> f64 {
    match E::DTYPE {
        Dtype::F64 => f64::from_bits(1),
        Dtype::F32 => f32::from_bits(1).into(),
        Dtype::Bf16 => f32::MIN_POSITIVE.into(),
    }
}

/// A row of W + ΔW times x.
struct Product {
    /// W_i x, without b.
    value: f64,
    /// Σ_j |W_ij x_j|.
    size: f64,
    /// Σ_j |W_ij|.
    weights: f64,
}

/// Every row of W + ΔW times x.
fn products(map: &Linear, delta: Option<&LowRank>, x: &[f64]) -> Vec<Product> {
    let mut row = vec![0.0; x.len()];
    let rows = (0..map.weight().rows()).map(|i| {
        match delta {
            None => map.weight().read_row(i, &mut row),
            Some(delta) => delta.sum_rows(map.weight(), i, &mut row),
        }
        let terms = || row.iter().zip(x).map(|(w, x)| w * x);
        Product {
            value: terms().sum(),
            size: terms().map(f64::abs).sum(),
            weights: row.iter().map(|w| w.abs()).sum(),
        }
    });
    rows.collect()
}

/// What a linear map gives, and how far that, as it is computed, may be from (W + ΔW) x + b.
fn linear<E: Element>(map: &Linear, delta: Option<&LowRank>, x: &[f64]) -> Vec<(f64, f64)> {
    let bias = map.bias::<E>();
    let k = dot_roundings(x.len()) + f64::from(bias.is_some());
    let mut relative = gamma(unit::<E::Acc>(), k);
    if delta.is_some() {
        let stored = gamma(unit::<E>(), 1.0);
        relative += stored + relative * stored;
    }
    let narrowed = match E::DTYPE {
        Dtype::Bf16 => gamma(unit::<E>(), 1.0),
        Dtype::F64 | Dtype::F32 => 0.0,
    };
    let twice = bias.is_some() && map.form.rounded_first;
    let reach = x.len() as f64 + 20.0 + x.iter().map(|x| x.abs()).sum::<f64>();
    let rows = products(map, delta, x).into_iter().enumerate();
    rows.map(|(i, product)| {
        let bias = bias.as_ref().map_or(0.0, |bias| bias[i].to_f64());
        let value = product.value + bias;
        let mut off = relative * (product.size + bias.abs());
        if twice {
            off += narrowed * (product.value.abs() + off);
        }
        off += narrowed * (value.abs() + off);
        (value, off + tiny::<E>() * (reach + product.weights))
    })
    .collect()
}

/// How far T(C∖Y, x), as a patched block computes it, may be from T(C, x).
pub(super) fn block<E: Element>(
    level: Level,
    block: &Block,
    patched: &Patched<E>,
    rest: &Rest<Matrix<E>>,
) -> Vec<f64> {
    let (t, g) = (wide(&patched.said.t), wide(&patched.said.g));
    let r = operation::<E>();
    let outer = outer(level, block, patched);
    let base = rest.to_f64(0);
    let bounds = (0..t.len()).map(|j| {
        let parallel = match rest {
            Rest::Sequential(_) => 0.0,
            Rest::Parallel { attention, .. } => {
                let branches = g[j] + attention.row(0)[j].to_f64();
                gamma(r, 1.0) * branches.abs() + U64 * base[j].abs()
            }
        };
        let delta_y = (patched.target[j] - base[j]).abs() + patched.delta_y[j].abs();
        outer[j] + parallel + r * t[j].abs() + U64 * delta_y + 2.0 * tiny::<E>()
    });
    bounds.collect()
}

/// How far g(h; θ + Δθ), as it is computed, may be from g(h; θ) + δy.
fn outer<E: Element>(level: Level, block: &Block, patched: &Patched<E>) -> Vec<f64> {
    let outer = &block.outer;
    if let Some(norm) = outer.post_norm() {
        return by_scale(level, block, norm, patched);
    }
    let bias = format!("{}.bias", outer.down()[0].name());
    if let Some(TensorChange::Vector(bias)) = patched.delta_outer.get(&bias) {
        let (before, after) = (wide(&patched.before), wide(&patched.said.g));
        let sums = before.iter().zip(&after).zip(bias);
        let r = operation::<E>();
        let bounds = sums.map(|((before, after), bias)| {
            r * (before.abs() + after.abs()) + (unit::<E>() + U64) * bias.abs()
        });
        return bounds.collect();
    }
    by_weights(block, patched)
}

/// By Lemma 10.
fn by_scale<E: Element>(
    level: Level,
    block: &Block,
    norm: &Norm,
    patched: &Patched<E>,
) -> Vec<f64> {
    let mut run = ForwardRun::on(level, Backend::Native);
    let d = block
        .outer
        .project(&mut Pass::of_rows(&mut run, &[]), &patched.said.h);
    let n = norm.unscaled(level, d.row(0));
    let scale = match patched.delta_outer.values().next() {
        Some(TensorChange::Vector(scale)) => scale.clone(),
        _ => norm.scale::<E>().into_iter().map(Element::to_f64).collect(),
    };
    let (before, after) = (wide(&patched.before), wide(&patched.said.g));
    let (r, u) = (operation::<E>(), unit::<E>());
    let bounds = (0..scale.len()).map(|j| {
        let (m, n) = (scale[j].abs(), n[j].to_f64().abs());
        let stored = if norm.unit_offset() {
            (U64 + unit::<E::Acc>()) * m + (u + U64) * (scale[j] - 1.0).abs()
        } else {
            (u + U64) * m
        };
        let rounded = r * (before[j].abs() + after[j].abs()) + stored * n;
        // |n| is below √hidden, so 1 + hidden is more than what it can make of an underflow.
        let underflow = tiny::<E>() * (1.0 + scale.len() as f64);
        rounded + U64 * patched.delta_y[j].abs() + underflow
    });
    bounds.collect()
}

/// By Lemmas 9 and 11.
fn by_weights<E: Element>(block: &Block, patched: &Patched<E>) -> Vec<f64> {
    let active = active(&patched.said.h);
    let experts = matches!(block.inner.maps(), Maps::Experts(_));
    // Multiplied by the gate and added up; without experts there is neither.
    let combined = if experts {
        gamma(operation::<E>(), active.len() as f64 + 1.0)
    } else {
        0.0
    };
    let n = active.iter().map(|(_, _, h)| h.len()).max().unwrap_or(0);
    let solving = n + 9 + if experts { active.len() + 1 } else { 0 };
    let solved = patched
        .delta_y
        .iter()
        .map(|dy| solving as f64 * U64 * dy.abs());
    let mut bounds: Vec<f64> = solved.collect();
    for (expert, gate, h) in &active {
        let map = &block.outer.down()[*expert];
        for delta in [None, low_rank(&patched.delta_outer, map)] {
            for (bound, (y, off)) in bounds.iter_mut().zip(linear::<E>(map, delta, h)) {
                *bound += gate.abs() * (off + combined * (y.abs() + off)) + 2.0 * tiny::<E>();
            }
        }
    }
    bounds
}

/// ΔW of a map, where it is changed.
pub(super) fn low_rank<'p>(patch: &'p LayerPatch, map: &Linear) -> Option<&'p LowRank> {
    match patch.get(&format!("{}.weight", map.name())) {
        Some(TensorChange::LowRank(delta)) => Some(delta),
        _ => None,
    }
}

/// How far (W + ΔW) z of a first map may be from W z_C.
pub(super) fn first_map<E: Element>(
    map: &Linear,
    delta: &LowRank,
    z: &[f64],
    z_ctx: &[f64],
) -> Vec<f64> {
    let delta_z: Vec<_> = z_ctx.iter().zip(z).map(|(z_ctx, z)| z_ctx - z).collect();
    let solved = (z.len() as f64 + 9.0) * U64 + gamma(U64, dot_roundings(z.len()) + 1.0);
    let wanted = linear::<E>(map, None, z_ctx).into_iter();
    let sides = wanted.zip(linear::<E>(map, Some(delta), z));
    let sides = sides.zip(products(map, None, &delta_z));
    sides
        .map(|(((_, wanted), (_, got)), moved)| wanted + got + solved * moved.size)
        .collect()
}

/// The one row of a matrix in f64.
pub(super) fn wide<E: Element>(row: &Matrix<E>) -> Vec<f64> {
    row.as_slice().iter().map(|x| x.to_f64()).collect()
}
