//! Queries, keys and values on a device: through their norms and their rotation, and attention itself.

use super::DevicePass;
use crate::checkpoint::form::RopePairing;
use crate::cuda::{
    Angles, DeviceRows, HeadNorms, HeadRotation, Memory, Preparation, Result, RowNormKind,
};
use crate::kernels::Rotation;
use crate::model::Norm;
use crate::model::parts::Attention;
use crate::model::pass::changes_of;
use crate::tensor::Element;

impl<E: Element> DevicePass<'_, '_, '_, '_, E> {
    /// cos and sin of the positions of all rows, under a rotation; unrounded where the outcome is what is rounded.
    fn angles(&mut self, rotation: &Rotation, rounded_once: bool) -> Result<Angles> {
        if let Some((_, angles)) = self.angles.iter().find(|(known, _)| known == rotation) {
            return Ok(angles.clone());
        }
        let (mut cos, mut sin): (Vec<E::Acc>, Vec<E::Acc>) = (Vec::new(), Vec::new());
        let sequences = self.sequences.iter();
        let positions = sequences.flat_map(|sequence| sequence.positions).copied();
        let positions: Vec<_> = positions.collect();
        let rows = positions.len();
        let rounded = |x: &f64| {
            if rounded_once {
                E::Acc::from_f64(*x)
            } else {
                E::from_f64(*x).acc()
            }
        };
        for (c, s) in self.run.cos_sin(rotation, &positions) {
            cos.extend(c.iter().map(rounded));
            sin.extend(s.iter().map(rounded));
        }
        let angles = Angles {
            memory: Memory::of(self.on.device(), &[cos, sin].concat())?,
            rows,
            half: rotation.dims() / 2,
            skip: 0,
        };
        self.angles.push((rotation.clone(), angles.clone()));
        Ok(angles)
    }

    /// How heads are rotated, where they are.
    pub(super) fn rotation(&mut self, attention: &Attention) -> Result<Option<HeadRotation>> {
        let Some((rotation, form)) = attention.rotation.as_ref().zip(attention.form.rope) else {
            return Ok(None);
        };
        Ok(Some(HeadRotation {
            angles: self.angles(rotation, form.rounded_once)?,
            neighbours: form.pairing != RopePairing::Halves,
            round_once: form.rounded_once,
        }))
    }

    /// What one kernel does to the heads of q and k. `None` where operations have to go one by one: somebody wants to see what is
    /// between, a patch changes a norm, or the norms are others than an RMSNorm of each head.
    pub(super) fn preparation(&mut self, attention: &Attention) -> Result<Option<Preparation>> {
        let points = ["q_rope", "k_rope"].map(|name| attention.point(name));
        let norms = attention.qk_norms.as_ref();
        let names = norms.iter().flat_map(|norms| norms.iter().map(Norm::name));
        let mut names = names.chain(points.iter().map(String::as_str));
        let has_to_be_seen =
            |name| self.run.records(name) || !changes_of(&self.changes, name, "weight").is_empty();
        if names.any(has_to_be_seen) {
            return Ok(None);
        }
        let norms = match norms {
            None => None,
            Some(norms) => match self.head_norms(attention, norms)? {
                None => return Ok(None),
                norms => norms,
            },
        };
        let rotation = self.rotation(attention)?;
        Ok(Some(Preparation { norms, rotation }))
    }

    /// The norms of q and k, where they are RMSNorms of a head and differ in their scale alone.
    fn head_norms(&self, attention: &Attention, norms: &[Norm; 2]) -> Result<Option<HeadNorms>> {
        let [q, k] = [self.row_norm(&norms[0])?, self.row_norm(&norms[1])?];
        let of_heads = norms
            .iter()
            .all(|norm| norm.weight.cols() == attention.form.head_dim);
        let alike = q.kind == k.kind && q.eps == k.eps;
        let together = of_heads && alike && q.kind != RowNormKind::Layer;
        Ok(together.then(|| HeadNorms {
            kind: q.kind,
            eps: q.eps,
            scales: [q.scale, k.scale],
            last: attention.form.norm_after_rope,
        }))
    }

    /// Attention of every sequence of the batch; q and k may still have to go through a `preparation`.
    pub(super) fn attend_sequences(
        &mut self,
        attention: &Attention,
        [q, k, v]: [&DeviceRows<E>; 3],
        preparation: Option<&Preparation>,
    ) -> DeviceRows<E> {
        self.rows([q.rows(), q.cols()], |pass, mixed| {
            let layer = pass.run.layer;
            for sequence in pass.sequences.iter_mut() {
                let rows = sequence.rows.clone();
                let qkv = [q, k, v].map(|x| x.view(rows.clone()));
                let preparation = preparation.map(|preparation| preparation.of_rows(rows.start));
                let Some(cache) = sequence.cache.device_mut() else {
                    continue;
                };
                let mixed = mixed.view(rows);
                let prepared = (qkv.each_ref(), preparation.as_ref());
                cache.attend(layer, &attention.form, sequence.positions, prepared, &mixed)?;
            }
            Ok(())
        })
    }
}
