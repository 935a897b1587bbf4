//! Language models on the CPU as an auditable ground truth, and prompts turned into weight patches.
//!
//! A transformer block that sees a context does the same as a block that does not see it but whose
//! weights are patched ("Equivalence of Context and Parameter Updates in Modern Transformer Blocks",
//! arXiv 2511.17864). This crate runs Llama, Qwen, Gemma, GPT-2 and their relatives from Hugging Face checkpoints and GGUF files in f64, f32 or bf16, solves
//! the patch of a token, and shows that the patched model without the context gives the logits of the
//! original model with it.
//!
//! ```
//! use context_patch::patch::{ApplyMode, Method, Overlay, Query, Solver, solve};
//! use context_patch::verify::LogitsDistance;
//! use context_patch::{Model, Session};
//!
//! # fn main() -> context_patch::Result<()> {
//! // A Hugging Face directory, a GGUF file, or a repository id in the local cache.
//! let model = Model::open("reference/tiny")?;
//! let text = "Ann likes plums. Bob likes figs. Bob likes";
//! let mut tokens = model.checkpoint().tokenizer()?.encode(text)?;
//! let query = tokens.pop().unwrap_or_default();
//!
//! // The model as it is reads the context; the patch of the next token absorbs it.
//! let mut contextual = Session::<f32>::new(&model);
//! contextual.forward(&tokens, 0)?;
//! let solution = solve(&mut contextual, Query::alone(query), &Method::new(Solver::ClosedForm), &[])?;
//!
//! // The patched model sees that one token, at its place, and no context.
//! let overlay = Overlay::new(&model, &solution.patch, ApplyMode::Overlay);
//! let mut patched = Session::new(&model).at(tokens.len()).with_overlay(&overlay);
//! let logits = patched.forward(&[query], 1)?;
//! let same = LogitsDistance::new(logits.row(0), &solution.contextual);
//! assert!(same.same_top && same.linf < 1e-4);
//!
//! // The control: the same token without the patch.
//! let unpatched = Session::new(&model).at(tokens.len()).forward(&[query], 1)?;
//! assert!(LogitsDistance::new(unpatched.row(0), &solution.contextual).linf > 1.0);
//! # Ok(())
//! # }
//! ```
//!
//! # The map
//!
//! The code is shaped by Theorem 5: every block is attention A, an inner function f and an outer
//! function g, and a part that can be patched gives the patch to every block that has it.
//!
//! | module | what is there |
//! |---|---|
//! | [`checkpoint`] | config.json, safetensors (mapped or read), GGUF, tokenizer, chat template, the local Hugging Face cache |
//! | [`model`] | [`Attention`](model::Attention), [`Inner`](model::Inner), [`Outer`](model::Outer), [`Block`](model::Block), and the [`Model`] and [`Session`] around them |
//! | [`patch`] | the [lemmas](patch::lemmas), [Theorem 5](patch::theorem_5), the [solvers](patch::Solver), and patches lent to a pass, saved and exported |
//! | [`forms`] | the blocks of other families as parts, small and random, and Theorem 5 tried on each |
//! | [`verify`] | the paper's protocol, its figures, the table of tolerances, and runs that go on after they were killed |
//! | `report` | a page about a verification, with figures (feature `report`) |
//! | [`vision`] | pictures: decoded, preprocessed, and where they stand in a prompt |
//! | [`trace`] | every intermediate under its name |
//! | [`compare`] | another engine's recording held against ours, operation by operation |
//! | [`conformance`] | the kit of small checkpoints that other engines are held against |
//! | `server` | OpenAI's API over HTTP (feature `server`) |
//! | `cuda` | passes on an NVIDIA GPU, with the same bits (feature `cuda`) |
//! | [`kernels`] | the operations, each in a documented order: the same bits at every instruction set, thread count and chunking |
//! | [`tensor`] | compute types, storage types, matrices |
//!
//! # Errors
//!
//! Whatever a file or a user can contain gives an error of one line that names the thing and says what to do.
//! Each module has its own type, such as [`checkpoint::Error`], which holds those of the modules it is built on;
//! [`Error`] holds all of them, so that `?` turns any into it. An error is found in one place whichever way it
//! came: a missing tensor is `Error::Checkpoint(checkpoint::Error::MissingTensor { .. })` where a model is opened and
//! where a patch is loaded, and what the operating system refused is `Error::Io`.
//!
//! Indices and shapes that only a program can get wrong panic, as slices do.

#![warn(unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod checkpoint;
pub mod compare;
pub mod conformance;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod forms;
mod json;
pub mod kernels;
mod message;
pub mod model;
pub mod output;
pub mod patch;
pub mod receipt;
#[cfg(feature = "report")]
pub mod report;
#[cfg(feature = "server")]
pub mod server;
pub mod tensor;
pub mod trace;
pub mod verify;
pub mod vision;

pub use checkpoint::Checkpoint;
pub use error::{Error, Result};
pub use message::IoError;
pub use model::{Model, Session};

/// The example of the documentation is a test.
#[cfg(doctest)]
#[doc = include_str!("../docs/library.md")]
struct Library;
