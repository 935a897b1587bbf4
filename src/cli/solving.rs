//! Options of the solvers, for the commands that solve.

use clap::Args;
use context_patch::patch::{Form, Method, Solver};

#[derive(Args)]
pub(super) struct SolvingArgs {
    /// How far the changed W_down overrules the stored one (closed-form, span): more makes the patch larger
    /// and safer to run in another engine
    #[arg(long, default_value_t = Method::GAIN, value_parser = positive)]
    gain: f64,

    /// How many of the last layers a span changes
    #[arg(long, default_value_t = Method::LAYERS, value_parser = at_least_one)]
    layers: usize,

    /// Passes to solve a span in at most; it ends sooner when the error no longer shrinks
    #[arg(long, default_value_t = Method::PASSES, value_parser = at_least_one)]
    passes: usize,
}

impl SolvingArgs {
    pub(super) fn method(&self, solver: Solver, form: Form) -> Method {
        Method {
            solver,
            form,
            gain: self.gain,
            layers: self.layers,
            passes: self.passes,
        }
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(number) if number > 0.0 && f64::is_finite(number) => Ok(number),
        _ => Err(format!("'{text}' is not a number above 0")),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("'{text}' is not a whole number of at least 1")),
    }
}
