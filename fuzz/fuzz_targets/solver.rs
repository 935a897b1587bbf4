//! The solvers of one layer on any numbers: what they solve says t within a bound, or they refuse.

use context_patch::kernels::{Level, unscaled_rms_norm};
use context_patch::patch::lemmas::lemma_9;
use context_patch::patch::span::reach;
use context_patch::patch::sphere::nearest;
use context_patch::patch::{appendix_b, closed_form};
use context_patch::tensor::{Dtype, Matrix};

const EPS: f64 = 1e-6;
/// The unit roundoff.
const U: f64 = f64::EPSILON / 2.0;

/// A layer's outer function and what it is to say.
#[derive(Clone, Debug)]
pub struct Layer {
    pub m: Vec<f64>,
    pub t: Vec<f64>,
    pub d: Vec<f64>,
    pub h: Vec<f64>,
    pub gain: f64,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Equal,
    Refused,
}

/// A number of the scales that the bounds are for, 1e-30 to 1e30; zeros and what is no number stay.
fn scaled(x: f64) -> f64 {
    match x == 0.0 || !x.is_finite() {
        true => x,
        false => x.abs().clamp(1e-30, 1e30).copysign(x),
    }
}

impl Layer {
    pub fn new(hidden: usize, length: usize, mut number: impl FnMut() -> f64) -> Self {
        let mut numbers = |n: usize| -> Vec<f64> { (0..n).map(|_| scaled(number())).collect() };
        let gain = Some(numbers(1)[0].abs()).filter(|gain| gain.is_finite());
        Self {
            m: numbers(hidden),
            t: numbers(hidden),
            d: numbers(hidden),
            h: numbers(length),
            gain: gain.unwrap_or(1.0).clamp(1e-3, 1e3),
        }
    }

    /// R, as the solvers choose it.
    fn length(&self) -> f64 {
        let mean = self.d.iter().map(|d| d * d).sum::<f64>() / self.d.len() as f64;
        self.gain * mean.sqrt().max(EPS.sqrt())
    }

    /// d with ΔW_down by Lemma 9 for `wanted`, as a pass computes it, or `None` where it is refused.
    fn patched(&self, wanted: &[f64]) -> Option<Vec<f64>> {
        let delta: Vec<f64> = wanted.iter().zip(&self.d).map(|(w, d)| w - d).collect();
        let down = lemma_9(&self.h, &delta).ok()?;
        let vh: f64 = down.v.row(0).iter().zip(&self.h).map(|(v, h)| v * h).sum();
        let u = down.u.as_slice();
        let d: Vec<f64> = self.d.iter().zip(u).map(|(d, u)| d + u * vh).collect();
        let finite = d.iter().map(|d| d * d).sum::<f64>().is_finite();
        finite.then_some(d)
    }

    /// How much of n(d) is rounding: d' is W_down h plus a product of `length` terms, each rounded, and n
    /// divides it by its length.
    fn noise(&self, j: usize, d: &[f64]) -> f64 {
        let mean = d.iter().map(|d| d * d).sum::<f64>() / d.len() as f64;
        let steps = (self.h.len() + d.len() + 16) as f64;
        steps * U * (self.d[j].abs() + d[j].abs()) / (mean + EPS).sqrt()
    }

    /// The closed form: m' n(d') = t but for the rounding of n(d').
    pub fn closed_form(&self) -> Outcome {
        let (wanted, m) = closed_form::down_and_scale(&self.m, &self.t, self.length(), EPS);
        let Some(d) = self.patched(&wanted) else {
            return Outcome::Refused;
        };
        let n = unscaled_rms_norm(Level::Scalar, &d, EPS);
        let (scale, _) = closed_form::refit(&m, &n, &self.t);
        if scale.iter().any(|m| !m.is_finite()) {
            return Outcome::Refused;
        }
        for j in 0..self.t.len() {
            let error = (scale[j] * n[j] - self.t[j]).abs();
            let bound = m[j].abs() * self.noise(j, &d) + 16.0 * U * self.t[j].abs();
            assert!(
                error <= bound + f64::MIN_POSITIVE,
                "{j}: {error:e} {bound:e} {self:?}"
            );
        }
        Outcome::Equal
    }

    /// Appendix B: (m + Δm) n(d') = t wherever it says so, and no number that is none.
    pub fn appendix_b(&self) -> Outcome {
        let solved = appendix_b::down(&self.m, &self.t, self.length(), EPS);
        let Some(d) = self.patched(&solved.d) else {
            return Outcome::Refused;
        };
        let n = unscaled_rms_norm(Level::Scalar, &d, EPS);
        let (delta_m, unserved) = appendix_b::scale(&self.m, &n, &self.t);
        assert!(
            delta_m.iter().all(|delta_m| delta_m.is_finite()),
            "{self:?}"
        );
        let mut off = 0;
        for j in 0..self.t.len() {
            let said = (self.m[j] + delta_m[j]) * n[j];
            let bound = 4.0 * U * ((self.m[j] * n[j]).abs() + self.t[j].abs());
            let error = (said - self.t[j]).abs();
            off += usize::from(error.is_nan() || error > bound + f64::MIN_POSITIVE);
        }
        assert!(off <= unserved, "{off} off, {unserved} unserved: {self:?}");
        match unserved {
            0 => Outcome::Equal,
            _ => Outcome::Refused,
        }
    }

