//! Names with a layer in them.

/// A name in which `{i}` may stand for a layer.
#[derive(Clone, Debug)]
pub(super) struct Pattern<'a> {
    before: &'a str,
    /// What follows `{i}`, where there is one.
    after: Option<&'a str>,
}

impl<'a> Pattern<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        match text.split_once("{i}") {
            Some((before, after)) => Self {
                before,
                after: Some(after),
            },
            None => Self {
                before: text,
                after: None,
            },
        }
    }

    /// Whether there is an `{i}`.
    pub(super) fn has_layer(&self) -> bool {
        self.after.is_some()
    }

    /// Whether `name` is of this form, and of which layer.
    pub(super) fn matches(&self, name: &str) -> Option<Option<usize>> {
        let Some(after) = self.after else {
            return (name == self.before).then_some(None);
        };
        let layer = name.strip_prefix(self.before)?.strip_suffix(after)?;
        parse_layer(layer).map(Some)
    }

    /// The name with a layer.
    pub(super) fn with(&self, layer: Option<usize>) -> String {
        match (self.after, layer) {
            (Some(after), Some(layer)) => format!("{}{layer}{after}", self.before),
            _ => self.before.into(),
        }
    }
}

/// A layer's number as every engine writes it: digits without a sign or zeros in front.
pub(super) fn parse_layer(text: &str) -> Option<usize> {
    let layer: usize = text.parse().ok()?;
    (layer.to_string() == text).then_some(layer)
}
