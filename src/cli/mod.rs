//! The commands: parse, call the library, print.

mod apply;
mod builtin;
mod check;
mod compare;
mod compile;
mod compiled_report;
mod conformance;
mod convert;
mod demo;
mod generate;
mod images;
mod inspect;
mod keep;
mod layers;
mod lemmas;
mod outcome;
mod patch;
mod progress;
mod report;
#[cfg(feature = "server")]
mod serve;
mod signals;
mod solved;
mod solving;
mod table;
mod text;
mod trace;
mod verify;
mod words;
mod writing;

use std::io::{ErrorKind, IsTerminal};
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use context_patch::checkpoint::{Access, Tokenizer};
use context_patch::kernels::{Backend, Level};
use context_patch::model::{self, EmbeddingScale, Model, ModelOptions};
use context_patch::{Error, IoError, Result};

use progress::waiting;

/// Everything went well.
const OK: u8 = 0;
/// The program worked, and what it checked does not hold.
const BROKEN: u8 = 1;
/// Bad input.
const BAD_INPUT: u8 = 2;

const STANDARD_OUTPUT: &str = "standard output";

/// Language models on the CPU as an auditable ground truth, and prompts turned into weight patches.
///
/// A patch makes the model without a context say what the original says with it. Without a command
/// the demonstration runs: a small model that is built in answers a question from a context, then
/// without it, then without it but patched.
#[derive(Parser)]
#[command(version, before_help = EXAMPLES, after_help = EXIT_CODES, max_term_width = 80)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// Threads to use [default: one a core]; the results do not depend on it
    #[arg(long, global = true, display_order = 100, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Instructions to use, such as scalar or avx2 [default: the best there are]; the results do not
    /// depend on it
    #[arg(long, global = true, display_order = 101)]
    level: Option<Level>,
}

const EXAMPLES: &str = "\
Examples, with the small model that is built in:
  context-patch
  context-patch patch --model tiny --output figs.patch \\
      --context 'Ann likes plums. Bob likes figs. Bob likes'
  context-patch apply --model tiny --patch figs.patch
  context-patch verify --model tiny --tokens 2

The --help of each command begins with examples that work as they stand.";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 a check does not hold, 2 bad input, 128 + N ended by signal N \
                          (130 Ctrl-C, 143 SIGTERM).";

#[derive(Subcommand)]
enum Command {
    Apply(apply::Apply),
    Check(check::Check),
    Compare(compare::Compare),
    Compile(Box<compile::Compile>),
    Conformance(conformance::Conformance),
    Convert(convert::Convert),
    Demo(demo::Demo),
    Generate(generate::Generate),
    Inspect(inspect::Inspect),
    Lemmas(lemmas::Lemmas),
    Patch(Box<patch::Patch>),
    Report(report::Report),
    #[cfg(feature = "server")]
    Serve(Box<serve::Serve>),
    Trace(trace::Trace),
    Verify(verify::Verify),
}

/// Which model, and how it is read.
#[derive(Args)]
struct ModelArgs {
    /// A Hugging Face model directory, a GGUF file, a repository id that is in the local Hugging Face cache, or tiny: the
    /// small model that is built in
    #[arg(long, value_name = "DIR|FILE|ID")]
    model: String,

    /// Branch, tag or full commit of a repository in the cache [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,

    /// Read the weights into memory: for files that may change underneath
    #[arg(long)]
    no_mmap: bool,

    /// Round the embedding's scale to bf16 whatever the compute type, as Google's own code does
    #[arg(long)]
    bf16_embedding_scale: bool,
}

impl ModelArgs {
    /// The model and its tokenizer, which for a large vocabulary takes seconds to read.
    fn open_with_tokenizer(&self, level: Option<Level>) -> Result<(Model, Tokenizer)> {
        waiting("Reading the model", || {
            let model = self.open(level)?;
            let tokenizer = model.checkpoint().tokenizer()?;
            Ok((model, tokenizer))
        })
    }

    /// The same for what names the weights by their hash: it is computed meanwhile.
    fn open_hashed_with_tokenizer(&self, level: Option<Level>) -> Result<(Model, Tokenizer)> {
        waiting("Reading the model", || {
            let model = self.open(level)?;
            let checkpoint = model.checkpoint();
            let hash = || checkpoint.tensors().content_hash();
            let (tokenizer, _) = rayon::join(|| checkpoint.tokenizer(), hash);
            let tokenizer = tokenizer?;
            Ok((model, tokenizer))
        })
    }

    fn open(&self, level: Option<Level>) -> Result<Model> {
        let options = ModelOptions {
            access: if self.no_mmap {
                Access::Read
            } else {
                Access::Mapped
            },
            level,
            embedding_scale: if self.bf16_embedding_scale {
                EmbeddingScale::Bf16
            } else {
                EmbeddingScale::Compute
            },
        };
        builtin::open(&self.model, self.revision.as_deref(), options)
    }

