//! A block of any form and what Theorem 5 promises of it, shared by the fuzz target and `tests/lemmas.rs`.

use context_patch::forms::{Form, Sample};
use context_patch::kernels::Level;
use context_patch::patch::{Precondition, TensorChange};
use context_patch::tensor::Element;

/// Patches a block whose numbers come from `number`: within its bounds, or refused with a reason.
pub fn check<E: Element>(form: &Form, number: &mut dyn FnMut() -> f64) -> Result<(), Precondition> {
    let measured = match Sample::<E>::new(form, number).measure(Level::best()) {
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
    let changes = measured.delta_inner.values();
    for change in changes.chain(measured.delta_outer.values()) {
        let finite = |x: &[f64]| x.iter().all(|x| x.is_finite());
        assert!(match change {
            TensorChange::LowRank(delta) =>
                finite(delta.u.as_slice()) && finite(delta.v.as_slice()),
            TensorChange::Vector(vector) => finite(vector),
        });
    }
    for difference in measured.inner.iter().chain([&measured.block]) {
        assert!(difference.holds(), "{difference:?} of {form:?}");
    }
    Ok(())
}
