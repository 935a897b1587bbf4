//! What the contextual pass gives for a span.

use crate::model::{Model, Recorder, Session, Tokens};
use crate::patch::Result;
use crate::tensor::{Element, Matrix};

/// The contextual pass's states of the span at the layers that are changed, `[N, hidden]` each.
pub(super) struct Contextual {
    first: usize,
    span: usize,
    /// The path of the layers, the module that gives d where a norm is behind it, and the head's.
    names: [String; 3],
    /// d_C.
    pub(super) d: Vec<Matrix<f64>>,
    /// T(C, x).
    pub(super) targets: Vec<Matrix<f64>>,
    /// `[N, vocab]`, until it is through.
    logits: Vec<f64>,
}

impl Recorder for Contextual {
    fn wants(&self, name: &str) -> bool {
        self.place(name).is_some() || name == self.names[2]
    }

    fn record(&mut self, name: &str, rows: &Matrix<f64>) {
        if name == self.names[2] {
            self.logits.extend(rows.as_slice());
        }
        let span = self.span;
        if let Some((layer, is_d)) = self.place(name) {
            let all = if is_d { &mut self.d } else { &mut self.targets };
            let seen = std::mem::replace(&mut all[layer], Matrix::zeros(0, 1));
            // The last rows of all there have been.
            let mut numbers = seen.into_vec();
            numbers.extend(rows.as_slice());
            let extra = numbers.len().saturating_sub(span * rows.cols());
            numbers.drain(..extra);
            all[layer] = Matrix::from_vec(rows.cols(), numbers);
        }
    }
}

impl Contextual {
    /// The states of the last `span` of `tokens`, and their logits.
    pub(super) fn new<E: Element>(
        model: &Model,
        tokens: Tokens<'_, E>,
        span: usize,
        first: usize,
    ) -> Result<(Self, Matrix<E>)> {
        let layers = model.layers().len() - first;
        let none = vec![Matrix::zeros(0, 1); layers];
        let mut contextual = Self {
            first,
            span,
            names: names(model),
            d: none.clone(),
            targets: none,
            logits: Vec::new(),
        };
        let mut session = Session::<E>::new(model);
        session.forward_recorded(tokens, span, &mut contextual)?;
        let logits = contextual.logits.drain(..).map(E::from_f64).collect();
        let logits = Matrix::from_vec(model.config().vocab_size, logits);
        Ok((contextual, logits))
    }

    /// Which of the changed layers a recorded name belongs to, and whether it is its d or its output.
    fn place(&self, name: &str) -> Option<(usize, bool)> {
        let [layers, d, _] = &self.names;
        let name = name.strip_prefix(layers)?;
        let (layer, is_d) = match name.strip_suffix(d) {
            Some(layer) if !d.is_empty() => (layer, true),
            _ => (name, false),
        };
        let layer: usize = layer.parse().ok()?;
        Some((layer.checked_sub(self.first)?, is_d))
    }
}

/// The names that [`Contextual`] looks for.
fn names(model: &Model) -> [String; 3] {
    let decoder = model.decoder();
    let outer = &model.layers()[0].outer;
    let d = match (outer.post_norm(), outer.down()) {
        (Some(_), [down]) => format!(".{}", down.name()),
        _ => String::new(),
    };
    let head = decoder.head.name().to_owned();
    [format!("{}.", decoder.form.layers), d, head]
}