    /// The options that name the same model in another command.
    fn shell(&self) -> String {
        let mut options = format!("--model {}", words::shell(&self.model));
        if let Some(revision) = &self.revision {
            options += &format!(" --revision {}", words::shell(revision));
        }
        if self.bf16_embedding_scale {
            options += " --bf16-embedding-scale";
        }
        options
    }
}

/// What multiplies matrices.
#[derive(Args)]
struct BackendArgs {
    /// What multiplies matrices: native (the same bits everywhere), gemm (the gemm crate, which promises no bits), or cuda (an
    /// NVIDIA GPU, which does everything and has the bits of native; in a program that is built with the feature cuda)
    #[arg(long, default_value_t)]
    backend: Backend,
}

/// Runs `$body` with `$element` standing for the type of `$dtype`.
macro_rules! with_dtype {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            context_patch::tensor::Dtype::F64 => {
                type $element = f64;
                $body
            }
            context_patch::tensor::Dtype::F32 => {
                type $element = f32;
                $body
            }
            context_patch::tensor::Dtype::Bf16 => {
                type $element = half::bf16;
                $body
            }
        }
    };
}
use with_dtype;

/// The program: parses, runs, and says what went wrong.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if let Some(wrong) = text::forgotten(&Cli::command(), &arguments) {
        eprintln!("error: {}", one_line(&wrong));
        return BAD_INPUT.into();
    }
    let cli = Cli::parse();
    signals::watch();
    // Inside the pool from the start: to enter it for every product would cost more than some of them.
    let threads = cli.threads.map_or(0, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let outcome = match pool {
        Ok(pool) => pool.install(|| run(&cli)),
        Err(error) => {
            eprintln!("error: cannot start threads: {error}");
            return BAD_INPUT.into();
        }
    };
    match outcome {
        Ok(code) => code.into(),
        Err(error) if is_closed_output(&error) => OK.into(),
        Err(Error::Model(model::Error::Cancelled)) => signals::code().into(),
        Err(error) => {
            eprintln!("error: {}", one_line(&error.to_string()));
            BAD_INPUT.into()
        }
    }
}

/// `text` with control characters, which file names and tensors' names can have too, written as escapes.
fn one_line(text: &str) -> String {
    let escaped = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.to_string()
        }
    };
    text.chars().map(escaped).collect()
}

fn run(cli: &Cli) -> Result<u8> {
    match &cli.command {
        None => demo::Demo::default().run(cli.level),
        Some(Command::Conformance(conformance)) => conformance.run(),
        Some(Command::Convert(convert)) => convert.run(),
        Some(Command::Demo(demo)) => demo.run(cli.level),
        Some(Command::Apply(apply)) => apply.run(cli.level),
        Some(Command::Check(check)) => check.run(cli.level),
        Some(Command::Compare(compare)) => compare.run(cli.level),
        Some(Command::Compile(compile)) => compile.run(cli.level),
        Some(Command::Inspect(inspect)) => inspect.run(),
        Some(Command::Patch(patch)) => patch.run(cli.level),
        Some(Command::Generate(generate)) => generate.run(cli.level),
        Some(Command::Lemmas(lemmas)) => lemmas.run(cli.level),
        Some(Command::Report(report)) => report.run(),
        #[cfg(feature = "server")]
        Some(Command::Serve(serve)) => serve.run(cli.level),
        Some(Command::Trace(trace)) => trace.run(cli.level),
        Some(Command::Verify(verify)) => verify.run(cli.level),
    }
}

/// This program as the user called it, for a command to type next.
fn program() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    words::shell(&name.to_string_lossy())
}

/// Writes to standard output; a reader that has gone is an error like any other.
fn print(text: &str) -> Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(written.map_err(|source| IoError {
        action: "write",
        path: STANDARD_OUTPUT.into(),
        source,
    })?)
}

/// Ends a text that was printed piece by piece: in a pipe only where it has not ended its line itself.
fn end_line(text: &str) -> Result<()> {
    if std::io::stdout().is_terminal() || !text.ends_with('\n') {
        print("\n")?;
    }
    Ok(())
}

/// Refuses an empty text, before anything is read for it.
fn refuse_empty(text: &str) -> Result<()> {
    if text.is_empty() {
        Err(model::Error::EmptyPrompt.into())
    } else {
        Ok(())
    }
}

/// Whether standard output has a reader no more, which ends a program without being its fault.
fn is_closed_output(error: &Error) -> bool {
    matches!(error, Error::Io(IoError { path, source, .. })
        if path.as_os_str() == STANDARD_OUTPUT && source.kind() == ErrorKind::BrokenPipe)
}
