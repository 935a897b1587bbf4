//! Names of a recording that are not compared, and what they may have been meant to be.

use serde::Serialize;

use super::names::{Names, UNCLEAR};
use super::pattern::Pattern;

/// A tensor of a recording that is not compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Aside {
    /// What the recording calls it.
    pub name: String,
    /// Why.
    pub reason: String,
    /// The known name that is nearest to an unknown one.
    pub nearest: Option<String>,
    /// Whether another tensor of the same point is compared in its place.
    pub spare: bool,
}

impl Aside {
    /// A name that means nothing in a model.
    pub(super) fn unknown(name: String, names: &Names) -> Self {
        let (reason, nearest) = match why_not(&name, names) {
            Some(reason) => (reason, None),
            None => ("its name is not known", nearest(&name, names)),
        };
        Self {
            name,
            reason: reason.into(),
            nearest,
            spare: false,
        }
    }

    /// A tensor of a point that another one is of more directly, or as directly and before it.
    pub(super) fn spare(name: String, taken: &str) -> Self {
        Self {
            reason: format!("it is the same point as {taken}, which is compared"),
            name,
            nearest: None,
            spare: true,
        }
    }

    /// A tensor that would be of a point if it had its shape.
    pub(super) fn misfit(name: String, shape: &[usize], point: &str, expected: &str) -> Self {
        Self {
            reason: format!("it is {shape:?}, and {point} would be {expected}"),
            name,
            nearest: None,
            spare: false,
        }
    }
}

/// Why a name that is near to a known one is none.
fn why_not(name: &str, names: &Names) -> Option<&'static str> {
    let mut unclear = UNCLEAR.iter();
    if let Some((_, reason)) = unclear.find(|(form, _)| Pattern::new(form).matches(name).is_some())
    {
        return Some(reason);
    }
    let (module, further) = name.rsplit_once('.')?;
    let is_further = further.parse::<usize>().is_ok() && names.recognise(module).is_some();
    is_further.then_some("it is a further output of its module, which no point here is")
}

/// The known name that is nearest to `name`: with the most whole parts at its end in common, or with few letters that differ.
fn nearest(name: &str, names: &Names) -> Option<String> {
    let (pattern, layer) = with_layer_left_out(name);
    let known = names.patterns();
    let known: Vec<_> = known
        .filter(|known| layer.is_some() || !Pattern::new(known).has_layer())
        .collect();
    let in_common = known.iter().map(|known| parts_in_common(known, &pattern));
    let most = in_common.max().filter(|&parts| parts > 0);
    let near = known.iter().filter_map(|known| {
        let letters = letters_apart(known, &pattern);
        let near = match most {
            Some(most) => parts_in_common(known, &pattern) == most,
            None => 3 * letters <= pattern.chars().count(),
        };
        near.then_some((letters, known))
    });
    let (_, nearest) = near.min_by_key(|(letters, _)| *letters)?;
    Some(Pattern::new(nearest).with(layer))
}

/// The name with `{i}` for its first number, and the number.
fn with_layer_left_out(name: &str) -> (String, Option<usize>) {
    let digits = |c: char| c.is_ascii_digit();
    let Some(start) = name.find(digits) else {
        return (name.to_owned(), None);
    };
    let rest = &name[start..];
    let end = start + rest.find(|c| !digits(c)).unwrap_or(rest.len());
    match name[start..end].parse() {
        Ok(layer) => (
            format!("{}{{i}}{}", &name[..start], &name[end..]),
            Some(layer),
        ),
        Err(_) => (name.to_owned(), None),
    }
}

/// How many parts between dots two names have in common at their ends, the layer's number not counted.
fn parts_in_common(a: &str, b: &str) -> usize {
    let pairs = a.rsplit('.').zip(b.rsplit('.'));
    pairs.take_while(|(a, b)| a == b && *a != "{i}").count()
}

/// The fewest letters to put in, take out or change that make one name the other.
fn letters_apart(a: &str, b: &str) -> usize {
    let b: Vec<_> = b.chars().collect();
    let mut row: Vec<_> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;

    fn names() -> Names {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/reference/tiny");
        Names::new(&Model::open(folder).unwrap())
    }

    #[test]
    fn the_nearest_name_is_the_one_that_was_meant() {
        let names = names();
        for (theirs, ours) in [
            (
                "model.layers.3.mlp.upproj",
                Some("model.layers.3.mlp.up_proj"),
            ),
            (
                "transformer.h.3.mlp.up_proj",
                Some("model.layers.3.mlp.up_proj"),
            ),
            ("my.model.layers.12", Some("model.layers.12")),
            (
                "model.layer.3.self_attn.q_norm",
                Some("model.layers.3.self_attn.q_norm"),
            ),
            (
                "model.layers.3.input_layer_norm",
                Some("model.layers.3.input_layernorm"),
            ),
            ("lm_heads", Some("lm_head")),
            ("blocks.3.hook_resid_post", Some("blocks.3.hook_resid_post")),
            ("something else entirely", None),
            ("rotary", None),
            ("", None),
        ] {
            assert_eq!(nearest(theirs, &names).as_deref(), ours, "{theirs}");
        }
    }

    #[test]
    fn what_could_be_two_things_is_said_to_be() {
        let names = names();
        for (name, reason) in [
            ("Qcur-3", "it is q before RoPE or after it"),
            (
                "model.layers.3.self_attn.1",
                "it is a further output of its module, which no point here is",
            ),
            (
                "blocks.3.ln1.hook_normalized",
                "it is before the norm's weight, which no point here is",
            ),
        ] {
            let aside = Aside::unknown(name.into(), &names);
            assert_eq!((aside.reason.as_str(), aside.nearest), (reason, None));
        }
    }

    #[test]
    fn letters() {
        assert_eq!(letters_apart("kitten", "sitting"), 3);
        assert_eq!(letters_apart("", "abc"), 3);
        assert_eq!(letters_apart("same", "same"), 0);
    }
}
