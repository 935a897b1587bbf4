//! Blocks that no patch can serve, and what they are refused for.

use super::random::Sample;
use super::table::Form;
use crate::kernels::Level;
use crate::model::{Linear, Maps};
use crate::patch::Precondition;
use crate::tensor::{Element, Matrix, Tensor};

/// A block whose patch divides by zero.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What is zero.
    pub what: &'static str,
    /// The block's form.
    pub form: &'static str,
    /// What the solver said; `None` where it refused nothing, which it must not.
    pub refused: Option<Precondition>,
}

/// Makes a number zero that a patch must divide by.
type Spoil<E> = fn(&mut Sample<E>);

/// Every precondition of the lemmas, made to fail in blocks of those of `forms` that it concerns.
pub fn refusals<E: Element>(level: Level, forms: &[Form]) -> Vec<Refusal> {
    let cases: [(_, _, Spoil<E>); 5] = [
        ("zero input z", "OLMo 2", zero_input),
        ("zero activation h", "Llama", zero_activation),
        ("zero coordinate of u", "Gemma 3", zero_coordinate),
        ("active experts say nothing", "Mixtral", silent_experts),
        ("gates that add up to zero", "Mixtral", zero_gates),
    ];
    let refusal = |(what, name, spoil): (_, _, Spoil<E>)| {
        let form = forms.iter().find(|form| form.name == name)?;
        let mut sample = Sample::from_seed(form, 0);
        spoil(&mut sample);
        Some(Refusal {
            what,
            form: name,
            refused: sample.measure(level).err(),
        })
    };
    cases.into_iter().filter_map(refusal).collect()
}

/// What stays of the context is zero, and x is: without a norm in front so is v, but not v_C.
fn zero_input<E: Element>(sample: &mut Sample<E>) {
    for &at in &sample.reduced.positions {
        sample.contextual.rows.row_mut(at).fill(E::default());
    }
    sample.reduced.rows.as_mut_slice().fill(E::default());
}

fn zero_activation<E: Element>(sample: &mut Sample<E>) {
    if let Maps::Gated { up, .. } = &mut sample.block.inner.maps {
        silence(up);
    }
}

/// The first row of W_down is zero, so n(d) is zero there.
fn zero_coordinate<E: Element>(sample: &mut Sample<E>) {
    let weight = &mut sample.block.outer.down[0].weight;
    let (cols, numbers) = (weight.cols(), weight.to_vec::<f64>());
    with_numbers(weight, |i| if i < cols { 0.0 } else { numbers[i] });
}

fn silent_experts<E: Element>(sample: &mut Sample<E>) {
    if let Maps::Experts(experts) = &mut sample.block.inner.maps {
        for [_, up] in &mut experts.maps {
            silence(up);
        }
    }
}

/// The expert that takes the whole softmax says nothing; the one that speaks has a gate of zero.
fn zero_gates<E: Element>(sample: &mut Sample<E>) {
    if let Maps::Experts(experts) = &mut sample.block.inner.maps {
        silence(&mut experts.router);
        let mut logits = Matrix::zeros(1, experts.maps.len());
        logits.as_mut_slice().fill(-1e4);
        logits.as_mut_slice()[..2].copy_from_slice(&[1e4, 0.0]);
        let storage = experts.router.weight.storage();
        experts.router.bias = Some(Tensor::from_matrix(storage, &logits));
        silence(&mut experts.maps[0][1]);
    }
}

fn silence(map: &mut Linear) {
    with_numbers(&mut map.weight, |_| 0.0);
}

/// Replaces every number of a tensor, by its place.
fn with_numbers(tensor: &mut Tensor, number: impl Fn(usize) -> f64) {
    let numbers = (0..tensor.rows() * tensor.cols()).map(number);
    let numbers = Matrix::from_vec(tensor.cols(), numbers.collect());
    *tensor = Tensor::from_matrix(tensor.storage(), &numbers);
}
