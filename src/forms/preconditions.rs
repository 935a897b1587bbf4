//! Blocks that no patch can serve, and what they are refused for.

use super::table::BlockForm;
use super::{Block, Branch, FORMS, FirstMaps, Linear, Norm, Outer};
use crate::kernels::Level;
use crate::patch::Precondition;
use crate::tensor::{Float, Matrix};

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
type Spoil<A> = fn(&mut Block<A>);

/// Every precondition of the lemmas, made to fail.
pub fn refusals<A: Float>(level: Level) -> Vec<Refusal> {
    let cases: [(_, _, Spoil<A>); 6] = [
        ("zero input z", "Llama", zero_input),
        ("zero activation h", "Llama", zero_activation),
        ("zero coordinate of u", "Gemma", zero_coordinate),
        ("no active expert", "Mixtral", no_experts),
        ("active experts say nothing", "Mixtral", silent_experts),
        ("gates that add up to zero", "Mixtral", zero_gates),
    ];
    let refusal = |(what, name, spoil): (_, _, Spoil<A>)| {
        let form = form(name)?;
        let (mut block, tokens) = Block::random(form, 0);
        spoil(&mut block);
        Some(Refusal {
            what,
            form: name,
            refused: block.measure(level, &tokens).err(),
        })
    };
    cases.into_iter().filter_map(refusal).collect()
}

fn form(name: &str) -> Option<&'static BlockForm> {
    FORMS.iter().find(|form| form.name == name)
}

/// A norm that scales everything to zero.
fn zero_input<A: Float>(block: &mut Block<A>) {
    if let Branch::Dense(f, _) = &mut block.branch
        && let Norm::Rms { scale } = &mut f.norm
    {
        scale.fill(A::ZERO);
    }
}

fn zero_activation<A: Float>(block: &mut Block<A>) {
    if let Branch::Dense(f, _) = &mut block.branch {
        zero(&mut f.mlp.up);
    }
}

/// The first row of W_down is zero, so n(d) is zero there.
fn zero_coordinate<A: Float>(block: &mut Block<A>) {
    if let Branch::Dense(_, Outer::Scale { down, .. }) = &mut block.branch {
        down.stored.row_mut(0).fill(A::ZERO);
    }
}

fn no_experts<A: Float>(block: &mut Block<A>) {
    if let Branch::Experts(f, _) = &mut block.branch {
        f.active = 0;
    }
}

fn silent_experts<A: Float>(block: &mut Block<A>) {
    if let Branch::Experts(f, _) = &mut block.branch {
        for map in f.maps_mut() {
            zero(map);
        }
    }
}

/// The expert that takes the whole softmax says nothing; the one that speaks has a gate of zero.
fn zero_gates<A: Float>(block: &mut Block<A>) {
    if let Branch::Experts(f, _) = &mut block.branch {
        let logits = (0..f.experts.len()).map(|j| match j {
            0 => A::from_f64(1e4),
            1 => A::ZERO,
            _ => A::from_f64(-1e4),
        });
        zero(&mut f.router);
        f.router.bias = Some(logits.collect());
        zero(&mut f.experts[0].up);
    }
}

fn zero<A: Float>(map: &mut Linear<A>) {
    map.stored = Matrix::zeros(map.stored.rows(), map.stored.cols());
}
