//! Merges that the tokenizer library would panic at: it makes room for the longest token, and no merge may make a longer one.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What of tokenizer.json is looked at, without being kept.
#[derive(Deserialize)]
struct File {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: Longest,
    merges: Merges,
    continuing_subword_prefix: Option<String>,
}

/// Bytes of the longest token.
struct Longest(usize);

/// Bytes of what is merged.
#[derive(Default)]
struct Merges {
    /// Of both sides together, at most.
    longest: usize,
    /// Of the right side, at least.
    shortest_right: Option<usize>,
}

/// Bytes of a text.
struct Bytes(usize);

/// Bytes of both sides of a merge.
struct Sides([usize; 2]);

/// Says what is wrong with the merges; what is no tokenizer at all is left to the library to refuse.
pub(super) fn check(json: &[u8]) -> Result<(), &'static str> {
    let Ok(File { model }) = serde_json::from_slice(json) else {
        return Ok(());
    };
    let prefix = model
        .continuing_subword_prefix
        .map_or(0, |prefix| prefix.len());
    let Merges {
        longest,
        shortest_right,
    } = model.merges;
    if shortest_right.is_some_and(|bytes| bytes < prefix) {
        Err("one of its merges lacks the continuing_subword_prefix")
    } else if longest.saturating_sub(prefix) > model.vocab.0 {
        Err("one of its merges makes a token that is not in its vocabulary")
    } else {
        Ok(())
    }
}

/// Visits what the type stands for.
struct Of<T>(std::marker::PhantomData<T>);

macro_rules! visited {
    ($type:ty, $ask:ident, $expected:literal, $($visit:tt)*) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                from.$ask(Of::<Self>(std::marker::PhantomData))
            }
        }

        impl<'de> Visitor<'de> for Of<$type> {
            type Value = $type;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($expected)
            }

            $($visit)*
        }
    };
}

visited! { Longest, deserialize_map, "ids by token",
    fn visit_map<A: MapAccess<'de>>(self, mut tokens: A) -> Result<Longest, A::Error> {
        let mut longest = 0;
        while let Some((Bytes(bytes), IgnoredAny)) = tokens.next_entry()? {
            longest = longest.max(bytes);
        }
        Ok(Longest(longest))
    }
}

visited! { Merges, deserialize_seq, "a list of merges",
    fn visit_seq<A: SeqAccess<'de>>(self, mut merges: A) -> Result<Merges, A::Error> {
        let mut found = Merges::default();
        while let Some(Sides([left, right])) = merges.next_element()? {
            found.longest = found.longest.max(left + right);
            found.shortest_right = Some(found.shortest_right.map_or(right, |least| least.min(right)));
        }
        Ok(found)
    }
}

visited! { Bytes, deserialize_str, "a text",
    fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
        Ok(Bytes(text.len()))
    }
}

visited! { Sides, deserialize_any, "two tokens, or both with a space between",
    fn visit_str<E: Error>(self, both: &str) -> Result<Sides, E> {
        let (left, right) = both.split_once(' ').unwrap_or_default();
        Ok(Sides([left.len(), right.len()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sides: A) -> Result<Sides, A::Error> {
        let mut side = || {
            let side = sides.next_element()?;
            side.map(|Bytes(bytes)| bytes).ok_or_else(|| A::Error::invalid_length(0, &self))
        };
        let both = [side()?, side()?];
        Ok(Sides(both))
    }
}