    /// The point on the sphere: of the right length, and no worse than its mirror images.
    pub fn sphere(&self) -> Outcome {
        let square = self.gain * self.m.len() as f64;
        let (y, _) = nearest(&self.m, &self.t, square);
        let found: f64 = y.iter().map(|y| y * y).sum();
        if !found.is_finite() || y.iter().any(|y| y.is_nan()) {
            return Outcome::Refused;
        }
        let slack = 64.0 * self.m.len() as f64 * U * square;
        assert!((found - square).abs() <= slack, "{found} {square} {self:?}");
        for j in 0..y.len() {
            // Of y_j and −y_j the one on t's side of m.
            let side = self.m[j] * self.t[j] * y[j];
            assert!(side >= 0.0 || side.is_nan(), "{j}: {y:?} {self:?}");
        }
        Outcome::Equal
    }
}

/// Rows of H and the changes that are asked of the last of them.
#[derive(Clone, Debug)]
pub struct Span {
    pub h: Matrix<f64>,
    pub delta: Matrix<f64>,
}

impl Span {
    pub fn new(
        [stay, span, length, hidden]: [usize; 4],
        repeat: bool,
        mut number: impl FnMut() -> f64,
    ) -> Self {
        let mut matrix = |rows: usize, cols| {
            Matrix::from_vec(cols, (0..rows * cols).map(|_| scaled(number())).collect())
        };
        let (mut h, delta) = (matrix(stay + span, length), matrix(span, hidden));
        if repeat && h.rows() > 1 {
            let first = h.row(0).to_vec();
            let last = h.rows() - 1;
            h.row_mut(last).copy_from_slice(&first);
        }
        Self { h, delta }
    }

    /// ΔW h is the change for every row that asks for one, and nothing for the others.
    pub fn check(&self) -> Outcome {
        let Ok((down, condition)) = reach::down(&self.h, &self.delta, Dtype::F64) else {
            return Outcome::Refused;
        };
        assert!(condition >= 1.0 - 1e-9, "{condition}");
        let stay = self.h.rows() - self.delta.rows();
        let largest = self
            .delta
            .as_slice()
            .iter()
            .fold(0.0f64, |max, x| max.max(x.abs()));
        for (i, h) in self.h.iter_rows().enumerate() {
            let vh: Vec<f64> = (down.v.iter_rows())
                .map(|v| v.iter().zip(h).map(|(v, h)| v * h).sum())
                .collect();
            for (o, u) in down.u.iter_rows().enumerate() {
                let got: f64 = u.iter().zip(&vh).map(|(u, vh)| u * vh).sum();
                let want = match i.checked_sub(stay) {
                    Some(i) => self.delta.row(i)[o],
                    None => 0.0,
                };
                // A row of another length than the others turns their rounding into its own.
                let ratio = norm(h) / self.h.iter_rows().map(norm).fold(f64::INFINITY, f64::min);
                let steps = 64.0 * (h.len() * self.h.rows()) as f64;
                let bound = steps * U * condition * ratio * largest;
                let fine = (got - want).abs() <= bound || !bound.is_finite();
                assert!(fine, "{i} {o}: {got} {want} {bound:e} {self:?}");
            }
        }
        self.check_rounded(down.v, condition);
        Outcome::Equal
    }

    /// The same where V is rounded to f32 and U found for the products that this gives.
    fn check_rounded(&self, v: Matrix<f64>, condition: f64) {
        let v = v.map(|x| f64::from(x as f32));
        let span = self
            .h
            .slice_rows(self.h.rows() - self.delta.rows()..self.h.rows());
        let products = |h: &[f64]| -> Vec<f64> {
            let dot = |v: &[f64]| v.iter().zip(h).map(|(v, h)| v * h).sum();
            v.iter_rows().map(dot).collect()
        };
        let vh = span.iter_rows().flat_map(products).collect();
        let vh = Matrix::from_vec(span.rows(), vh);
        // Beyond that V H is no longer near a diagonal, which the bound is for.
        let off = condition * f64::from(f32::EPSILON) * (span.cols() as f64).sqrt();
        let normal = v.as_slice().iter().all(|v| *v == 0.0 || v.abs() > 1e-37);
        if off > 0.1 || !normal {
            return;
        }
        let Ok(u) = reach::for_products(&vh, &self.delta) else {
            return;
        };
        for (o, u) in u.iter_rows().enumerate() {
            let largest = u.iter().fold(0.0f64, |max, u| max.max(u.abs()));
            for (i, vh) in vh.iter_rows().enumerate() {
                let got: f64 = u.iter().zip(vh).map(|(u, vh)| u * vh).sum();
                let want = self.delta.row(i)[o];
                let steps = 64.0 * vh.len() as f64;
                let bound = steps * U * vh[i].abs() * (u[i].abs() + off * largest);
                let fine = (got - want).abs() <= bound + f64::MIN_POSITIVE || !bound.is_finite();
                assert!(fine, "{i} {o}: {got} {want} {bound:e} {self:?}");
            }
        }
    }
}

fn norm(x: &[f64]) -> f64 {
    x.iter().map(|x| x * x).sum::<f64>().sqrt()
}
