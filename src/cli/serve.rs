//! `context-patch serve`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use context_patch::kernels::Level;
use context_patch::model::batch::BatchOptions;
use context_patch::server::{Options, Server, listen};
use context_patch::tensor::Dtype;
use context_patch::{IoError, Result};

use super::progress::waiting;
use super::{BackendArgs, ModelArgs, OK, print, signals, with_dtype};

/// Files that the program has open besides connections, with room to spare.
const FILES: usize = 64;

/// Serve a model to OpenAI's clients: completions and chats over HTTP
///
/// An answer depends on its request alone, to the last bit: not on what else the server does. Ctrl-C and SIGTERM let it
/// finish what was begun.
#[derive(Args)]
#[command(before_help = "\
Example, with the small model that is built in:
  context-patch serve --model tiny &
  curl --silent --retry 9 --retry-connrefused \\
      localhost:8080/v1/completions -d '{\"temperature\": 0,
      \"prompt\": \"Ann likes plums. Bob likes figs. Bob likes\"}'
  kill $!")]
pub(super) struct Serve {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    products: BackendArgs,

    /// Where to listen; port 0 is a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "localhost:8080")]
    listen: String,

    /// A patch file to serve as a model of its own, MODEL+NAME; can be repeated
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    patch: Vec<(String, PathBuf)>,

    /// Compute in f64, f32 or bf16
    #[arg(long, default_value_t = Dtype::F32)]
    dtype: Dtype,

    /// Answers that are written at once
    #[arg(long, value_name = "N", default_value = "16")]
    sequences: NonZeroUsize,

    /// Answers that may wait for one of them to end
    #[arg(long, value_name = "N", default_value_t = 256)]
    queue: usize,

    /// Tokens of an answer to a chat that does not say how many
    #[arg(long, value_name = "N", default_value = "1024")]
    max_tokens: NonZeroUsize,

    /// Tokens of prompts that are taken in between two tokens of the others
    #[arg(long, value_name = "N", default_value = "128")]
    prefill_tokens: NonZeroUsize,

    /// Memory for keys and values of all answers
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    cache_mib: usize,

    /// Memory for those of beginnings that later prompts may share; 0 keeps none
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    prefix_mib: usize,

    /// A file of keys, one a line, one of which clients must have
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,

    /// Let the pages of this origin ask, or of any with *
    #[arg(long, value_name = "ORIGIN")]
    cors: Option<String>,

    /// Let clients load and unload patches, from files of this machine
    #[arg(long)]
    admin: bool,

    /// The largest request
    #[arg(long, value_name = "KIB", default_value_t = 1024)]
    body_kib: usize,

    /// Connections at once
    #[arg(long, value_name = "N", default_value = "1024")]
    connections: NonZeroUsize,

    /// How long a client may keep still: between requests, within one, and with an answer unread
    #[arg(long, value_name = "S", default_value = "60")]
    idle_seconds: NonZeroUsize,

    /// How long answers may go on after the signal that ends the server
    #[arg(long, value_name = "S", default_value_t = 30)]
    drain_seconds: u64,
}

/// `NAME=FILE`.
fn named(text: &str) -> Result<(String, PathBuf), String> {
    let parts = text
        .split_once('=')
        .filter(|(name, file)| !name.is_empty() && !file.is_empty());
    let (name, file) = parts.ok_or_else(|| format!("'{text}' is not NAME=FILE"))?;
    Ok((name.into(), file.into()))
}

impl Serve {
    pub(super) fn run(&self, level: Option<Level>) -> Result<u8> {
        let options = self.options()?;
        // Before the model is read, which takes a while.
        let listener = listen(&self.listen)?;
        let stop = signals::cancel();
        with_dtype!(self.dtype, E => {
            let server = waiting("Reading the model", || -> Result<_> {
                let model = self.model.open(level)?.on(self.products.backend)?;
                Ok(Server::<E>::new(model, options)?)
            })?;
            let address = listener.local_addr().map_err(|source| IoError {
                action: "listen on",
                path: self.listen.clone().into(),
                source,
            })?;
            print(&format!("listening on http://{address}\n"))?;
            server.run(listener, &stop)?;
        });
        Ok(OK)
    }

    fn options(&self) -> Result<Options> {
        let mib = |mib: usize| mib.saturating_mul(1 << 20);
        Ok(Options {
            name: name(&self.model.model),
            patches: self.patch.clone(),
            sequences: self.sequences.get(),
            queue: self.queue,
            max_tokens: self.max_tokens.get(),
            batch: BatchOptions {
                prefill_tokens: self.prefill_tokens.get(),
                cache_limit: mib(self.cache_mib),
                prefix_cache: mib(self.prefix_mib),
            },
            body: self.body_kib.saturating_mul(1 << 10),
            connections: allowed(self.connections.get()),
            idle: Duration::from_secs(self.idle_seconds.get() as u64),
            drain: Duration::from_secs(self.drain_seconds),
            keys: self.keys()?,
            cors: self.cors.clone(),
            admin: self.admin,
        })
    }

    /// The keys in the file.
    fn keys(&self) -> Result<Vec<String>> {
        let Some(path) = &self.api_key_file else {
            return Ok(Vec::new());
        };
        let refused = |source| IoError {
            action: "read",
            path: path.clone(),
            source,
        };
        let text = std::fs::read_to_string(path).map_err(refused)?;
        let keys = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let keys: Vec<String> = keys.map(str::to_owned).collect();
        if keys.is_empty() {
            let nothing = "there is no key in it: write one on a line";
            return Err(refused(std::io::Error::other(nothing)).into());
        }
        Ok(keys)
    }
}

/// What clients call a model: the last part of a path, and a repository's id as it is.
fn name(model: &str) -> String {
    let path = Path::new(model);
    let whole = path.canonicalize().unwrap_or_else(|_| path.into());
    let last = whole.file_name().filter(|_| path.exists());
    let last = last.map(|name| name.to_string_lossy().into_owned());
    let name = last.unwrap_or_else(|| model.into());
    name.strip_suffix(".gguf")
        .map(str::to_owned)
        .unwrap_or(name)
}

/// How many connections of `asked` the system has files for, once it was asked for more.
#[cfg(target_os = "linux")]
fn allowed(asked: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = (asked + FILES) as u64;
    let most = maximum.map_or(wanted, |maximum| maximum.min(wanted));
    let raised = Rlimit {
        current: Some(most),
        maximum,
    };
    let Some(current) = current.filter(|current| *current < wanted) else {
        return asked;
    };
    let files = if setrlimit(Resource::Nofile, raised).is_ok() {
        most
    } else {
        current
    };
    (files as usize).saturating_sub(FILES).clamp(1, asked)
}

#[cfg(not(target_os = "linux"))]
fn allowed(asked: usize) -> usize {
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_called_by_the_last_part_of_its_path() {
        assert_eq!(name("reference/tiny/"), "tiny");
        assert_eq!(name("google/gemma-3-270m"), "google/gemma-3-270m");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("small.gguf");
        std::fs::write(&file, "").unwrap();
        assert_eq!(name(file.to_str().unwrap()), "small");
    }

    #[test]
    fn a_patch_is_named() {
        assert_eq!(named("a=b=c").unwrap(), ("a".into(), "b=c".into()));
        assert!(named("a").is_err() && named("=a").is_err() && named("a=").is_err());
    }
}
