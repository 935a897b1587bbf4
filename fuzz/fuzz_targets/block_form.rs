//! A block of any form and what Theorem 5 promises of it, shared by the fuzz target and `tests/lemmas.rs`.

use context_patch::forms::{Block, BlockForm};
use context_patch::kernels::Level;
use context_patch::patch::Precondition;
use context_patch::patch::theorem_5::Delta;
use context_patch::tensor::Float;

/// Patches a block whose numbers come from `number`: within its bounds, or refused with a reason.
pub fn check<A: Float>(
    form: &BlockForm,
    number: &mut dyn FnMut() -> f64,
) -> Result<(), Precondition> {
    let (block, tokens) = Block::<A>::new(form, number);
    let measured = match block.measure(Level::best(), &tokens) {
        Ok(measured) => measured,
        Err(Precondition { quantity, value }) => {
            // A divisor may also be so small that the quotient is not finite.
            let reason = value == 0.0 || !value.is_finite() || quantity.starts_with("n(d)");
            assert!(
                reason,
                "{quantity} = {value} is no reason to refuse {form:?}"
            );
            return Err(Precondition { quantity, value });
        }
    };
    for change in &measured.changes {
        let finite = |x: &[f64]| x.iter().all(|x| x.is_finite());
        assert!(match &change.delta {
            Delta::Matrix(delta) => finite(delta.u.as_slice()) && finite(delta.v.as_slice()),
            Delta::Vector(delta) => finite(delta),
        });
    }
    for difference in measured.inner.iter().chain([&measured.block]) {
        assert!(difference.holds(), "{difference:?} of {form:?}");
    }
    Ok(())
}
