//! How far a patched block may be from its target: the derivation.
//!
//! u is the unit roundoff of the compute type, u₆₄ that of f64, γ_k = k u/(1 − k u) what k roundings can do to a
//! product (Higham, *Accuracy and Stability of Numerical Algorithms*, §3.1). All bounds hold for each
//! coordinate, and hold always: nothing is taken as random.
//!
//! **A linear map** y = W x + b of n inputs. A product is rounded ⌈n/16⌉ times in its lane and 4 times in the
//! tree, and once more where b is added. So y is off by at most γ_k (Σ_j |W_ij x_j| + |b_i|) with k = ⌈n/16⌉ + 4 or 5. A
//! patched weight was itself rounded when it was stored (for f64 that is the sum W + ΔW): one more.
//!
//! **Solving** is done in f64, from the activations that were really computed; they count as exact. ‖h‖² is a sum of n
//! squares: n + 2 roundings, halved by the root, two more, doubled again by dividing twice; with the rounding of both
//! factors and of their product ΔW h is off by (n + 9) u₆₄ |δy|. δy itself is two differences, off by
//! u₆₄ (|T − v| + |δy|).
//!
//! **The condition of the division** cancels: Lemma 9 divides by ‖h‖² and Lemma 10 by u, and the patched block
//! multiplies by the same h and the same u again, so a small divisor makes a large patch but not a large error. What stays
//! is the cancellation in (W + ΔW) h, whose terms add up to at most Σ_j |W_ij h_j| + |δy_i|.
//!
//! **The block** says v + g(h), rounded once more. Together, for the outer functions:
//!
//! | lemma | \|T(C∖Y, x) − T(C, x)\| is at most u \|T\| + u₆₄ (\|T − v\| + \|δy\|) and |
//! |---|---|
//! | 8 | u (\|W h + b\| + \|W h + b + δy\|) + (u + u₆₄) \|b + δy\|: both times W h is the same, to the bit |
//! | 9 | the linear map's bound for W and for W + ΔW, + (n + 9) u₆₄ \|δy\| |
//! | 10 | u \|m n\| + (2 u + u₆₄) \|(m + Δm) n\| + u₆₄ \|δy\| |
//! | 11 | Σ s_j (that of Lemma 9 for W_j, with one more rounding for each active expert) + (n + a + 10) u₆₄ \|δy\|, of a experts |
//!
//! **Inside**, (W + ΔW) z may differ from W z_C by the linear map's bound for both, + (n + 9) u₆₄ |W δz| for solving and
//! γ_k (of u₆₄, k = ⌈n/16⌉ + 5) Σ_j |W_ij δz_j| for the rounding of δz and of W δz; the former is taken as (n + 9) u₆₄
//! Σ_j |W_ij δz_j|, which is more.
//!
//! To each comes what underflow can take: the smallest positive number for each operation.

use super::experts::{Active, ExpertsOuter};
use super::inner::FirstMaps;
use super::linear::Linear;
use super::outer::Outer;
use crate::kernels::Level;
use crate::patch::theorem_5::{OutputControllable, wide};
use crate::tensor::{Dtype, Float};

/// u₆₄.
pub(super) const U64: f64 = Dtype::F64.unit_roundoff();

/// The rounding of a patched weight when it is stored.
const STORED: usize = 1;

/// The roundings of a product on its way through a dot product of n terms.
fn dot_roundings(n: usize) -> f64 {
    n.div_ceil(16) as f64 + 4.0
}

/// γ_k.
fn gamma(u: f64, k: f64) -> f64 {
    k * u / (1.0 - k * u)
}

/// The smallest positive number.
fn tiny(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => f64::from_bits(1),
        Dtype::F32 | Dtype::Bf16 => f32::from_bits(1).into(),
    }
}

/// Σ_j |W_ij x_j|, row by row.
fn magnitudes<A: Float>(map: &Linear<A>, x: &[f64]) -> Vec<f64> {
    let weight = map.weight();
    let rows = weight.iter_rows().map(|row| {
        let terms = row.iter().zip(x);
        terms.map(|(w, x)| (w.to_f64() * x).abs()).sum()
    });
    rows.collect()
}

