//! From a form to a block: which parts it has and of what sizes, whatever their numbers are.

use super::parts::{Attention, Projections};
use super::rope::rotation;
use super::{Block, Experts, Inner, Linear, Maps, Norm, Outer};
use crate::checkpoint::form::{
    AttentionForm, BlockForm, ExpertsForm, InnerForm, LinearForm, MapsForm, NormForm, NormWidth,
    OuterForm, ProjectionsForm,
};

/// Where the numbers of a block come from: the tensors of a checkpoint, or chance.
pub(crate) trait Weights {
    /// Why there are none.
    type Error;

    /// A linear map `[outputs, inputs]`.
    fn linear(
        &mut self,
        form: &LinearForm,
        outputs: usize,
        inputs: usize,
    ) -> Result<Linear, Self::Error>;

    /// A norm over `length` numbers.
    fn norm(&mut self, form: &NormForm, length: usize) -> Result<Norm, Self::Error>;
}

impl Block {
    /// A block of a form, for a residual stream of `hidden` numbers.
    pub(crate) fn build<W: Weights>(
        form: &BlockForm,
        hidden: usize,
        weights: &mut W,
    ) -> Result<Self, W::Error> {
        let mut builder = Builder { hidden, weights };
        Ok(Self {
            attention: builder.attention(&form.attention)?,
            inner: builder.inner(&form.inner)?,
            outer: builder.outer(&form.outer, &form.inner)?,
            sum: form.sum,
        })
    }
}

struct Builder<'a, W> {
    hidden: usize,
    weights: &'a mut W,
}

impl<W: Weights> Builder<'_, W> {
    fn attention(&mut self, form: &AttentionForm) -> Result<Attention, W::Error> {
        let hidden = self.hidden;
        let [queries, keys] = [form.heads, form.kv_heads].map(|heads| heads * form.head_dim);
        let projections = match &form.projections {
            ProjectionsForm::Separate([q, k, v]) => Projections::Separate([
                self.weights.linear(q, queries, hidden)?,
                self.weights.linear(k, keys, hidden)?,
                self.weights.linear(v, keys, hidden)?,
            ]),
            ProjectionsForm::Fused(map, order) => {
                let rows = queries + 2 * keys;
                Projections::Fused(self.weights.linear(map, rows, hidden)?, *order)
            }
        };
        let lengths = match form.qk_norm_width {
            NormWidth::Head => [form.head_dim; 2],
            NormWidth::AllHeads => [queries, keys],
        };
        let qk_norms = match &form.qk_norms {
            None => None,
            Some([q, k]) => Some([
                self.weights.norm(q, lengths[0])?,
                self.weights.norm(k, lengths[1])?,
            ]),
        };
        Ok(Attention {
            norm: self.optional_norm(&form.norm)?,
            projections,
            qk_norms,
            rotation: form.rope.as_ref().map(rotation),
            out: self.weights.linear(&form.out, hidden, queries)?,
            post_norm: self.optional_norm(&form.post_norm)?,
            form: form.clone(),
        })
    }

    fn inner(&mut self, form: &InnerForm) -> Result<Inner, W::Error> {
        let (hidden, width) = (self.hidden, form.width);
        let maps = match &form.maps {
            MapsForm::Gated { gate, up } => Maps::Gated {
                gate: self.weights.linear(gate, width, hidden)?,
                up: self.weights.linear(up, width, hidden)?,
            },
            MapsForm::Fused(map) => Maps::Fused(self.weights.linear(map, 2 * width, hidden)?),
            MapsForm::Plain(map) => Maps::Plain(self.weights.linear(map, width, hidden)?),
            MapsForm::Experts(experts) => Maps::Experts(self.experts(experts, width)?),
        };
        Ok(Inner {
            norm: self.optional_norm(&form.norm)?,
            module: form.module,
            maps,
            activation: form.activation,
        })
    }

    fn experts(&mut self, form: &ExpertsForm, width: usize) -> Result<Experts, W::Error> {
        let (hidden, count) = (self.hidden, form.experts.len());
        let router = self.weights.linear(&form.router, count, hidden)?;
        let maps = form.experts.iter().map(|[gate, up]| {
            Ok([
                self.weights.linear(gate, width, hidden)?,
                self.weights.linear(up, width, hidden)?,
            ])
        });
        Ok(Experts {
            router,
            maps: maps.collect::<Result<_, _>>()?,
            top_k: form.top_k,
            renormalised: form.renormalised,
        })
    }

    fn outer(&mut self, form: &OuterForm, inner: &InnerForm) -> Result<Outer, W::Error> {
        let down = form.down.iter();
        let down = down.map(|map| self.weights.linear(map, self.hidden, inner.width));
        Ok(Outer {
            down: down.collect::<Result<_, _>>()?,
            post_norm: self.optional_norm(&form.post_norm)?,
            module: inner.module,
        })
    }

    /// A norm over the residual stream, where there is one.
    fn optional_norm(&mut self, form: &Option<NormForm>) -> Result<Option<Norm>, W::Error> {
        let norm = form.as_ref();
        norm.map(|form| self.weights.norm(form, self.hidden))
            .transpose()
    }
}
