//! The numbers that fuzz targets feed to the solvers.

use arbitrary::{Arbitrary, Unstructured};

/// Numbers of every kind: zeros of both signs, infinities, denormals, and any size between.
pub fn number(u: &mut Unstructured<'_>) -> arbitrary::Result<f64> {
    Ok(match u.arbitrary::<u8>()? {
        0..=15 => 0.0,
        16..=19 => -0.0,
        20 => f64::INFINITY,
        21 => f64::NEG_INFINITY,
        22 => f64::NAN,
        23..=30 => f64::from_bits(u.arbitrary::<u64>()? >> 12),
        31..=60 => f64::from(u.arbitrary::<i8>()?) * 2f64.powi(u.arbitrary::<i8>()?.into()),
        61..=70 => f64::arbitrary(u)?,
        _ => f64::from(u.arbitrary::<i16>()?) / 8192.0,
    })
}
