//! One lemma on random numbers and what it promises, shared by the fuzz target and `tests/lemmas.rs`.

use context_patch::kernels::{Level, Rows};
use context_patch::patch::lemmas::{lemma_6, lemma_8, lemma_9, lemma_10, lemma_11};
use context_patch::patch::{LowRank, Precondition};

/// What a lemma is given. Its `Debug` output is a test case that can be pasted.
#[derive(Clone, Debug)]
pub struct Case {
    /// Which lemma: 6, 8, 9, 10 or 11.
    pub lemma: u8,
    /// W of Lemma 6, `[rows, x.len()]`.
    pub w: Vec<f64>,
    /// z, h or u; for Lemma 11 the h_j one after the other.
    pub x: Vec<f64>,
    /// δz or δy.
    pub delta: Vec<f64>,
    /// s_j of Lemma 11.
    pub gates: Vec<f64>,
}

/// How a case ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The change does what the lemma says.
    Equal,
    /// A precondition failed: its quantity and value.
    Refused(String, f64),
}

/// The unit roundoff.
const U: f64 = f64::EPSILON / 2.0;
/// The smallest positive number: what an underflow can be off by.
const TINY: f64 = f64::MIN_POSITIVE * f64::EPSILON;

impl Case {
    /// A case of the given sizes whose numbers come from `number`; `rows` is also the number of experts.
    pub fn new(lemma: u8, rows: usize, length: usize, mut number: impl FnMut() -> f64) -> Self {
        let mut numbers = |n: usize| (0..n).map(|_| number()).collect::<Vec<_>>();
        let experts = if lemma == 11 { rows } else { 1 };
        let delta = match lemma {
            8 | 9 | 11 => rows,
            _ => length,
        };
        Self {
            lemma,
            x: numbers(experts * length),
            delta: numbers(delta),
            gates: numbers(if lemma == 11 { rows } else { 0 }),
            w: numbers(if lemma == 6 { rows * length } else { 0 }),
        }
    }

    /// Solves the case and checks what came: finite, and equal within the roundings, or a refusal with
    /// a reason.
    pub fn check(&self) -> Outcome {
        let solved = match self.lemma {
            6 => self.check_6(),
            8 => self.check_8(),
            9 => self.check_9(),
            10 => self.check_10(),
            _ => self.check_11(),
        };
        let Err(Precondition { quantity, value }) = solved else {
            return Outcome::Equal;
        };
        let quotient = |j: usize| self.delta[j] / self.x[j];
        let overflows = self.lemma == 10 && (0..self.x.len()).any(|j| !quotient(j).is_finite());
        assert!(
            value == 0.0 || !value.is_finite() || overflows,
            "{quantity} = {value} is no reason to refuse {self:?}"
        );
        Outcome::Refused(quantity, value)
    }

    fn check_6(&self) -> Result<(), Precondition> {
        let n = self.x.len();
        let delta = lemma_6(Level::best(), Rows::Typed(&self.w, n), &self.x, &self.delta)?;
        let terms =
            |w: &[f64]| -> Vec<f64> { w.iter().zip(&self.delta).map(|(w, d)| w * d).collect() };
        for (i, w) in self.w.chunks(n).enumerate() {
            let terms = terms(w);
            let size = terms.iter().map(|x| x.abs()).sum();
            self.compare(i, said(&delta, &self.x, i), terms.iter().sum(), size, 1.0);
        }
        Ok(())
    }

    fn check_8(&self) -> Result<(), Precondition> {
        assert_eq!(lemma_8(&self.delta)?, self.delta, "{self:?}");
        Ok(())
    }

    fn check_9(&self) -> Result<(), Precondition> {
        let delta = lemma_9(&self.x, &self.delta)?;
        for (i, &wanted) in self.delta.iter().enumerate() {
            self.compare(i, said(&delta, &self.x, i), wanted, wanted.abs(), 1.0);
        }
        Ok(())
    }

    fn check_10(&self) -> Result<(), Precondition> {
        let delta_m = lemma_10(&self.x, &self.delta)?;
        for (j, delta_m) in delta_m.into_iter().enumerate() {
            assert!(delta_m.is_finite(), "Δm[{j}] in {self:?}");
            let wanted = self.delta[j];
            let got = (delta_m * self.x[j], delta_m);
            self.compare(j, got, wanted, wanted.abs(), 1.0);
        }
        Ok(())
    }

    fn check_11(&self) -> Result<(), Precondition> {
        let h: Vec<_> = self.x.chunks(self.x.len() / self.gates.len()).collect();
        let active: Vec<_> = self.gates.iter().copied().zip(h.iter().copied()).collect();
        let patches = lemma_11(&active, &self.delta)?;
        let pairs = || active.iter().zip(&patches);
        let speaking = || pairs().filter(|(_, patch)| patch.is_some());
        let s: f64 = speaking().map(|((gate, _), _)| gate).sum();
        let gates: f64 = speaking().map(|((gate, _), _)| gate.abs()).sum();
        for (i, &wanted) in self.delta.iter().enumerate() {
            let (mut sum, mut factors) = (0.0, 0.0);
            for ((gate, h), patch) in pairs() {
                let Some(patch) = patch else { continue };
                let (said, factor) = said(patch, h, i);
                sum += gate * said;
                factors += factor.abs();
            }
            let size = wanted.abs() * (gates / s.abs());
            self.compare(i, (sum, factors), wanted, size, 1.0 + gates);
        }
        Ok(())
    }

    /// `got` is a result and the factor of the patch in it; an underflow is multiplied by that, by the
    /// activations, and by `scale`.
    fn compare(&self, i: usize, got: (f64, f64), wanted: f64, size: f64, scale: f64) {
        let (got, factor) = got;
        let reach: f64 = self.x.iter().map(|x| x.abs()).sum();
        let terms = 2.0 * (self.x.len() + self.gates.len()) as f64 + 18.0;
        let underflow = TINY * (1.0 + reach) * (1.0 + factor.abs()) * scale;
        let bound = terms * (U * size + underflow);
        let error = (got - wanted).abs();
        assert!(
            error <= bound || !bound.is_finite(),
            "[{i}]: {error:e} > {bound:e} in {self:?}"
        );
    }
}

/// (ΔW x)_i and u_i, all of it finite.
fn said(delta: &LowRank, x: &[f64], i: usize) -> (f64, f64) {
    let (u, v) = (delta.u.as_slice(), delta.v.as_slice());
    assert!(u.iter().chain(v).all(|x| x.is_finite()), "{delta:?}");
    let along: f64 = v.iter().zip(x).map(|(v, x)| v * x).sum();
    (u[i] * along, u[i])
}
