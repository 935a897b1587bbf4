//! Sums of products without rounding, to hold rounded ones against.

/// 2^`BIAS` times the number is a whole one: no product of two f64 has a smaller part.
const BIAS: usize = 2148;

/// Digits of 32 bits: those of the largest product, and room for many of them.
const DIGITS: usize = (2 * BIAS + 128) / 32;

/// A sum of products of finite f64. Digits may be of either sign and longer than 32 bits.
#[derive(Clone)]
pub struct Exact([i128; DIGITS]);

impl Exact {
    pub fn zero() -> Self {
        Self([0; DIGITS])
    }

    /// Adds a · b.
    pub fn add(&mut self, a: f64, b: f64) {
        let ((a, e), (b, f)) = (parts(a), parts(b));
        let (place, mut digits) = (e + f, a.unsigned_abs() * b.unsigned_abs());
        for digit in &mut self.0[place / 32..] {
            let low = ((digits & 0xffff_ffff) << (place % 32)) as i128;
            *digit += if (a < 0) == (b < 0) { low } else { -low };
            digits >>= 32;
            if digits == 0 {
                break;
            }
        }
    }

    /// Adds `other`, whose digits are of 32 bits, `times` times.
    fn add_times(&mut self, times: i128, other: &Self) {
        for (digit, other) in self.0.iter_mut().zip(&other.0) {
            *digit += times * other;
        }
    }

    /// Makes every digit but the last one of 32 bits, not negative.
    fn carry(&mut self) {
        let mut carry = 0;
        for digit in &mut self.0[..DIGITS - 1] {
            *digit += carry;
            carry = *digit >> 32;
            *digit &= 0xffff_ffff;
        }
        self.0[DIGITS - 1] += carry;
    }

    fn is_negative(&mut self) -> bool {
        self.carry();
        self.0[DIGITS - 1] < 0
    }

    /// The size of the sum.
    fn abs(mut self) -> Self {
        if self.is_negative() {
            for digit in &mut self.0 {
                *digit = -*digit;
            }
            self.carry();
        }
        self
    }
}

/// A finite number as a whole one and its place: x · 2^(`BIAS` / 2) is the former times 2 to the latter.
fn parts(x: f64) -> (i128, usize) {
    let (exponent, fraction) = (x.to_bits() >> 52 & 0x7ff, x.to_bits() & ((1 << 52) - 1));
    assert!(exponent < 0x7ff, "{x} has no sum");
    let whole = i128::from(if exponent == 0 {
        fraction
    } else {
        fraction | 1 << 52
    });
    let whole = if x.is_sign_negative() { -whole } else { whole };
    (whole, exponent.max(1) as usize - 1)
}

/// What a computed sum may be off by.
#[derive(Clone, Copy, Debug)]
pub struct Roundings {
    /// Roundings that a term goes through: k of γ_k.
    pub each: u32,
    /// u of the type: one over a power of two.
    pub unit_roundoff: f64,
    /// How often a result can be too small for the type.
    pub underflows: usize,
    /// Twice what such a result can be off by: the distance of the type's smallest numbers.
    pub grid: f64,
}

/// A sum that was computed, and everything that it should be the sum of.
pub struct Sum {
    exact: Exact,
    sizes: Exact,
    total: f64,
}

impl Sum {
    pub fn new() -> Self {
        Self {
            exact: Exact::zero(),
            sizes: Exact::zero(),
            total: 0.0,
        }
    }

    /// Adds a · b.
    pub fn add(&mut self, a: f64, b: f64) {
        self.exact.add(a, b);
        self.sizes.add(a.abs(), b.abs());
        self.total += (a * b).abs();
    }

    /// About Σ|a b|: whether a sum can be too large for a type.
    pub fn size(&self) -> f64 {
        self.total
    }

    /// Whether `got` is as near as the roundings allow: |got − Σ| ≤ γ_k Σ|a b| + (1 + γ_k) · what underflows lose.
    /// With γ_k = k u/(1 − k u) this is (1 − k u) |got − Σ| ≤ k u Σ|a b| + what underflows lose, and here every
    /// number of it is exact.
    pub fn allows(&self, got: f64, roundings: Roundings) -> bool {
        let Roundings {
            each,
            unit_roundoff,
            underflows,
            grid,
        } = roundings;
        let (each, one) = (i128::from(each), (1.0 / unit_roundoff) as i128);
        let mut off = self.exact.clone();
        off.add(got, -1.0);
        let mut sizes = self.sizes.clone();
        sizes.carry();
        let mut slack = Exact::zero();
        slack.add(underflows as f64 * (one / 2) as f64, grid);
        slack.add_times(each, &sizes);
        slack.add_times(each - one, &off.abs());
        !slack.is_negative()
    }
}
