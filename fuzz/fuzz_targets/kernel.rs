//! One operation on numbers of every kind: the same bits at every level, and sums within their bounds. Shared by the
//! fuzz target and `tests/kernels.rs`.

use context_patch::kernels::activation::gelu_tanh;
use context_patch::kernels::{
    Level, PackedKeys, Rotation, Rows, dot, matmul, rms_norm, rotate, scores, softmax,
    weighted_sums,
};
use context_patch::tensor::{Dtype, Element, Float, Matrix, Storage, Tensor};
use half::bf16;

use crate::exact::{Roundings, Sum};
use crate::operands::{Operands, stored};
use crate::pools::on_threads;

/// What is computed of which numbers. Its `Debug` output is a test case that can be pasted.
#[derive(Clone, Debug)]
pub struct Case {
    pub op: Op,
    pub dtype: Dtype,
    pub threads: usize,
    pub operands: Operands,
}

#[derive(Clone, Copy, Debug)]
pub enum Op {
    Matmul {
        tokens: usize,
        rows: usize,
        cols: usize,
        weights: Weights,
    },
    Dot {
        length: usize,
    },
    /// Of so many vectors of this length.
    RmsNorm {
        vectors: usize,
        length: usize,
    },
    Softmax {
        length: usize,
    },
    GeluTanh {
        length: usize,
    },
    /// Rows of p that are longer by `unused` than there are keys.
    WeightedSums {
        rows: usize,
        keys: usize,
        unused: usize,
        width: usize,
    },
    /// Of queries with keys from panel `first` on, if there are so many.
    Scores {
        rows: usize,
        keys: usize,
        first: usize,
        head_dim: usize,
    },
    /// Of a head of twice `half` numbers.
    Rotate {
        half: usize,
        position: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Weights {
    Typed,
    /// So many bytes after an allocation, which is where a mapped file may put them.
    Stored(Storage, usize),
}

/// Exact sums of an operation that are worth their time.
const CHECKED: usize = 64;

impl Case {
    /// Does the operation at every level.
    pub fn check(&self) {
        on_threads(self.threads, || match self.dtype {
            Dtype::F64 => self.check_in::<f64>(),
            Dtype::F32 => self.check_in::<f32>(),
            Dtype::Bf16 => self.check_in::<bf16>(),
        });
    }

    fn check_in<E: Element>(&self) {
        match self.op {
            Op::Matmul {
                tokens,
                rows,
                cols,
                weights,
            } => self.matmul::<E>([tokens, rows, cols], weights),
            Op::Dot { length } => self.dot::<E>(length),
            Op::RmsNorm { vectors, length } => self.rms_norm::<E>(vectors, length),
            Op::Softmax { length } => self.softmax::<E>(length),
            Op::GeluTanh { length } => self.gelu_tanh::<E>(length),
            Op::WeightedSums {
                rows,
                keys,
                unused,
                width,
            } => self.weighted_sums::<E>(rows, keys, keys + unused, width),
            Op::Scores {
                rows,
                keys,
                first,
                head_dim,
            } => self.scores::<E>([rows, keys, head_dim], first),
            Op::Rotate { half, position } => self.rotate::<E>(half, position),
        }
    }

    fn matmul<E: Element>(&self, [tokens, rows, cols]: [usize; 3], weights: Weights) {
        let [x, w] = self.operands.slices::<E, 2>([tokens * cols, rows * cols]);
        let x = Matrix::from_vec(cols, x.to_vec());
        let stored = match weights {
            Weights::Typed => None,
            Weights::Stored(storage, start) => Some(stored(storage, start, cols, &w)),
        };
        let y = self.agree(|level| {
            let typed = Rows::Typed(&w, cols);
            let w = stored.as_ref().map_or(typed, Rows::Stored);
            matmul(level, &x, w).into_vec()
        });
        let w = stored.as_ref().map_or(w.to_vec(), Tensor::to_vec);
        for i in (0..y.len()).step_by(y.len().div_ceil(CHECKED)) {
            let (w, x) = (&w[i % rows * cols..][..cols], x.row(i / rows));
            self.is_product(w, x, y[i]);
            let alone = dot(Level::Scalar, w, x).to_f64();
            assert!(same(y[i], alone), "{i} of {self:?}");
        }
    }

    fn dot<E: Element>(&self, length: usize) {
        let [a, b] = self.operands.slices::<E, 2>([length; 2]);
        let y = self.agree(|level| vec![dot(level, &a, &b)]);
        self.is_product(&a, &b, y[0]);
    }

    fn rms_norm<E: Element>(&self, vectors: usize, length: usize) {
        let lengths = [vectors * length, vectors * length, length];
        let [u, out, scale] = self.operands.slices::<E, 3>(lengths);
        let scale = scale.accs();
        self.agree(|level| {
            let mut out = out.clone();
            rms_norm(level, &u, &scale, 1e-6, &mut out);
            out.to_vec()
        });
    }

    /// The probabilities' sum is 1: each goes through the roundings of its share of the sum and a division.
    fn softmax<E: Element>(&self, length: usize) {
        let [scores] = self.operands.slices::<E, 1>([length]);
        let scores = scores.accs();
        let p = self.agree(|level| {
            let mut p = scores.clone();
            softmax(level, &mut p);
            p.to_vec()
        });
        if scores.iter().all(|s| s.is_finite()) {
            let sum = sum_of(p.into_iter().map(|p| (p, 1.0)));
            let each = length.div_ceil(16) + 4;
            self.holds::<E::Acc>(sum, 1.0, each, length);
        }
    }

    fn gelu_tanh<E: Element>(&self, length: usize) {
        let [x] = self.operands.slices::<E, 1>([length]);
        self.agree(|level| {
            let mut x = x.to_vec();
            gelu_tanh(level, &mut x);
            x
        });
    }

    fn weighted_sums<E: Element>(&self, rows: usize, keys: usize, stride: usize, width: usize) {
        let lengths = [(rows - 1) * stride + keys, keys * width, rows * width];
        let [p, values, before] = self.operands.slices::<E, 3>(lengths);
        let (p, before) = (p.accs(), before.accs());
        let after = self.agree(|level| {
            let mut out = before.clone();
            weighted_sums(level, &p, stride, &values, &mut out, width);
            out.to_vec()
        });
        for i in (0..after.len()).step_by(after.len().div_ceil(CHECKED)) {
            let p = &p[i / width * stride..][..keys];
            let values = values.iter().skip(i % width).step_by(width);
            let terms = p.iter().zip(values).map(|(p, v)| (p.to_f64(), v.to_f64()));
            let sum = sum_of(terms.chain([(before[i].to_f64(), 1.0)]));
            self.holds::<E::Acc>(sum, after[i], keys, keys);
        }
    }

    /// Every score is its product, but for the sign of a zero.
    fn scores<E: Element>(&self, [rows, keys, head_dim]: [usize; 3], first: usize) {
        let lengths = [rows * head_dim, keys * head_dim];
        let [q, keys] = self.operands.slices::<E, 2>(lengths);
        let packed = PackedKeys::new(&keys, head_dim);
        let panels = lengths[1].div_ceil(PackedKeys::<E>::KEYS * head_dim);
        let panels = first.min(panels)..panels;
        let width = panels.len() * PackedKeys::<E>::KEYS;
        let got = self.agree(|level| {
            let mut out = vec![E::Acc::ZERO; rows * width];
            scores(level, &q, &packed, panels.clone(), &mut out);
            out
        });
        let keys = keys.chunks(head_dim);
        let keys: Vec<_> = keys.skip(panels.start * PackedKeys::<E>::KEYS).collect();
        for (q, got) in q.chunks(head_dim).zip(got.chunks(width.max(1))) {
            for (key, &got) in keys.iter().zip(got) {
                let alone = dot(Level::Scalar, key, q).to_f64();
                let equal = got == alone || got.is_nan() && alone.is_nan();
                assert!(equal, "{got:e}, not {alone:e} in {self:?}");
            }
        }
    }

    /// In bf16 the difference is rounded to f32 and then to bf16.
    fn rotate<E: Element>(&self, half: usize, position: usize) {
        let [head] = self.operands.slices::<E, 1>([2 * half]);
        let (cos, sin) = Rotation::new(2 * half, 10_000.0, 1.0).at(position);
        let rounded = |x: &[f64]| x.iter().map(|&x| E::from_f64(x)).collect::<Vec<E>>();
        let turn = (rounded(&cos), rounded(&sin));
        let turned = self.agree(|level| {
            let mut turned = head.clone();
            rotate(level, &mut turned, &turn);
            turned.to_vec()
        });
        let each = if E::DTYPE == Dtype::Bf16 { 3 } else { 2 };
        for i in 0..half {
            let [x, y, cos, sin] = [head[i], head[half + i], turn.0[i], turn.1[i]].map(E::to_f64);
            let first = sum_of([(x, cos), (-y, sin)].into_iter());
            let second = sum_of([(y, cos), (x, sin)].into_iter());
            self.holds::<E>(first, turned[i], each, each);
            self.holds::<E>(second, turned[half + i], each, each);
        }
    }

    /// What every level gives, widened. Which NaN it is may differ: the instructions choose among their operands'.
    fn agree<X: Element>(&self, result: impl Fn(Level) -> Vec<X>) -> Vec<f64> {
        let result = |level| -> Vec<f64> { result(level).into_iter().map(X::to_f64).collect() };
        let want = result(Level::Scalar);
        for level in Level::available() {
            let got = result(level);
            assert_eq!(got.len(), want.len());
            for (i, (&got, &want)) in got.iter().zip(&want).enumerate() {
                assert!(
                    same(got, want),
                    "{level}: {got:e}, not {want:e} at {i} of {self:?}"
                );
            }
        }
        want
    }

    /// `got` is the dot product within the roundings of a lane and the tree.
    fn is_product<E: Element>(&self, w: &[E], x: &[E], got: f64) {
        let terms = w.iter().zip(x).map(|(w, x)| (w.to_f64(), x.to_f64()));
        if E::DTYPE != Dtype::Bf16 {
            let each = w.len().div_ceil(16) + 4;
            return self.holds::<E::Acc>(sum_of(terms), got, each, w.len());
        }
        // Operands below the smallest normal number are zeros, and results below it are lost as a whole.
        let smallest = f64::from(f32::MIN_POSITIVE);
        let taken = |x: f64| if x.abs() < smallest { 0.0 } else { x };
        let sum = sum_of(terms.map(|(w, x)| (taken(w), taken(x))));
        let each = 2 * w.len().div_ceil(32) + 4;
        self.holds_on_grid::<f32>(sum, got, each, w.len(), 2.0 * smallest);
    }

    fn holds<X: Element>(&self, sum: Option<Sum>, got: f64, each: usize, underflows: usize) {
        self.holds_on_grid::<X>(sum, got, each, underflows, X::DTYPE.ulp(0.0));
    }

    /// `got`, of type `X`, is the sum, where that is finite and not too large for the type.
    fn holds_on_grid<X: Element>(
        &self,
        sum: Option<Sum>,
        got: f64,
        each: usize,
        underflows: usize,
        grid: f64,
    ) {
        let largest = match X::DTYPE {
            Dtype::F64 => f64::MAX,
            Dtype::F32 | Dtype::Bf16 => f32::MAX.into(),
        };
        let Some(sum) = sum.filter(|sum| sum.size() < largest / 2.0) else {
            return;
        };
        let roundings = Roundings {
            each: each as u32,
            unit_roundoff: X::DTYPE.unit_roundoff(),
            underflows,
            grid,
        };
        let fine = got.is_finite() && sum.allows(got, roundings);
        assert!(fine, "{got:e} with {roundings:?} in {self:?}");
    }
}

fn same(a: f64, b: f64) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// The sum of the products, or `None` where a number is not finite.
fn sum_of(products: impl Iterator<Item = (f64, f64)>) -> Option<Sum> {
    let mut sum = Sum::new();
    for (a, b) in products {
        if !a.is_finite() || !b.is_finite() {
            return None;
        }
        sum.add(a, b);
    }
    Some(sum)
}
