//! The norms in front of and behind a sub-layer.

use crate::kernels::{Level, dot, rms_norm};
use crate::tensor::Float;

/// ε of every norm here.
pub(super) const EPS: f64 = 1e-6;

/// N.
#[derive(Clone, Debug)]
pub enum Norm<A: Float> {
    /// The vector itself.
    None,
    /// RMSNorm: scale ⊙ u / √(mean(u²) + ε).
    Rms {
        /// The scale.
        scale: Vec<A>,
    },
    /// LayerNorm: scale ⊙ (u − mean(u)) / √(var(u) + ε) + bias.
    Layer {
        /// The scale.
        scale: Vec<A>,
        /// The bias.
        bias: Vec<A>,
    },
}

impl<A: Float> Norm<A> {
    /// N(u).
    ///
    /// LayerNorm's mean is a dot product with ones, divided by the length; what is left when it is taken off
    /// goes through RMSNorm (its mean square is the variance), and the bias is added.
    pub fn forward(&self, level: Level, u: &[A]) -> Vec<A> {
        let mut out = vec![A::ZERO; u.len()];
        match self {
            Self::None => out.copy_from_slice(u),
            Self::Rms { scale } => rms_norm(level, u, scale, EPS, &mut out),
            Self::Layer { scale, bias } => {
                let ones = vec![A::ONE; u.len()];
                let mean = dot(level, u, &ones) / A::from_f64(u.len() as f64);
                let centred: Vec<_> = u.iter().map(|&u| u - mean).collect();
                rms_norm(level, &centred, scale, EPS, &mut out);
                for (out, &bias) in out.iter_mut().zip(bias) {
                    *out = *out + bias;
                }
            }
        }
        out
    }

    /// The lemma that controls linear maps of N(v).
    pub(super) fn lemma(&self) -> u8 {
        match self {
            Self::None => 6,
            Self::Rms { .. } | Self::Layer { .. } => 7,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_norm_takes_mean_and_variance_off() {
        let norm = Norm::Layer {
            scale: vec![1.0f64, 2.0, 1.0, 1.0],
            bias: vec![0.0, 10.0, 0.0, 0.0],
        };
        let z = norm.forward(Level::Scalar, &[1001.0, 1003.0, 1005.0, 1007.0]);
        // Mean 1004, variance 5.
        let unit = 1.0 / (5.0 + EPS).sqrt();
        for (z, want) in z
            .iter()
            .zip([-3.0 * unit, -2.0 * unit + 10.0, unit, 3.0 * unit])
        {
            assert!((z - want).abs() < 1e-14, "{z} {want}");
        }
    }
}
