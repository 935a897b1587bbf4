//! What a layer of a span can say, and the change of W_down that makes it say it.

use super::least_squares::{self, Pseudoinverse};
use crate::patch::lemmas::check_finite;
use crate::patch::sphere::nearest;
use crate::patch::{Case, LowRank, Precondition};
use crate::tensor::{Dtype, Matrix};

/// |m_j| below this share of the median is too weak to say anything.
const WEAK: f64 = 0.02;

/// What the branch of one token is to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// y, so that the branch gives m ⊙ y.
    pub y: Vec<f64>,
    /// Which case it was.
    pub case: Case,
    /// The length c of what is reached, c·T; 1 but at the last layer.
    pub c: f64,
}

/// Which coordinates of a scale are too weak to say anything at the last layer.
pub fn weak(m: &[f64]) -> Vec<bool> {
    let mut sizes: Vec<f64> = m.iter().map(|m| m.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    let floor = WEAK * sizes[sizes.len() / 2];
    m.iter().map(|m| m.abs() <= floor).collect()
}

/// A layer without a norm behind its branch, which can say anything: what the target is beyond the rest.
pub fn exactly(target: &[f64], rest: &[f64]) -> Said {
    let pairs = target.iter().zip(rest);
    Said {
        y: pairs.map(|(target, rest)| target - rest).collect(),
        case: Case::Regular,
        c: 1.0,
    }
}

/// The last layer: y with Σ y² = `square` such that v + m ⊙ y = c·T wherever m is not `weak`, with the larger of
/// the two c there are. Where there is none (v is too far off for the sphere), y is the nearest there is for
/// the c that v itself points to.
pub fn last(m: &[f64], weak: &[bool], target: &[f64], v: &[f64], square: f64) -> Said {
    let strong = || (0..m.len()).filter(|&j| !weak[j]);
    let (mut aa, mut ab, mut bb) = (0.0, 0.0, 0.0);
    for j in strong() {
        let (a, b) = (target[j] / m[j], v[j] / m[j]);
        aa += a * a;
        ab += a * b;
        bb += b * b;
    }
    // aa c² − 2 ab c + bb − square = 0
    let discriminant = ab * ab - aa * (bb - square);
    let c = (ab + discriminant.max(0.0).sqrt()) / aa;
    let mut y = vec![0.0; m.len()];
    if discriminant >= 0.0 && c > 0.0 && c.is_finite() {
        for j in strong() {
            y[j] = (c * target[j] - v[j]) / m[j];
        }
        return Said {
            y,
            case: Case::Last,
            c,
        };
    }
    let c = if ab > 0.0 && aa > 0.0 { ab / aa } else { 1.0 };
    let t: Vec<f64> = target
        .iter()
        .zip(v)
        .map(|(target, v)| c * target - v)
        .collect();
    let (y, _) = nearest(m, &t, square);
    Said {
        y,
        case: Case::OutOfReach,
        c,
    }
}

/// A layer before the last: the y with Σ y² = `square` that is `exact` in some coordinates and comes as near as
/// it can to t in the others.
pub fn near(m: &[f64], exact: &[bool], t: &[f64], square: f64) -> Said {
    let is_exact = |j: usize| exact[j] && m[j] != 0.0;
    let mut y: Vec<f64> = (0..m.len())
        .map(|j| if is_exact(j) { t[j] / m[j] } else { 0.0 })
        .collect();
    let taken: f64 = y.iter().map(|y| y * y).sum();
    // What should be exact may take nearly all of the sphere.
    let shrink = (0.99 * square / taken).sqrt().min(1.0);
    y.iter_mut().for_each(|y| *y *= shrink);
    let others: Vec<usize> = (0..m.len()).filter(|&j| !is_exact(j)).collect();
    let free = |x: &[f64]| -> Vec<f64> { others.iter().map(|&j| x[j]).collect() };
    let (found, case) = nearest(&free(m), &free(t), square - taken * shrink * shrink);
    for (&j, found) in others.iter().zip(found) {
        y[j] = found;
    }
    Said { y, case, c: 1.0 }
}

/// ΔW_down = δD H⁺ and the condition of H. The rows of `h` are the columns of H: first those of tokens that
/// stay and whose d is to stay, then one for each row of `delta_d`. `dtype` is the type of sums that the patch
/// will run in.
///
/// # Errors
///
/// H has not full column rank, or numbers so large that a factor is not finite.
pub fn down(
    h: &Matrix<f64>,
    delta_d: &Matrix<f64>,
    dtype: Dtype,
) -> Result<(LowRank, f64), Precondition> {
    let inverse = Pseudoinverse::new(h, dtype)?;
    let (out, rank) = (delta_d.cols(), delta_d.rows());
    let stay = h.rows() - rank;
    let mut u = Matrix::zeros(out, rank);
    for (i, delta) in delta_d.iter_rows().enumerate() {
        for (o, delta) in delta.iter().enumerate() {
            u.row_mut(o)[i] = delta / inverse.norms[stay + i];
        }
    }
    let v = inverse.rows.slice_rows(stay..h.rows());
    check_finite("δd/‖h‖", u.as_slice())?;
    check_finite("H⁺", v.as_slice())?;
    Ok((LowRank { u, v }, inverse.condition))
}

/// U again, such that U V h_i = δd_i for the V h_i that a pass gets where V is rounded and the product is:
/// the rows of `vh`, `[rank, rank]`. Rounding moves V h_i by the condition of H, and V and H cannot be changed.
///
/// # Errors
///
/// V H is singular or not finite: rounding has made it so.
pub fn for_products(vh: &Matrix<f64>, delta_d: &Matrix<f64>) -> Result<Matrix<f64>, Precondition> {
    let u = least_squares::solve(vh, delta_d)?;
    check_finite("δd (V H)⁻¹", u.as_slice())?;
    Ok(u)
}

#[cfg(test)]
mod tests {
    use super::*;

    const M: [f64; 5] = [2.0, -1.0, 0.5, 1e-3, 3.0];
    const V: [f64; 5] = [0.1, -0.4, 0.3, 0.7, 0.2];
    const T: [f64; 5] = [0.5, 1.0, -0.3, 0.2, 0.9];

    fn square(y: &[f64]) -> f64 {
        y.iter().map(|y| y * y).sum()
    }

    #[test]
    fn the_last_layer_reaches_a_multiple() {
        let weak = weak(&M);
        assert_eq!(weak, [false, false, false, true, false]);
        let said = last(&M, &weak, &T, &V, 5.0);
        assert_eq!(said.case, Case::Last);
        assert!((square(&said.y) - 5.0).abs() < 1e-13);
        for j in [0, 1, 2, 4] {
            assert!((V[j] + M[j] * said.y[j] - said.c * T[j]).abs() < 1e-14);
        }
        assert_eq!(said.y[3], 0.0);
        // The larger root.
        assert!(said.c > last(&M, &weak, &T, &V, 1.0).c);
    }

    #[test]
    fn out_of_reach_it_comes_near() {
        let far = V.map(|v| 100.0 * v);
        let said = last(&M, &weak(&M), &T, &far, 5.0);
        assert_eq!(said.case, Case::OutOfReach);
        assert!((square(&said.y) - 5.0).abs() < 1e-12);
    }

    #[test]
    fn exact_coordinates_are_exact() {
        let exact = [false, false, false, true, false];
        let t = [0.5, 1.0, -0.3, 1e-3, 0.9];
        let said = near(&M, &exact, &t, 5.0);
        assert!((M[3] * said.y[3] - t[3]).abs() < 1e-18);
        assert!((square(&said.y) - 5.0).abs() < 1e-12);
        // More than the sphere holds: nearly all of it.
        let said = near(&M, &exact, &[0.5, 1.0, -0.3, 1.0, 0.9], 5.0);
        assert!((said.y[3].powi(2) - 4.95).abs() < 1e-12);
        assert!((square(&said.y) - 5.0).abs() < 1e-12);
    }

    #[test]
    fn one_token_is_lemma_9() {
        let h = Matrix::from_vec(3, vec![1.0, -2.0, 2.0]);
        let delta = Matrix::from_vec(2, vec![5.0, -1.0]);
        let (down, condition) = down(&h, &delta, Dtype::F64).unwrap();
        let want = crate::patch::lemmas::lemma_9(h.row(0), delta.row(0)).unwrap();
        assert_eq!((down.u, condition), (want.u, 1.0));
    }

    /// V in f32 alone moves what a token gets by the condition of H; the U for that V brings it back.
    #[test]
    fn rounding_of_v_is_made_good() {
        let h: Vec<f64> = (0..60)
            .map(|i| 1.0 + 1e-3 * f64::from(i * i % 17))
            .collect();
        let h = Matrix::from_vec(12, h);
        let delta = Matrix::from_vec(2, (0..10).map(f64::from).collect());
        let (down, condition) = down(&h, &delta, Dtype::F64).unwrap();
        assert!(condition > 100.0);
        let v = down.v.map(|x| f64::from(x as f32));
        let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let vh = h
            .iter_rows()
            .flat_map(|h| v.iter_rows().map(move |v| product(v, h)));
        let vh = Matrix::from_vec(5, vh.collect());
        let off = |u: &Matrix<f64>| {
            let got = vh
                .iter_rows()
                .flat_map(|vh| u.iter_rows().map(move |u| product(u, vh)));
            got.zip(delta.as_slice())
                .map(|(got, want)| (got - want).abs())
                .fold(0.0, f64::max)
        };
        assert!(off(&for_products(&vh, &delta).unwrap()) < 1e-14);
        assert!(off(&down.u) > 1e-6);
    }
}
