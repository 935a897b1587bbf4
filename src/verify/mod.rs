//! The paper's protocol: token by token, the patched model without the prompt against the model with it.

mod batches;
mod bounds;
pub mod campaign;
mod condition;
mod crossing;
mod error;
mod keep;
mod metrics;
mod protocol;
mod record;
mod setting;
pub mod span;
mod step;
pub mod steps_file;
mod summary;
mod tables;

pub use bounds::Bounds;
pub use campaign::Shard;
pub use crossing::Crossing;
pub use error::{Error, Result};
pub use keep::Keep;
pub use metrics::{LogitsDistance, distribution};
pub use protocol::{Begun, Verification};
pub use record::{Machine, Place, Record, Run};
pub use setting::{Kind, Setting};
pub use step::{Control, Step};
pub use steps_file::StepsFile;
#[cfg(feature = "report")]
pub(crate) use summary::worse;
pub use summary::{ControlSummary, Summary};
pub use tables::Table;

/// The five prompts of the paper's experiments.
pub const PROMPTS: [&str; 5] = [
    "Write a single-sentence weather forecast for Mars, from the perspective of a slightly annoyed robot:",
    "Constraint: No 'e's. Topic: The meaning of life. Length: Exactly 20 words. Write:",
    "Explain what a 'bug' is in computer programming, but explain it to a 16th-century medieval peasant. Use 20 words or less:",
    "Topic: Three siblings named Jack, Fred, and Alice. Task: Write one 5-7-5 haiku about them:",
    "We can absorb the impact of a prompt for a modern language model such as Gemma into the MLP weights. Write a two-line rhyming couplet about this fact:",
];