/// How far each computed y may be from W x + b; `more` are roundings before and after.
fn linear<A: Float>(map: &Linear<A>, x: &[A], more: usize) -> Vec<f64> {
    let x = wide(x);
    let more = more + usize::from(map.bias.is_some());
    let k = dot_roundings(x.len()) + more as f64;
    let gamma = gamma(A::DTYPE.unit_roundoff(), k);
    let reach: f64 = x.iter().map(|x| x.abs()).sum();
    let underflow = tiny(A::DTYPE) * (x.len() as f64 + 20.0 + reach);
    let sizes = magnitudes(map, &x).into_iter().enumerate();
    sizes
        .map(|(i, size)| {
            let bias = map.bias.as_ref().map_or(0.0, |b| b[i].to_f64().abs());
            gamma * (size + bias) + underflow
        })
        .collect()
}

/// An outer function for which a bound is derived.
pub trait Bounded<A: Float>: OutputControllable<A> {
    /// How far g(h; θ + Δθ), as `patched` computes it, may be from g(h; θ) + δy.
    fn bound(&self, level: Level, patched: &Self, h: &Self::Input, delta_y: &[f64]) -> Vec<f64>;
}

impl<A: Float> Bounded<A> for Outer<A> {
    fn bound(&self, level: Level, patched: &Self, h: &Vec<A>, delta_y: &[f64]) -> Vec<f64> {
        let u = A::DTYPE.unit_roundoff();
        let said = wide(&self.forward(level, h));
        let says = wide(&patched.forward(level, h));
        let each = |bound: &dyn Fn(usize) -> f64| (0..said.len()).map(bound).collect();
        match (self, patched) {
            (Self::Bias(_), Self::Bias(patched)) => {
                let bias = patched.bias.as_deref().unwrap_or_default();
                each(&|i| u * (said[i].abs() + says[i].abs()) + (u + U64) * bias[i].to_f64().abs())
            }
            (Self::Weight(down), Self::Weight(patched)) => {
                let (before, after) = (linear(down, h, 0), linear(patched, h, STORED));
                let solved = (h.len() as f64 + 9.0) * U64;
                each(&|i| before[i] + after[i] + solved * delta_y[i].abs())
            }
            _ => each(&|i| {
                let rounded = u * said[i].abs() + (2.0 * u + U64) * says[i].abs();
                // |u| is below √n, so 1 + n is more than what it can make of an underflow.
                let underflow = tiny(A::DTYPE) * (1.0 + said.len() as f64);
                rounded + U64 * delta_y[i].abs() + underflow
            }),
        }
    }
}

impl<A: Float> Bounded<A> for ExpertsOuter<A> {
    fn bound(
        &self,
        _: Level,
        patched: &Self,
        active: &Vec<Active<A>>,
        delta_y: &[f64],
    ) -> Vec<f64> {
        let n = active.iter().map(|active| active.h.len()).max();
        let solved = (n.unwrap_or(0) + active.len() + 10) as f64 * U64;
        let mut bound: Vec<_> = delta_y.iter().map(|dy| solved * dy.abs()).collect();
        for Active { expert, gate, h } in active {
            for (g, stored) in [(self, 0), (patched, STORED)] {
                let off = linear(&g.down[*expert], h, stored + active.len());
                for (bound, off) in bound.iter_mut().zip(off) {
                    *bound += gate.to_f64() * off;
                }
            }
        }
        bound
            .iter()
            .map(|bound| bound + 4.0 * tiny(A::DTYPE))
            .collect()
    }
}

/// How far the first maps of `patched` at v may be from those of `f` at `v_ctx`, map by map.
pub(super) fn first_maps<A: Float, F: FirstMaps<A>>(
    level: Level,
    f: &F,
    patched: &F,
    v: &[A],
    v_ctx: &[A],
) -> Vec<Vec<f64>> {
    let (z, z_ctx) = (f.norm().forward(level, v), f.norm().forward(level, v_ctx));
    let delta_z: Vec<_> = (0..z.len())
        .map(|j| z_ctx[j].to_f64() - z[j].to_f64())
        .collect();
    let solved = (z.len() as f64 + 9.0) * U64 + gamma(U64, dot_roundings(z.len()) + 1.0);
    let pairs = f.maps().into_iter().zip(patched.maps());
    pairs
        .map(|(map, patched)| {
            let (wanted, got) = (linear(map.map, &z_ctx, 0), linear(patched.map, &z, STORED));
            let moved = magnitudes(map.map, &delta_z);
            (0..wanted.len())
                .map(|i| wanted[i] + got[i] + solved * moved[i])
                .collect()
        })
        .collect()
}
