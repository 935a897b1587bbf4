//! The rotary parameters in a config, in both spellings, as `Gemma3TextConfig.convert_rope_params_to_dict` combines them.

use serde_json::Value;

use super::super::error::Result;
use super::super::fields::Fields;
use super::super::form::Rope;
use super::rope::{FACTOR, THETA};

/// Where the rotary parameters of one kind of layer are found.
pub(super) struct RopeSource {
    /// Key in the new `rope_parameters`.
    kind: &'static str,
    /// Key of the base in the old spelling.
    theta: &'static str,
    /// The base where neither is there.
    default_theta: f64,
    /// Whether the old `rope_scaling` is about these layers.
    scaled: bool,
}

pub(super) const FULL: RopeSource = RopeSource {
    kind: "full_attention",
    theta: "rope_theta",
    default_theta: 1e6,
    scaled: true,
};

pub(super) const SLIDING: RopeSource = RopeSource {
    kind: "sliding_attention",
    theta: "rope_local_base_freq",
    default_theta: 1e4,
    scaled: false,
};

impl RopeSource {
    /// The rotary embedding of layers of this kind; where no layer is `in_use`, its parameters are not looked at.
    pub(super) fn read(&self, text: &Fields<'_>, in_use: bool) -> Result<Rope> {
        let path = text.full("rope_parameters.");
        let nested = text.object("rope_parameters")?;
        let nested = nested.map(|map| text.inner(&path, map));
        let path = text.full(&format!("rope_parameters.{}.", self.kind));
        let own = nested.map(|nested| nested.object(self.kind));
        let own = own.transpose()?.flatten().map(|map| text.inner(&path, map));
        let path = text.full("rope_scaling.");
        let scaling = if self.scaled {
            text.object("rope_scaling")?
        } else {
            None
        };
        let scaling = scaling.map(|map| text.inner(&path, map));
        if let (Some(nested), Some(_), None) = (nested, scaling, own) {
            let expected = "an object, which rope_scaling changes";
            return Err(nested.value(self.kind, "left out", expected));
        }
        let levels = Levels {
            scaling,
            own,
            text: *text,
            old_type: nested.is_some(),
        };
        if in_use {
            levels.rope(self)
        } else {
            Ok(self.default())
        }
    }

    fn default(&self) -> Rope {
        Rope::linear(self.default_theta, 1.0)
    }
}

/// The objects that parameters are looked for in.
struct Levels<'a> {
    /// `rope_scaling`, which comes first.
    scaling: Option<Fields<'a>>,
    /// `rope_parameters` of the kind.
    own: Option<Fields<'a>>,
    text: Fields<'a>,
    /// Whether `type`, the old name of `rope_type`, counts. Without `rope_parameters` it does not: transformers then
    /// begins with a `rope_type`.
    old_type: bool,
}

impl<'a> Levels<'a> {
    fn rope(&self, source: &RopeSource) -> Result<Rope> {
        let default = source.default();
        let theta = match self.with("rope_theta") {
            Some(fields) => fields.number("rope_theta", THETA)?,
            None => self.text.number(source.theta, THETA)?,
        };
        Ok(Rope::linear(theta.unwrap_or(default.theta), self.factor()?))
    }

    /// The first level inside the text model's that says `name`.
    fn with(&self, name: &str) -> Option<Fields<'a>> {
        let levels = [self.scaling, self.own].into_iter().flatten();
        levels.into_iter().find(|fields| fields.has(name))
    }

    /// What positions are divided by; 1 where they are not scaled.
    fn factor(&self) -> Result<f64> {
        let old = self.old_type.then_some("type");
        let named = ["rope_type"].into_iter().chain(old);
        let Some((name, fields)) = named
            .filter_map(|name| Some((name, self.with(name)?)))
            .next()
        else {
            return Ok(1.0);
        };
        match fields.required(name, "a string", Value::as_str)? {
            None | Some("default") => Ok(1.0),
            Some("linear") => {
                self.refuse_partial()?;
                let Some(fields) = self.with("factor") else {
                    return Err(fields.value("factor", "left out", "a number"));
                };
                Ok(fields.number("factor", FACTOR)?.unwrap_or(1.0))
            }
            Some(other) => Err(fields.unsupported(name, other, "default and linear")),
        }
    }

    /// Refuses angles for a part of each head.
    fn refuse_partial(&self) -> Result<()> {
        const NAME: &str = "partial_rotary_factor";
        // Null counts as left out at the outer level only.
        let outer = self.text.get(NAME).map(|_| self.text);
        let Some(fields) = self.with(NAME).or(outer) else {
            return Ok(());
        };
        match fields.number(NAME, f64::MIN..=f64::MAX)? {
            Some(factor) if factor != 1.0 => {
                Err(fields.unsupported(NAME, factor, "whole heads (1)"))
            }
            _ => Ok(()),
        }
    }
}
