//! The one error type. Every variant names the file, tensor, layer or field, and says what to do.

use std::io;
use std::path::PathBuf;

use crate::patch::Solver;
use crate::tensor::{Dtype, Storage};

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, for anything that a file or a user can contain.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused something.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried: "read", "write", "map", …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },

    // ---- finding a checkpoint -------------------------------------------------------------
    /// The model's path is a file.
    #[error("{} is a file; give the directory that holds config.json, or a repository id such as google/gemma-3-270m", path.display())]
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
    /// The cache holds a repository, but not the revision that `refs/main` names.
    #[error("the cache has {model} without its main revision ({} is missing or malformed); fetch it again with `hf download {model}`", missing.display())]
    NoRevision {
        /// The repository id.
        model: String,
        /// The file or directory that should be there.
        missing: PathBuf,
    },
    /// A directory without config.json.
    #[error("{} has no config.json; give the directory of a Hugging Face checkpoint", dir.display())]
    NoConfig {
        /// The directory.
        dir: PathBuf,
    },
    /// A directory without weights.
    #[error("{} has neither model.safetensors nor model.safetensors.index.json; fetch the weights in safetensors form", dir.display())]
    NoWeights {
        /// The directory.
        dir: PathBuf,
    },
    /// A checkpoint without a tokenizer.
    #[error("{} has no tokenizer.json; copy the model's own there, or give token ids instead of text", dir.display())]
    NoTokenizer {
        /// The directory, or the name of a model in memory.
        dir: PathBuf,
    },

    // ---- config.json and other JSON -------------------------------------------------------
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
    #[error("{}: cannot run {}; supported are Gemma3ForCausalLM (gemma3_text) and the text part of Gemma3ForConditionalGeneration (gemma3)", path.display(), shown(found))]
    UnsupportedArchitecture {
        /// The config file.
        path: PathBuf,
        /// The architecture or model type that it names.
        found: String,
    },
    /// A config that does not say what it is the config of.
    #[error("{} names neither architectures nor model_type; is it a model's config.json?", path.display())]
    NoArchitecture {
        /// The config file.
        path: PathBuf,
    },

    // ---- safetensors ----------------------------------------------------------------------
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
    /// The same tensor twice, in two shards or under two spellings of its name.
    #[error("tensor {} is stored twice, in {} and in {}; remove one", shown(tensor), first.display(), second.display())]
    DuplicateTensor {
        /// The tensor's canonical name.
        tensor: String,
        /// The file of the first.
        first: PathBuf,
        /// The file of the second.
        second: PathBuf,
    },
    /// A tensor that the config calls for is not stored.
    #[error("{} has no tensor {}; config.json and the weights do not belong together", file.display(), shown(tensor))]
    MissingTensor {
        /// The file, or the index of the shards.
        file: PathBuf,
        /// The tensor's canonical name.
        tensor: String,
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
    /// A shard lacks a tensor that the index places there.
    #[error("{} places tensor {} in {}, which does not hold it; index and shards do not belong together", index.display(), shown(tensor), shown(shard))]
    NotInShard {
        /// The index.
        index: PathBuf,
        /// The tensor, as the index spells it.
        tensor: String,
        /// The shard's file name.
        shard: String,
    },

    // ---- tokenizer and chat template ------------------------------------------------------
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
    #[error("{} has no chat template (no chat_template.jinja, and no chat_template in tokenizer_config.json, processor_config.json or chat_template.json); use an instruction-tuned checkpoint, or leave out --chat", dir.display())]
    NoChatTemplate {
        /// The directory, or the name of a model in memory.
        dir: PathBuf,
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

    // ---- running ----------------------------------------------------------------------------
    /// Nothing to run on.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// A sequence that the model has no positions for.
    #[error(
        "the sequence needs {tokens} positions, the model has {positions}: shorten the prompt or the answer"
    )]
    PromptTooLong {
        /// The positions needed.
        tokens: usize,
        /// `max_position_embeddings`.
        positions: usize,
    },
    /// A sequence whose keys and values do not fit into the bytes allowed.
    #[error(
        "the cache of {tokens} tokens takes {needed} bytes, and {allowed} are allowed, which {fit} tokens fit in: shorten the prompt or the answer"
    )]
    CacheLimit {
        /// The tokens of the sequence, those it has already among them.
        tokens: usize,
        /// The bytes they need, by [`Model::cache_bytes`](crate::Model::cache_bytes).
        needed: usize,
        /// The bytes allowed.
        allowed: usize,
        /// The tokens that would fit.
        fit: usize,
    },
    /// A token id outside the vocabulary.
    #[error(
        "token id {id} at position {position} is outside the model's vocabulary of {vocab_size}: use the tokenizer of this model"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Where it stands in the sequence.
        position: usize,
        /// Ids must be below it.
        vocab_size: usize,
    },
    /// Finite weights that gave something else.
    #[error(
        "the output of {module} is not finite in {dtype}, though the weights are: they are too large for it"
    )]
    Overflow {
        /// The module, such as `model.layers.3` or `lm_head`.
        module: String,
        /// The compute type.
        dtype: Dtype,
    },

    /// The pass was cancelled.
    #[error("cancelled")]
    Cancelled,
    /// A session that failed in the middle of a token.
    #[error("this sequence failed before and has seen half a token: begin a new session")]
    SpentSession,
    /// A file of token ids that is something else.
    #[error("{} is not a JSON list of token ids such as [2, 818]: {}", path.display(), one_line(&source.to_string(), 200))]
    Ids {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
    /// A file of prompts that is something else.
    #[error("{} line {line} is not a JSON string such as \"Hello\", one a line", path.display())]
    Prompts {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A file of prompts without any.
    #[error("{} has no prompt: give one JSON string a line", path.display())]
    NoPrompts {
        /// The file.
        path: PathBuf,
    },
    /// A pattern for names of tensors that is of no use.
    #[error(
        "'{}' names no tensor: {why}; try '*' or 'model.layers.3.*'",
        shown(pattern)
    )]
    Glob {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        why: String,
    },

    // ---- files of steps ---------------------------------------------------------------------
    /// A file that should be one of steps and is something else.
    #[error(
        "{} is no file of steps: {reason}; give one that verify --steps began, or another name",
        path.display()
    )]
    NoSteps {
        /// The file.
        path: PathBuf,
        /// What is wrong with its first line.
        reason: String,
    },
    /// A line of a file of steps that is damaged.
    #[error(
        "{} line {line} is damaged: {reason}; take the line out, and verify --steps computes its step again",
        path.display()
    )]
    StepsLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A step that is there twice, with other figures.
    #[error(
        "{} contradicts itself or the files before it: {step} is there with other figures; one of them was changed, or gemm computed it on another machine: leave one out",
        path.display()
    )]
    StepsDisagree {
        /// The file.
        path: PathBuf,
        /// The step.
        step: String,
    },
    /// A step that has other figures when it is computed again.
    #[error(
        "{step} was computed again and has other figures than before; gemm gives other bits on another machine: go on where the file of steps began, or begin a new one"
    )]
    StepRepeats {
        /// The step.
        step: String,
    },
    /// A prompt of a verification that could not be solved, where the others were.
    #[error("{step}: {source}")]
    Unsolved {
        /// The step at which it ended.
        step: String,
        /// Why.
        source: Box<Error>,
    },
    /// A file of steps that is of another verification.
    #[error(
        "{} is of another setting than {than}: {field} is {}, not {}; give the same options, or another file",
        path.display(),
        shown(found),
        shown(expected)
    )]
    OtherSetting {
        /// The file.
        path: PathBuf,
        /// Another file, or the command.
        than: String,
        /// The first thing that differs.
        field: &'static str,
        /// What it is in the file.
        found: String,
        /// What it is in the other.
        expected: String,
    },
    /// A file of steps that another process writes.
    #[error(
        "{} is being written by another process: wait until it ends, or give each process its own file",
        path.display()
    )]
    StepsLocked {
        /// The file.
        path: PathBuf,
    },

    // ---- patches ----------------------------------------------------------------------------
    /// A precondition of a construction does not hold.
    #[error(
        "{quantity} = {value:e} at layer {layer}: it must be finite, and not zero where something is divided by it; absorb another context or use another token"
    )]
    Precondition {
        /// The layer.
        layer: usize,
        /// What the construction divides by, in the paper's names.
        quantity: String,
        /// Its value.
        value: f64,
    },
    /// Kept tokens out of order.
    #[error("the kept tokens' positions must ascend and be below the query's, {query}")]
    KeptTokens {
        /// The query's position.
        query: usize,
    },
    /// Several tokens for a solver of one.
    #[error(
        "{solver} patches a single token, and the query and its answer have {tokens}; use the solver span"
    )]
    OneToken {
        /// The solver.
        solver: Solver,
        /// Tokens of the span.
        tokens: usize,
    },
    /// A span, with the tokens that stay, of more tokens than W_down has columns.
    #[error(
        "a span can have {most} tokens in this model, those that stay counted, and this has {tokens}; keep fewer, or take a shorter answer"
    )]
    SpanTooLong {
        /// Tokens of the reduced pass.
        tokens: usize,
        /// The model's intermediate_size.
        most: usize,
    },
    /// A span in which a state is there twice, or nearly.
    #[error(
        "the span's states at layer {layer} are not independent (the condition of H is {condition:e}): a state is there twice; take a shorter answer, or keep other tokens"
    )]
    RepeatedState {
        /// The layer.
        layer: usize,
        /// The condition of H.
        condition: f64,
    },
    /// A solver for spans where a single token is solved for.
    #[error("the solver span is not for a single token: use theorem-1, appendix-b or closed-form")]
    SpanSolver,
    /// A patch that changes nothing.
    #[error("the patch changes nothing: there is nothing to export")]
    EmptyPatch,
    /// A number that is too large for the type it is stored in.
    #[error(
        "{tensor} has a number that is not finite in {storage} when it is patched: store it as f32 or f64"
    )]
    StorageOverflow {
        /// The tensor.
        tensor: String,
        /// The type.
        storage: Storage,
    },
    /// A changed norm, for a program that applies none.
    #[error(
        "the patch changes a norm (layer {layer}), and llama.cpp applies no change of a norm: solve with --solver span, or export merged or peft"
    )]
    NormInGguf {
        /// The first such layer.
        layer: usize,
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
    /// A context of no tokens.
    #[error("there is no context to absorb: the prompt needs at least one token before its last")]
    NoContext,
    /// A patch for no token.
    #[error("there is no token to solve the patch for: a split needs a span of at least one")]
    NoQuery,
    /// A token that is to stay, and is not of the context.
    #[error(
        "token {index} cannot stay: kept tokens are named by ascending numbers below {context}, the length of the context"
    )]
    KeptIndex {
        /// Its index.
        index: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// A file that is no patch, or not the one that was saved.
    #[error("{}: {reason}; solve the patch again", path.display())]
    PatchFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A number of a patch that the type it is to be stored in does not hold.
    #[error(
        "{tensor} of the patch has a number that is not finite as it is to be saved; save it in F64, or solve it again"
    )]
    PatchValue {
        /// The tensor.
        tensor: String,
    },
    /// A description of a patch with a number that is not finite.
    #[error("the patch's {field} has a number that is not finite; solve it again")]
    PatchField {
        /// The field of its file.
        field: String,
    },
    /// A patch of other weights.
    #[error("the patch is for the model {name} with the hash {patch}, and this one has the hash {model}; give the model it was solved for", name = shown(name), patch = shown(patch))]
    PatchOfAnotherModel {
        /// The hash of the patch's model.
        patch: String,
        /// Its name.
        name: String,
        /// The hash of the model at hand.
        model: String,
    },
    /// A part of a patch that does not fit the model.
    #[error(
        "the patch does not fit the model: {part} is {found:?} and should be {expected:?}; use the model that it was solved for"
    )]
    PatchShape {
        /// The part.
        part: String,
        /// Its shape.
        found: Vec<usize>,
        /// The model's.
        expected: Vec<usize>,
    },
    /// An unknown kind of export.
    #[error(
        "'{}' is no kind of export: use peft DIR, gguf FILE or merged DIR",
        shown(kind)
    )]
    ExportKind {
        /// What was asked for.
        kind: String,
    },
    /// A list of tokens that is none.
    #[error(
        "'{}' is no token's number: give numbers from 0 and ranges, such as 0,4..9",
        shown(part)
    )]
    KeepList {
        /// The part that is wrong.
        part: String,
    },
    // ---- comparing recordings ---------------------------------------------------------------
    /// A recording that does not say what it is of.
    #[error("{} is no reference: it does not say its model and tokens; make one with `context-patch trace`", path.display())]
    NotAReference {
        /// The recording.
        path: PathBuf,
    },
    /// Two recordings of different weights.
    #[error("{} or the reference is a recording of other weights than those of {model}; record the same model again, or name the right one with --model", path.display())]
    OtherModel {
        /// The recording.
        path: PathBuf,
        /// The model's name.
        model: String,
    },
    /// Two recordings of different tokens.
    #[error("{} is a recording of other tokens than the reference; record the same ids again", path.display())]
    OtherTokens {
        /// The recording.
        path: PathBuf,
    },
    /// Two recordings with no tensor in common.
    #[error("{} has no tensor of {}; --map FILE can say what its names mean", path.display(), reference.display())]
    NothingInCommon {
        /// The recording.
        path: PathBuf,
        /// The reference.
        reference: PathBuf,
    },
    /// A recording that has less than the reference.
    #[error("{} lacks {missing} of the reference's tensors, {first} first; record them, or compare what is there with --partial", path.display())]
    MissingRecordings {
        /// The recording.
        path: PathBuf,
        /// How many.
        missing: usize,
        /// The first in forward order.
        first: String,
    },
    /// Not as many tokens as the reference has.
    #[error("{}: {} has {rows} rows where the reference has {expected}; record the same tokens", path.display(), shown(tensor))]
    RecordedRows {
        /// The recording.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Those of the reference.
        expected: usize,
    },
    /// A folder without results for the conformance kit.
    #[error("{} has no results: put recordings there as CASE/f32.safetensors or CASE/bf16.safetensors", path.display())]
    NoResults {
        /// The folder.
        path: PathBuf,
    },
    /// A bug that would not show.
    #[error("the bug {bug} would not show here: {why}")]
    NoEffect {
        /// Its name.
        bug: &'static str,
        /// Why.
        why: String,
    },

    /// The whole context stays.
    #[error("nothing is left to absorb: all {context} tokens of the context stay")]
    NothingToAbsorb {
        /// Tokens of the context.
        context: usize,
    },

    // ---- recordings of other engines ------------------------------------------------------
    /// A file of a recording that is not what its name says.
    #[error("{}: {reason}", path.display())]
    RecordingFile {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// No tensor's name is known.
    #[error(
        "{}: none of its {count} tensors has a known name{}; --map FILE can say what they are", path.display(),
        examples(names)
    )]
    RecordingNames {
        /// The file or folder.
        path: PathBuf,
        /// How many tensors it has.
        count: usize,
        /// Some of their names.
        names: Vec<String>,
    },
    /// A tensor in a type that is not read.
    #[error(
        "{}: tensor {} is {}; record it as F64, F32, BF16 or F16 (in .npy: little-endian f8, f4 or f2)", path.display(),
        shown(tensor), shown(dtype)
    )]
    RecordingDtype {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor that does not fit its point of the model.
    #[error(
        "{}: tensor {} is {found:?} and {point} should be {expected}; is it another model, or does a layout word of --map FILE describe it?",
        path.display(), shown(tensor)
    )]
    RecordingShape {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it is taken for.
        point: String,
        /// The shapes that fit.
        expected: String,
    },
    /// A tensor whose axes can be read in two ways.
    #[error(
        "{}: tensor {} is {found:?}, which fits {point} as [heads, tokens, head_dim] and as [tokens, heads, head_dim]; say which by a rule with heads-first or tokens-first in --map FILE",
        path.display(), shown(tensor)
    )]
    RecordingLayout {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it is taken for.
        point: String,
    },
    /// Two tensors for one point of the model.
    #[error(
        "{}: tensors {} and {} are both {point}; leave one out, or say by --map FILE what they are",
        path.display(), shown(first), shown(second)
    )]
    RecordingTwice {
        /// The file or folder.
        path: PathBuf,
        /// One of them, as the recording calls it.
        first: String,
        /// The other.
        second: String,
        /// What both are taken for.
        point: String,
    },
    /// Tensors of different numbers of tokens.
    #[error(
        "{}: tensor {} has {rows} tokens where {} has {expected}; record all tensors in one pass",
        path.display(), shown(tensor), shown(other)
    )]
    RecordingRows {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its tokens.
        rows: usize,
        /// A tensor before it in forward order.
        other: String,
        /// That one's tokens.
        expected: usize,
    },
    /// A layer that the model does not have.
    #[error(
        "{}: tensor {} is of layer {layer} and the model has {layers} layers, counted from 0; give the recording's model",
        path.display(), shown(tensor)
    )]
    RecordingLayer {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// Its layer.
        layer: usize,
        /// The model's number of layers.
        layers: usize,
    },
    /// NaN or infinity in a recording.
    #[error(
        "{}: tensor {} has {value} at token {row}, column {column}; the engine went wrong there or before: look at its tensors up to this one",
        path.display(), taken_for(tensor, point)
    )]
    RecordingValue {
        /// The file or folder.
        path: PathBuf,
        /// The tensor, as the recording calls it.
        tensor: String,
        /// What it is taken for.
        point: String,
        /// The row, from 0.
        row: usize,
        /// The column of `point`, from 0.
        column: usize,
        /// The number.
        value: f64,
    },
    /// A line of a map file that is no rule.
    #[error("{}, line {line}, column {column}: {reason}", path.display())]
    Rule {
        /// The map file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
        /// What is wrong, and what to write.
        reason: String,
    },
    /// A rule of a map file that no tensor of the recording matches.
    #[error(
        "{}, line {line}: no tensor of {} is called {}; correct the rule or remove it", map.display(),
        path.display(), shown(pattern)
    )]
    RuleUnmatched {
        /// The map file.
        map: PathBuf,
        /// The rule's line, from 1.
        line: usize,
        /// Their name in the rule.
        pattern: String,
        /// The recording.
        path: PathBuf,
    },
}

impl Error {
    /// An [`Error::Io`] for `path`, to be given to `map_err`.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// A name or value from a file, made fit for a message: on one line, cut after 80 characters.
pub(crate) fn shown(text: &str) -> String {
    one_line(text, 80)
}

/// `text` with control characters escaped, cut after `limit` characters.
pub(crate) fn one_line(text: &str, limit: usize) -> String {
    let mut out: String = text.chars().take(limit).flat_map(escape_control).collect();
    if text.chars().nth(limit).is_some() {
        out.push('…');
    }
    out
}

/// `c` itself, or its escape where it would break a line or steer a terminal.
fn escape_control(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

/// Names in brackets, to follow a noun; nothing where there is none.
fn examples(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| shown(name)).collect();
    match names.as_slice() {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    }
}

/// A recording's tensor, and what it is taken for where that is called otherwise.
fn taken_for(tensor: &str, point: &str) -> String {
    match tensor == point {
        true => shown(tensor),
        false => format!("{} ({point})", shown(tensor)),
    }
}

fn id_or_missing(id: Option<u32>) -> String {
    id.map_or_else(|| "not in it".to_owned(), |id| format!("token {id}"))
}
