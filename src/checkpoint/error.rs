//! What is wrong with a checkpoint.

use std::path::PathBuf;

use crate::message::{IoError, shown};
use crate::output::MaybeIo;

/// A result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a checkpoint: where it is, its config, weights, tokenizer or chat template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error(transparent)]
    Io(#[from] IoError),

    // ---- finding a checkpoint ----------------------------------------------------------
    /// The model's path is a file, and no GGUF one.
    #[error("{} is a file, and no GGUF one; give a GGUF file, the directory that holds config.json, or a repository id such as google/gemma-3-270m", path.display())]
    NotADirectory {
        /// What was given.
        path: PathBuf,
    },
    /// The model is neither a directory nor the form of a repository id.
    #[error(
        "no directory {}; give a directory that holds config.json, or a repository id such as google/gemma-3-270m",
        shown(model)
    )]
    NoSuchModel {
        /// What was given.
        model: String,
    },
    /// A repository id that the local Hugging Face cache does not hold.
    #[error("no directory {model}, and no such repository in the cache {}; fetch it with `hf download {model}`, or set HF_HUB_CACHE or HF_HOME to where it is", looked.display())]
    NotInCache {
        /// The repository id.
        model: String,
        /// The cache directory searched.
        looked: PathBuf,
    },
    /// A repository id, and nothing that says where the cache is.
    #[error(
        "no directory {model}, and no Hugging Face cache to look it up in; set HF_HUB_CACHE, HF_HOME or HOME"
    )]
    NoCache {
        /// The repository id.
        model: String,
    },
    /// The cache holds a repository, but not the revision asked for.
    #[error(
        "the cache has {model}, but not its revision {}; {}fetch it with `hf download {model} --revision {}`",
        shown(revision),
        choose(commits),
        shown(revision)
    )]
    NoRevision {
        /// The repository id.
        model: String,
        /// The branch, tag or commit.
        revision: String,
        /// The commits that are there.
        commits: Vec<String>,
    },
    /// A link to a file that is not there, as where a cache's blobs were removed.
    #[error("{} is a link to a file that is not there; fetch it again", link.display())]
    DanglingLink {
        /// The link.
        link: PathBuf,
    },
    /// A directory without config.json.
    #[error("{} has no config.json; give the directory of a Hugging Face checkpoint", dir.display())]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// A directory without weights.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json{}", dir.display(), instead(other.as_deref()))]
    NoWeights {
        /// The directory.
        dir: PathBuf,
        /// A file of weights that is there.
        other: Option<String>,
    },
    /// A checkpoint without a tokenizer.
    #[error("{} has no tokenizer.json; copy the model's own there, or give token ids instead of text", dir.display())]
    NoTokenizer {
        /// The directory, or the name of a model in memory.
        dir: PathBuf,
    },
    /// A picture, and no vision part to see it.
    #[error(
        "{} takes no pictures: {why}; take a checkpoint with a vision part, such as google/gemma-3-4b-it",
        shown(model)
    )]
    NoVision {
        /// What the model was opened as.
        model: String,
        /// What is missing.
        why: &'static str,
    },

    // ---- config.json and other JSON ----------------------------------------------------
    /// A file that should be JSON and is not.
    #[error("{} is not valid JSON: {source}; fetch the file again", path.display())]
    NotJson {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// A JSON field of the wrong type.
    #[error("{}: {} must be {expected}, not {found}", path.display(), shown(field))]
    FieldType {
        /// The file.
        path: PathBuf,
        /// The field, with a dot for each level: `text_config.hidden_size`.
        field: String,
        /// The type it should have.
        expected: &'static str,
        /// What it says, cut short.
        found: String,
    },
    /// A JSON field of the right type whose value makes no sense.
    #[error("{}: {} is {found}, but must be {expected}", path.display(), shown(field))]
    FieldValue {
        /// The file.
        path: PathBuf,
        /// The field, with a dot for each level.
        field: String,
        /// What it says, cut short.
        found: String,
        /// What would be accepted.
        expected: String,
    },
    /// A setting that is legitimate but that this crate does not compute.
    #[error("{}: {} is {found}; this crate computes only {supported}", path.display(), shown(field))]
    UnsupportedOption {
        /// The file.
        path: PathBuf,
        /// The field, with a dot for each level.
        field: String,
        /// What it says, cut short.
        found: String,
        /// What is computed instead.
        supported: &'static str,
    },
    /// A model of another family.
    #[error("{}: cannot run models of model_type {}; take one whose model_type is one of {known}", path.display(), shown(found))]
    UnsupportedArchitecture {
        /// The config file.
        path: PathBuf,
        /// The model type that it names.
        found: String,
        /// Every model type that is known.
        known: String,
    },
    /// A config that does not say what it is the config of.
    #[error("{} has no model_type; transformers needs it: gemma3_text for Gemma3ForCausalLM, llama for LlamaForCausalLM, …", path.display())]
    NoArchitecture {
        /// The config file.
        path: PathBuf,
    },

    // ---- GGUF --------------------------------------------------------------------------
    /// A file that is no GGUF file, or one whose model cannot be run.
    #[error("{}: not a GGUF file that can be read: {reason}; fetch the file again, or take another one", path.display())]
    NotGguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// A model that cannot be written as a GGUF file without being changed.
    #[error("{} cannot be written as GGUF: {reason}", shown(model))]
    NotForGguf {
        /// What the model was opened as.
        model: String,
        /// What has no place there.
        reason: String,
    },

    // ---- safetensors -------------------------------------------------------------------
    /// A file that is not safetensors at all.
    #[error("{} is not a safetensors file: {reason}; fetch the file again", file.display())]
    NotSafetensors {
        /// The file.
        file: PathBuf,
        /// What gives it away.
        reason: String,
    },
    /// The header's length reaches beyond the end of the file.
    #[error("{}: its header claims {header} bytes and only {available} follow; the file is cut short, fetch it again", file.display())]
    HeaderTooLong {
        /// The file.
        file: PathBuf,
        /// Bytes that the header claims.
        header: u64,
        /// Bytes that follow the length.
        available: u64,
    },
    /// Two tensors share bytes.
    #[error("{}: tensor {} starts at byte {start}, inside the tensor before it, which ends at {end}; fetch the file again", file.display(), shown(tensor))]
    OverlappingTensors {
        /// The file.
        file: PathBuf,
        /// The later of the two.
        tensor: String,
        /// Where it starts, counted from the end of the header.
        start: usize,
        /// Where the one before it ends.
        end: usize,
    },
    /// Bytes between two tensors belong to neither.
    #[error("{}: tensor {} starts at byte {start}, leaving a gap after byte {end}; fetch the file again", file.display(), shown(tensor))]
    TensorGap {
        /// The file.
        file: PathBuf,
        /// The tensor after the gap.
        tensor: String,
        /// Where it starts, counted from the end of the header.
        start: usize,
        /// Where the one before it ends.
        end: usize,
    },
    /// A tensor's bytes are not as many as its dtype and shape say.
    #[error("{}: tensor {} has {found} bytes, which is not {dtype} {shape:?}; fetch the file again", file.display(), shown(tensor))]
    TensorBytes {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype in safetensors' spelling.
        dtype: String,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes it has.
        found: usize,
    },
    /// The file ends before its last tensor does.
    #[error("{}: its tensors need {expected} bytes after the header and {found} are there; the file is cut short, fetch it again", file.display())]
    TruncatedTensors {
        /// The file.
        file: PathBuf,
        /// Bytes that the header accounts for.
        expected: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// Bytes after the last tensor.
    #[error("{}: {extra} bytes follow the last tensor; fetch the file again", file.display())]
    TrailingBytes {
        /// The file.
        file: PathBuf,
        /// How many.
        extra: usize,
    },
    /// A tensor of a type that nothing here computes with.
    #[error("{}: tensor {} is {}; weights must be F64, F32, F16 or BF16, so take an unquantised checkpoint", file.display(), shown(tensor), shown(dtype))]
    UnsupportedDtype {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its dtype in safetensors' spelling.
        dtype: String,
    },
    /// A tensor that the config calls for is not stored.
    #[error("{} has no tensor {}; config.json and the weights do not belong together", file.display(), shown(tensor))]
    MissingTensor {
        /// The file, or the index of the shards.
        file: PathBuf,
        /// The tensor's canonical name.
        tensor: String,
    },
    /// A tensor that the config calls for is stored under a name that is not taken for it.
    #[error("{} has the tensor {} in the place of {}; take what is too much off the names", file.display(), shown(stored), shown(tensor))]
    OtherPrefix {
        /// The file that stores it.
        file: PathBuf,
        /// The tensor's canonical name.
        tensor: String,
        /// Its name in the file.
        stored: String,
    },
    /// A tensor has another shape than the config says.
    #[error("{}: tensor {} has shape {found:?}, but config.json says {expected:?}; they do not belong together", file.display(), shown(tensor))]
    TensorShape {
        /// The file that stores it.
        file: PathBuf,
        /// The tensor's canonical name.
        tensor: String,
        /// The shape that follows from the config.
        expected: Vec<usize>,
        /// The shape stored.
        found: Vec<usize>,
    },
    /// A weight is NaN or infinite.
    #[error("{}: tensor {} holds {value} at element {index}; fetch the file again", file.display(), shown(tensor))]
    NotFinite {
        /// The file that stores it.
        file: PathBuf,
        /// The tensor's canonical name.
        tensor: String,
        /// The first such element, in row-major order.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// An index names a shard that is not there.
    #[error("{} names the shard {}, which is not beside it; fetch the missing file", index.display(), shown(shard))]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The shard's file name.
        shard: String,
    },
    /// An index names a shard by something other than a plain file name.
    #[error("{}: {} is not the name of a file beside the index; do not trust this checkpoint", index.display(), shown(shard))]
    ShardName {
        /// The index.
        index: PathBuf,
        /// The name it gives.
        shard: String,
    },
    /// Tensors of layers that the config does not have.
    #[error("{} has the tensor {}, but config.json says {layers} layers; they do not belong together", file.display(), shown(tensor))]
    ExtraLayer {
        /// The weights' file or folder.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// `num_hidden_layers`.
        layers: usize,
    },

    // ---- tokenizer and chat template ---------------------------------------------------
    /// A tokenizer.json that the tokenizer library refuses, or a text or ids that it cannot convert.
    #[error("{}: {reason}", path.display())]
    Tokenizer {
        /// The tokenizer's file.
        path: PathBuf,
        /// What the library says.
        reason: String,
    },
    /// A tokenizer with more tokens than the model has.
    #[error("{} is for another vocabulary: its token {} has id {id}, but the model's vocabulary has {vocab_size} tokens; use the tokenizer.json of this checkpoint", path.display(), shown(token))]
    TokenizerVocabulary {
        /// The tokenizer's file.
        path: PathBuf,
        /// Its token of the highest id.
        token: String,
        /// That id.
        id: u32,
        /// The model's vocab_size.
        vocab_size: usize,
    },
    /// A tokenizer whose first token of a text is not the model's.
    #[error("{} is for another vocabulary: {} is {}, but the model's bos_token_id is {expected}; use the tokenizer.json and tokenizer_config.json of this checkpoint", path.display(), shown(token), id_or_missing(*found))]
    TokenizerBos {
        /// The tokenizer's file.
        path: PathBuf,
        /// The text of the token that begins a sequence.
        token: String,
        /// Its id in the tokenizer, if it has one.
        found: Option<u32>,
        /// The config's bos_token_id.
        expected: u32,
    },
    /// A text contains a token that the tokenizer knows and the text model does not.
    #[error(
        "the text contains {} (token {id}), which the text model with its {vocab_size} tokens does not have; leave it out",
        shown(token)
    )]
    TokenBeyondVocabulary {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// The model's vocab_size.
        vocab_size: usize,
    },
    /// A checkpoint without a chat template.
    #[error("{} has no chat template ({looked}); use an instruction-tuned checkpoint, or leave out --chat", dir.display())]
    NoChatTemplate {
        /// The directory or the GGUF file, or the name of a model in memory.
        dir: PathBuf,
        /// The places where it could have been.
        looked: &'static str,
    },
    /// A chat template that cannot be parsed or that refuses the messages.
    #[error("the chat template of {}: {reason}", path.display())]
    ChatTemplate {
        /// The file that holds the template.
        path: PathBuf,
        /// What the template or its parser says.
        reason: String,
    },
    /// A file of messages that is none.
    #[error("{}: {reason}; give a JSON list of messages, or an object with messages and what else the template takes", path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A time for a chat template that is none.
    #[error("{} is not a date and time such as 2026-11-27T09:30:00", shown(time))]
    Time {
        /// What was given.
        time: String,
    },
}

fn id_or_missing(id: Option<u32>) -> String {
    id.map_or_else(|| "not in it".to_owned(), |id| format!("token {id}"))
}

/// What a directory has in place of the weights that are looked for, and what to do.
fn instead(other: Option<&str>) -> String {
    match other {
        None => "; fetch the weights in safetensors form".into(),
        Some(file) if file.ends_with(".safetensors") => {
            let file = shown(file);
            format!(", but {file}; if that is all of the weights, rename it to model.safetensors")
        }
        Some(file) => {
            let file = shown(file);
            format!(
                ", but {file}; convert it to safetensors: load it with transformers and save_pretrained it"
            )
        }
    }
}

impl MaybeIo for Error {
    fn io_mut(&mut self) -> Option<&mut IoError> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// The revisions that can be named.
fn choose(commits: &[String]) -> String {
    match commits {
        [] => String::new(),
        [one] => format!("choose one with --revision {}, or ", shown(one)),
        [first, others @ ..] => {
            let others: Vec<_> = others.iter().map(|other| shown(other)).collect();
            let (first, others) = (shown(first), others.join(", "));
            format!("choose one with --revision {first} (or {others}), or ")
        }
    }
}
