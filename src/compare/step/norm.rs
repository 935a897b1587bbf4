//! RMSNorm and LayerNorm.

use half::bf16;

use super::Step;
use crate::checkpoint::form::NormKind;
use crate::compare::Precision;
use crate::compare::interval::Interval;
use crate::model::Norm;

impl Step<'_> {
    /// The norm of a row, or of every stretch of the weight's length in it.
    pub(super) fn norm(&self, norm: &Norm, u: &[Interval]) -> Vec<Interval> {
        let (scale, bias) = self.scale_and_bias(norm);
        let stretches = u.chunks_exact(scale.len());
        let normed = stretches.flat_map(|u| match norm.form.kind {
            NormKind::Rms { rounded_first, .. } => {
                self.rms_norm(u, (&scale, norm.eps()), rounded_first)
            }
            NormKind::Layer { .. } => self.layer_norm(u, (&scale, &bias, norm.eps())),
        });
        normed.collect()
    }

    /// u · (mean(u²) + ε)^−½ · m: the mean of squares has no cancellation, and everything after it is one operation
    /// each.
    fn rms_norm(
        &self,
        u: &[Interval],
        (scale, eps): (&[f64], f64),
        rounded_first: bool,
    ) -> Vec<Interval> {
        let relative = self.rounding.walk(u.len()) + 8.0 * self.rounding.unit();
        let inverse = |of: fn(Interval) -> f64| inverse_root(mean_square(u, of), eps);
        let inverse = Interval {
            low: inverse(Interval::size),
            value: inverse(|u| u.value),
            high: inverse(Interval::least_size),
        };
        let normed = u.iter().zip(scale).map(|(&u, &m)| {
            let n = u.times(inverse);
            let n = n.off(relative * n.size());
            let n = if rounded_first {
                self.rounding.of(n)
            } else {
                n
            };
            self.rounding.of(n.times(Interval::exactly(m)))
        });
        normed.collect()
    }

    /// (u − mean(u)) · (var(u) + ε)^−½ · w + b. The mean is a sum; so is the variance, which some engines compute as
    /// mean(u²) − mean(u)², so that its error is one of mean(u²).
    fn layer_norm(
        &self,
        u: &[Interval],
        (scale, bias, eps): (&[f64], &[f64], f64),
    ) -> Vec<Interval> {
        let (unit, n) = (self.rounding.unit(), u.len() as f64);
        let walk = self.rounding.walk(u.len()) + 4.0 * unit;
        let sum = u.iter().fold(Interval::exactly(0.0), |sum, &u| sum.plus(u));
        let sizes: f64 = u.iter().map(|u| u.size()).sum();
        let mean = sum.map(|sum| sum / n).off(walk * sizes / n);
        let centred: Vec<_> = u.iter().map(|u| u.minus(mean)).collect();
        let off = walk * mean_square(u, Interval::size);
        let variance = |of: fn(Interval) -> f64, off: f64| {
            inverse_root((mean_square(&centred, of) + off).max(0.0), eps)
        };
        let inverse = Interval {
            low: variance(Interval::size, off),
            value: variance(|u| u.value, 0.0),
            high: variance(Interval::least_size, -off),
        };
        let zeros = vec![0.0; if bias.is_empty() { u.len() } else { 0 }];
        let shift = bias.iter().chain(&zeros);
        let normed = centred.iter().zip(scale).zip(shift).map(|((u, &w), &b)| {
            let y = u.times(inverse).times(Interval::exactly(w));
            let y = y.off(8.0 * unit * y.size()).plus(Interval::exactly(b));
            self.rounding.once(y)
        });
        normed.collect()
    }

    /// m, and the bias of a LayerNorm.
    fn scale_and_bias(&self, norm: &Norm) -> (Vec<f64>, Vec<f64>) {
        match self.rounding.0 {
            Precision::F64 | Precision::F32 | Precision::F16 => {
                (norm.scale::<f64>(), norm.bias::<f64>())
            }
            Precision::Bf16 => {
                let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
                (wide(norm.scale::<bf16>()), wide(norm.bias::<bf16>()))
            }
        }
    }
}

fn mean_square(u: &[Interval], of: fn(Interval) -> f64) -> f64 {
    u.iter().map(|&u| of(u).powi(2)).sum::<f64>() / u.len() as f64
}

fn inverse_root(mean_square: f64, eps: f64) -> f64 {
    (mean_square + eps).sqrt().recip()
}
