//! A random block and the invariant of Theorem 1 on it, shared by the fuzz target and `tests/theorem_1.rs`.

use context_patch::kernels::activation::gelu_tanh_f64;
use context_patch::kernels::{Level, Rows, unscaled_rms_norm};
use context_patch::patch::lemmas::lemma_6;
use context_patch::patch::{LowRank, Precondition, theorem_1};

/// A block and the states of both passes, in f64. Its `Debug` output is a test case that can be pasted.
#[derive(Clone, Debug)]
pub struct Block {
    /// Length of z, v and m.
    pub hidden: usize,
    /// Length of h.
    pub intermediate: usize,
    /// `[intermediate, hidden]`
    pub gate: Vec<f64>,
    /// `[intermediate, hidden]`
    pub up: Vec<f64>,
    /// `[hidden, intermediate]`
    pub down: Vec<f64>,
    pub m: Vec<f64>,
    pub z: Vec<f64>,
    pub z_ctx: Vec<f64>,
    pub v: Vec<f64>,
    pub v_ctx: Vec<f64>,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The patched block says what it should.
    Equal,
    /// A precondition failed: its quantity and value.
    Refused(String, f64),
}

const EPS: f64 = 1e-6;
/// The unit roundoff.
const U: f64 = f64::EPSILON / 2.0;
/// The smallest positive number: what an underflow can be off by.
const TINY: f64 = f64::MIN_POSITIVE * f64::EPSILON;

impl Block {
    /// A block of the given sizes whose numbers come from `number`.
    pub fn new(hidden: usize, intermediate: usize, mut number: impl FnMut() -> f64) -> Self {
        let mut numbers = |n: usize| (0..n).map(|_| number()).collect::<Vec<_>>();
        Self {
            hidden,
            intermediate,
            gate: numbers(hidden * intermediate),
            up: numbers(hidden * intermediate),
            down: numbers(hidden * intermediate),
            m: numbers(hidden),
            z: numbers(hidden),
            z_ctx: numbers(hidden),
            v: numbers(hidden),
            v_ctx: numbers(hidden),
        }
    }

    /// Solves the block and checks the patch: finite, the inner function sees z_C, the block says T(C, x).
    pub fn check(&self) -> Outcome {
        let delta_z: Vec<_> = (0..self.hidden)
            .map(|i| self.z_ctx[i] - self.z[i])
            .collect();
        let inner = |w| {
            let rows = Rows::Typed(w, self.hidden);
            lemma_6(Level::best(), rows, &self.z, &delta_z)
        };
        let both = inner(&self.gate).and_then(|gate| Ok((gate, inner(&self.up)?)));
        let (gate, up) = match both {
            Ok(patch) => patch,
            Err(Precondition { quantity, value }) => {
                let meant = value == 0.0 || !value.is_finite();
                assert!(
                    meant,
                    "{quantity} = {value} is no reason to refuse {self:?}"
                );
                return Outcome::Refused(quantity, value);
            }
        };
        let gate = self.patched(&self.gate, &gate);
        let up = self.patched(&self.up, &up);

        let d_ctx = self.project(&self.first(&self.gate), &self.first(&self.up));
        let n_ctx = unscaled_rms_norm(Level::Scalar, &d_ctx, EPS);
        let target: Vec<_> = (0..self.hidden)
            .map(|j| self.v_ctx[j] + self.m[j] * n_ctx[j])
            .collect();
        let n = unscaled_rms_norm(Level::Scalar, &self.project(&gate, &up), EPS);
        let t: Vec<f64> = target
            .iter()
            .zip(&self.v)
            .map(|(target, v)| target - v)
            .collect();
        let delta_m = match theorem_1::outer(&self.m, &n, &t) {
            Ok(delta_m) => delta_m,
            Err(Precondition { quantity, value }) => {
                let quotient = |j: usize| (t[j] - self.m[j] * n[j]) / n[j];
                let meant = (0..self.hidden).any(|j| !quotient(j).is_finite());
                assert!(
                    meant,
                    "{quantity} = {value} is no reason to refuse {self:?}"
                );
                return Outcome::Refused(quantity, value);
            }
        };
        for j in 0..self.hidden {
            assert!(delta_m[j].is_finite(), "Δm[{j}] in {self:?}");
            let m = self.m[j] + delta_m[j];
            let said = self.v[j] + m * n[j];
            // Eight roundings on the way, of numbers no larger than these.
            let size = self.v[j].abs() + target[j].abs() + (self.m[j] * n[j]).abs();
            let bound = 8.0 * U * size + 8.0 * TINY * (1.0 + n[j].abs());
            let error = (said - target[j]).abs();
            assert!(
                error <= bound || !size.is_finite(),
                "T[{j}]: {error:e} > {bound:e} in {self:?}"
            );
        }
        Outcome::Equal
    }

    /// W z_C.
    fn first(&self, w: &[f64]) -> Vec<f64> {
        w.chunks(self.hidden).map(|w| dot(w, &self.z_ctx)).collect()
    }

    /// (W + ΔW) z, held against W z_C.
    fn patched(&self, w: &[f64], delta: &LowRank) -> Vec<f64> {
        let (u, v) = (delta.u.as_slice(), delta.v.as_slice());
        assert!(u.iter().chain(v).all(|x| x.is_finite()), "ΔW in {self:?}");
        let wanted = self.first(w);
        let rows = w.chunks(self.hidden).zip(u).zip(wanted);
        rows.map(|((w, &u), wanted)| {
            let got = dot(w, &self.z) + u * dot(v, &self.z);
            let size: f64 = (0..self.hidden)
                .map(|i| {
                    w[i].abs() * (self.z[i].abs() + self.z_ctx[i].abs())
                        + (u * v[i] * self.z[i]).abs()
                })
                .sum();
            let reach: f64 = self.z.iter().map(|z| z.abs()).sum();
            let terms = self.hidden as f64 + 4.0;
            let bound = 4.0 * terms * (U * size + TINY * (1.0 + reach) * (1.0 + u.abs()));
            let error = (got - wanted).abs();
            assert!(
                error <= bound || !bound.is_finite(),
                "W z: {error:e} > {bound:e} in {self:?}"
            );
            got
        })
        .collect()
    }

    /// d of the first maps' outputs.
    fn project(&self, gate: &[f64], up: &[f64]) -> Vec<f64> {
        let h: Vec<_> = gate
            .iter()
            .zip(up)
            .map(|(&gate, up)| gelu_tanh_f64(gate) * up)
            .collect();
        self.down
            .chunks(self.intermediate)
            .map(|w| dot(w, &h))
            .collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
