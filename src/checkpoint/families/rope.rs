//! The rotary parameters of families whose layers all rotate alike, as transformers' `convert_rope_params_to_dict`
//! combines `rope_scaling`, `rope_parameters` and `rope_theta`.

use std::ops::RangeInclusive;

use super::super::config::POSITIONS;
use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::{Rope, RopeForm, RopePairing, RopeScaling};
use super::shape::Sizes;

/// Bases that keep every angle finite.
pub(super) const THETA: RangeInclusive<f64> = 1e-15..=1e15;
pub(super) const FACTOR: RangeInclusive<f64> = 1e-6..=1e6;

/// What a family says where its config does not.
pub(super) struct RopeDefaults {
    pub(super) theta: f64,
    /// The share of a head that is rotated, unless the config says another one.
    pub(super) partial: Option<f64>,
}

/// The rotation of heads, in halves.
pub(super) fn read(
    fields: &Fields<'_>,
    defaults: &RopeDefaults,
    sizes: &Sizes,
) -> Result<RopeForm> {
    const PLACES: [(&str, &str); 2] = [
        ("rope_scaling", "rope_scaling."),
        ("rope_parameters", "rope_parameters."),
    ];
    for (name, prefix) in PLACES {
        if let Some(map) = fields.object(name)?
            && !map.is_empty()
        {
            let own = fields.inner(prefix, map);
            return from_object(fields, &own, defaults, sizes);
        }
    }
    let theta = fields.number("rope_theta", THETA)?;
    Ok(RopeForm {
        rope: Rope::linear(theta.unwrap_or(defaults.theta), 1.0),
        dims: dims(fields, fields, defaults, sizes.head_dim)?,
        pairing: RopePairing::Halves,
        rounded_once: false,
    })
}

fn from_object(
    fields: &Fields<'_>,
    own: &Fields<'_>,
    defaults: &RopeDefaults,
    sizes: &Sizes,
) -> Result<RopeForm> {
    let theta = match own.has("rope_theta") {
        true => own.number("rope_theta", THETA)?,
        false => fields.number("rope_theta", THETA)?,
    };
    Ok(RopeForm {
        rope: Rope {
            theta: theta.unwrap_or(defaults.theta),
            scaling: scaling(fields, own, sizes.positions)?,
        },
        dims: dims(fields, own, defaults, sizes.head_dim)?,
        pairing: RopePairing::Halves,
        rounded_once: false,
    })
}

/// How many numbers of a head are rotated.
fn dims(
    fields: &Fields<'_>,
    own: &Fields<'_>,
    defaults: &RopeDefaults,
    head_dim: usize,
) -> Result<usize> {
    const NAME: &str = "partial_rotary_factor";
    let place = if own.has(NAME) { own } else { fields };
    let said = place.number(NAME, 0.0..=1.0)?;
    let share = match (said, defaults.partial) {
        (Some(share), Some(_)) => share,
        // Families whose heads are rotated whole do not look at it.
        (_, partial) => partial.unwrap_or(1.0),
    };
    let dims = (head_dim as f64 * share) as usize;
    if dims == 0 || !dims.is_multiple_of(2) {
        let found = format!("{share} of a head of {head_dim}");
        return Err(place.value(NAME, found, "an even number of a head's numbers"));
    }
    Ok(dims)
}

fn scaling(fields: &Fields<'_>, own: &Fields<'_>, positions: usize) -> Result<RopeScaling> {
    let name = if own.has("rope_type") {
        "rope_type"
    } else {
        "type"
    };
    let kind = own.required(name, "a string", serde_json::Value::as_str)?;
    match kind.unwrap_or("default") {
        // Up to max_position_embeddings, beyond which no sequence here goes, `dynamic` changes nothing.
        "default" | "dynamic" | "mrope" => Ok(RopeScaling::Linear { factor: 1.0 }),
        "linear" => Ok(RopeScaling::Linear {
            factor: needed(own, "factor", FACTOR)?,
        }),
        "llama3" => llama3(own, original(fields, own, positions)?),
        "yarn" => yarn(own, original(fields, own, positions)?, positions as f64),
        other => Err(own.unsupported(name, other, "default, linear, dynamic, llama3 and yarn")),
    }
}

/// The length that the model was first trained for.
fn original(fields: &Fields<'_>, own: &Fields<'_>, positions: usize) -> Result<f64> {
    const NAME: &str = "original_max_position_embeddings";
    let place = if fields.has(NAME) { fields } else { own };
    Ok(place.size(NAME, positions, POSITIONS)? as f64)
}

fn llama3(own: &Fields<'_>, original: f64) -> Result<RopeScaling> {
    let factor = needed(own, "factor", FACTOR)?;
    let low = needed(own, "low_freq_factor", FACTOR)?;
    let high = needed(own, "high_freq_factor", FACTOR)?;
    if high <= low {
        let expected = format!("more than low_freq_factor, {low}");
        return Err(own.value("high_freq_factor", high, expected));
    }
    Ok(RopeScaling::Llama3 {
        factor,
        low,
        high,
        original,
    })
}

fn yarn(own: &Fields<'_>, original: f64, positions: f64) -> Result<RopeScaling> {
    let factor = match own.get("factor") {
        Some(_) => needed(own, "factor", FACTOR)?,
        None => positions / original,
    };
    let or = |name: &str, default: f64| -> Result<f64> {
        let said = own
            .get(name)
            .map(|_| own.number(name, FACTOR))
            .transpose()?;
        Ok(said.flatten().filter(|x| *x != 0.0).unwrap_or(default))
    };
    let mscale = |by: f64| {
        if factor <= 1.0 {
            1.0
        } else {
            0.1 * by * libm::log(factor) + 1.0
        }
    };
    let both = own.get("mscale").is_some() && own.get("mscale_all_dim").is_some();
    let attention = match own.get("attention_factor") {
        Some(_) => needed(own, "attention_factor", FACTOR)?,
        None if both => mscale(or("mscale", 1.0)?) / mscale(or("mscale_all_dim", 1.0)?),
        None => mscale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        fast: or("beta_fast", 32.0)?,
        slow: or("beta_slow", 1.0)?,
        truncate: own.flag("truncate", true)?,
        attention,
        original,
    })
}

/// A number that must be there.
fn needed(own: &Fields<'_>, name: &str, range: RangeInclusive<f64>) -> Result<f64> {
    match own.number(name, range)? {
        Some(x) => Ok(x),
        None => Err(own.value(name, "left out", "a number")),
    }
}
