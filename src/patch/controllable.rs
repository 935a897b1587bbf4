//! How the parts of a block are controlled, by the lemmas.

use super::lemmas::{lemma_6, lemma_8, lemma_9, lemma_10, lemma_11};
use super::theorem_5::{InputControllable, OutputControllable};
use super::{LayerPatch, Precondition, TensorChange, wide};
use crate::model::{ForwardRun, Hidden, Inner, Maps, Ops, Outer, Pass};
use crate::tensor::{Element, Matrix};

/// By Lemma 6, or by Lemma 7 where z = N(v). Of experts only those that the contextual pass chooses are changed, and the
/// router, which then chooses them.
impl<E: Element> InputControllable<E> for Inner {
    fn delta(
        &self,
        run: &mut ForwardRun<'_>,
        z: &[E],
        z_ctx: &[E],
    ) -> Result<LayerPatch, Precondition> {
        let maps = match self.maps() {
            Maps::Experts(experts) => {
                let z_ctx = Matrix::from_slice(z_ctx.len(), z_ctx);
                let mut pass = Pass::<E>::of_rows(run, &[]);
                let [router] = pass.linear([&experts.router], &z_ctx);
                let active = pass.route(experts, &router).into_iter();
                let chosen = active.flat_map(|active| &experts.maps[active.expert]);
                std::iter::once(&experts.router).chain(chosen).collect()
            }
            _ => self.first_maps(),
        };
        let [z, z_ctx] = [z, z_ctx].map(|z| z.iter().map(|z| z.to_f64()).collect::<Vec<_>>());
        let delta_z: Vec<_> = z_ctx.iter().zip(&z).map(|(z_ctx, z)| z_ctx - z).collect();
        let changes = maps.into_iter().map(|map| {
            let delta = lemma_6(run.level, map.weight().into(), &z, &delta_z)?;
            Ok((weight(map.name()), TensorChange::LowRank(delta)))
        });
        changes.collect()
    }
}

/// By the scale of its post-norm (Lemma 10), else by its bias (Lemma 8), else [by its weights](ByWeight).
impl<E: Element> OutputControllable<E> for Outer {
    fn delta(
        &self,
        run: &mut ForwardRun<'_>,
        h: &Hidden<Matrix<E>>,
        delta_y: &[f64],
    ) -> Result<LayerPatch, Precondition> {
        if let Some(norm) = self.post_norm() {
            let d = self.project(&mut Pass::of_rows(run, &[]), h);
            let n = norm.unscaled(run.level, d.row(0));
            let n: Vec<_> = n.into_iter().map(Element::to_f64).collect();
            let m = norm.scale::<E>().into_iter().map(Element::to_f64);
            let scale = plus(m, lemma_10(&n, delta_y)?);
            return Ok([(weight(norm.name()), scale)].into());
        }
        let down = &self.down()[0];
        match (h, down.bias::<E>()) {
            (Hidden::Dense(_), Some(bias)) => {
                let bias = plus(bias.into_iter().map(Element::to_f64), lemma_8(delta_y)?);
                Ok([(format!("{}.bias", down.name()), bias)].into())
            }
            _ => ByWeight(self).delta(run, h, delta_y),
        }
    }
}

/// g = W h + b, or the sum of experts, controlled by W (Lemmas 9 and 11), whether there is a bias or not. A post-norm is left
/// out: g is what goes into it.
pub(crate) struct ByWeight<'a>(pub(crate) &'a Outer);

impl<E: Element> OutputControllable<E> for ByWeight<'_> {
    fn delta(
        &self,
        _: &mut ForwardRun<'_>,
        h: &Hidden<Matrix<E>>,
        delta_y: &[f64],
    ) -> Result<LayerPatch, Precondition> {
        let active = active(h);
        let deltas = match (h, active.as_slice()) {
            (Hidden::Dense(_), [(_, _, h)]) => vec![Some(lemma_9(h, delta_y)?)],
            _ => {
                let gates = active.iter().map(|(_, gate, h)| (*gate, h.as_slice()));
                lemma_11(&gates.collect::<Vec<_>>(), delta_y)?
            }
        };
        let pairs = active.iter().zip(deltas);
        let changes = pairs.filter_map(|((expert, _, _), delta)| {
            let name = weight(self.0.down()[*expert].name());
            Some((name, TensorChange::LowRank(delta?)))
        });
        Ok(changes.collect())
    }
}

/// The experts that are active for the one token of `h`, each with its gate and its h in f64; without experts h alone, of gate 1.
pub(crate) fn active<E: Element>(h: &Hidden<Matrix<E>>) -> Vec<(usize, f64, Vec<f64>)> {
    match h {
        Hidden::Dense(h) => vec![(0, 1.0, wide(h, 0))],
        Hidden::Experts { active, .. } => {
            let active = active.iter().filter_map(|(active, h)| {
                let gate = active.gates.first()?;
                Some((active.expert, *gate, wide(h, 0)))
            });
            active.collect()
        }
    }
}

/// The name of a module's weight.
pub(super) fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// θ + Δθ of a vector.
fn plus(theta: impl Iterator<Item = f64>, delta: Vec<f64>) -> TensorChange {
    let sum = theta.zip(delta).map(|(theta, delta)| theta + delta);
    TensorChange::Vector(sum.collect())
}
