//! What clients ask for: OpenAI's parameters for completions and chats, checked.
//!
//! These are pure functions of a body. Parameters that nobody knows are ignored, as OpenAI ignores them; those of its API that would
//! change the answer and that this server does not have are refused by name.

use serde::Serialize;
use serde_json::{Map, Value};

use super::parameters::{Parameters, mistyped};
use super::refusal::Refusal;
use crate::model::generate::Sampling;

/// Answers to one prompt at most.
const MOST_ANSWERS: i64 = 128;
/// Likeliest tokens that can be asked for.
const MOST_LIKELIEST: i64 = 20;
/// Strings at which an answer ends.
const MOST_STOPS: usize = 4;
/// Tokens that a completion has where the request does not say.
const COMPLETION_TOKENS: usize = 16;

/// A request for completions.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The model; the one that was loaded where it is not said.
    pub model: Option<String>,
    /// The prompts, at least one.
    pub prompts: Vec<Prompt>,
    /// Whether an answer begins with its prompt.
    pub echo: bool,
    /// How they are answered.
    pub settings: Settings,
}

/// What is continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// A text that is not empty.
    Text(String),
    /// Tokens of the vocabulary, at least one.
    Ids(Vec<u32>),
}

/// A request for the next message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The model; the one that was loaded where it is not said.
    pub model: Option<String>,
    /// What was said, at least one message.
    pub messages: Vec<ChatMessage>,
    /// What else the chat template is given.
    pub template_arguments: Map<String, Value>,
    /// How it is answered.
    pub settings: Settings,
}

/// A message in text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Who said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// How prompts are answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Tokens of an answer at most.
    pub max_tokens: Option<usize>,
    /// Answers to each prompt.
    pub n: usize,
    /// How tokens are drawn, but for the seed.
    pub sampling: Sampling,
    /// The seed that was asked for.
    pub seed: Option<u64>,
    /// Texts before which an answer ends, none of them empty.
    pub stop: Vec<String>,
    /// Whether the answer comes in pieces.
    pub stream: bool,
    /// Whether a last piece says what was used.
    pub include_usage: bool,
    /// Whether the log-probability of each token is wanted, and of how many of the likeliest beside it.
    pub logprobs: Option<usize>,
}

impl CompletionRequest {
    /// Reads the body of `POST /v1/completions`, for a vocabulary of this many tokens.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] with status 400.
    pub fn parse(body: &[u8], vocabulary: usize) -> Result<Self, Refusal> {
        let body = Parameters::parse(body)?;
        refuse_unsupported(&body)?;
        let n = body.integer("n", 1..=MOST_ANSWERS)?.unwrap_or(1);
        if body.integer("best_of", 1..=MOST_ANSWERS)?.unwrap_or(n) != n {
            return Err(Refusal::unsupported(
                "best_of",
                "leave it out, or let it be n",
            ));
        }
        let likeliest = body.integer("logprobs", 0..=MOST_LIKELIEST)?;
        let mut settings = Settings::of(&body, vocabulary)?;
        settings.max_tokens = Some(tokens(&body, "max_tokens", 0)?.unwrap_or(COMPLETION_TOKENS));
        settings.logprobs = likeliest.map(|count| count as usize);
        Ok(Self {
            model: body.string("model")?.map(str::to_owned),
            prompts: prompts(&body, vocabulary)?,
            echo: body.boolean("echo")?.unwrap_or(false),
            settings,
        })
    }
}

impl ChatRequest {
    /// Reads the body of `POST /v1/chat/completions`, for a vocabulary of this many tokens.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] with status 400.
    pub fn parse(body: &[u8], vocabulary: usize) -> Result<Self, Refusal> {
        let body = Parameters::parse(body)?;
        refuse_unsupported(&body)?;
        let likeliest = body.integer("top_logprobs", 0..=MOST_LIKELIEST)?;
        let logprobs = body.boolean("logprobs")?.unwrap_or(false);
        if likeliest.is_some_and(|count| count > 0) && !logprobs {
            let message = "'top_logprobs' needs 'logprobs' to be true";
            return Err(Refusal::parameter("top_logprobs", message));
        }
        let mut settings = Settings::of(&body, vocabulary)?;
        let newer = tokens(&body, "max_completion_tokens", 1)?;
        settings.max_tokens = newer.or(tokens(&body, "max_tokens", 1)?);
        settings.logprobs = logprobs.then_some(likeliest.unwrap_or(0) as usize);
        let arguments = body.object("chat_template_kwargs")?;
        let template_arguments = arguments.map(Parameters::into_map).unwrap_or_default();
        if template_arguments.contains_key("messages") {
            let message = "'chat_template_kwargs' has 'messages', which stand in the request";
            return Err(Refusal::parameter("chat_template_kwargs", message));
        }
        Ok(Self {
            model: body.string("model")?.map(str::to_owned),
            messages: messages(&body)?,
            template_arguments,
            settings,
        })
    }
}

impl Settings {
    /// Those that both kinds of requests have.
    fn of(body: &Parameters, vocabulary: usize) -> Result<Self, Refusal> {
        let number = |name, allowed, default| -> Result<f64, Refusal> {
            Ok(body.number(name, allowed)?.unwrap_or(default))
        };
        let stream = body.boolean("stream")?.unwrap_or(false);
        let options = body.object("stream_options")?;
        if options.is_some() && !stream {
            let message = "'stream_options' needs 'stream' to be true";
            return Err(Refusal::parameter("stream_options", message));
        }
        let usage = options.map(|options| options.boolean("include_usage"));
        let sampling = Sampling {
            temperature: number("temperature", 0.0..=2.0, 1.0)?,
            // vLLM's clients write -1 for all of them.
            top_k: body.integer("top_k", -1..=i64::MAX)?.unwrap_or(0).max(0) as usize,
            top_p: number("top_p", 0.0..=1.0, 1.0)?,
            min_p: number("min_p", 0.0..=1.0, 0.0)?,
            presence_penalty: number("presence_penalty", -2.0..=2.0, 0.0)?,
            frequency_penalty: number("frequency_penalty", -2.0..=2.0, 0.0)?,
            logit_bias: logit_bias(body, vocabulary)?,
            ..Sampling::default()
        };
        Ok(Self {
            max_tokens: None,
            n: body.integer("n", 1..=MOST_ANSWERS)?.unwrap_or(1) as usize,
            sampling,
            seed: body
                .integer("seed", i64::MIN..=i64::MAX)?
                .map(|seed| seed as u64),
            stop: stop(body)?,
            stream,
            include_usage: usage.transpose()?.flatten().unwrap_or(false),
            logprobs: None,
        })
    }
}

/// A number of tokens that is at least `least`.
fn tokens(body: &Parameters, name: &str, least: i64) -> Result<Option<usize>, Refusal> {
    let count = body.integer(name, least..=i64::MAX)?;
    Ok(count.map(|count| count as usize))
}

fn logit_bias(body: &Parameters, vocabulary: usize) -> Result<Vec<(u32, f64)>, Refusal> {
    let Some(map) = body.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let mut biases = Vec::new();
    for name in map.names() {
        let id: Option<u32> = name.parse().ok().filter(|id| (*id as usize) < vocabulary);
        let Some(id) = id else {
            let message = format!("'logit_bias': '{name}' is not a token id below {vocabulary}");
            return Err(Refusal::parameter("logit_bias", message));
        };
        biases.extend(map.number(name, -100.0..=100.0)?.map(|bias| (id, bias)));
    }
    biases.sort_unstable_by_key(|(id, _)| *id);
    Ok(biases)
}

fn stop(body: &Parameters) -> Result<Vec<String>, Refusal> {
    let stops: Vec<String> = match body.get("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop.clone()],
        Some(Value::Array(list)) => {
            let stop = |(i, value): (usize, &Value)| match value {
                Value::String(stop) => Ok(stop.clone()),
                other => Err(mistyped(format!("stop[{i}]"), "a string", other)),
            };
            list.iter()
                .enumerate()
                .map(stop)
                .collect::<Result<_, _>>()?
        }
        Some(other) => {
            return Err(mistyped(
                "stop".into(),
                "a string or a list of strings",
                other,
            ));
        }
    };
    if stops.len() > MOST_STOPS {
        let message = format!(
            "'stop' must have at most {MOST_STOPS} strings, and has {}",
            stops.len()
        );
        return Err(Refusal::parameter("stop", message));
    }
    if stops.iter().any(String::is_empty) {
        return Err(Refusal::parameter(
            "stop",
            "'stop' must have no empty string",
        ));
    }
    Ok(stops)
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
fn prompts(body: &Parameters, vocabulary: usize) -> Result<Vec<Prompt>, Refusal> {
    let prompts = match body.get("prompt") {
        None => return Err(Refusal::parameter("prompt", "'prompt' is missing")),
        Some(Value::Array(list)) if list.iter().any(Value::is_number) => {
            vec![Prompt::Ids(ids(list, "prompt", vocabulary)?)]
        }
        Some(Value::Array(list)) => {
            let prompts = list.iter().enumerate();
            let prompt =
                |(i, value): (usize, &Value)| prompt(value, format!("prompt[{i}]"), vocabulary);
            prompts.map(prompt).collect::<Result<_, _>>()?
        }
        Some(value) => vec![prompt(value, "prompt".into(), vocabulary)?],
    };
    if prompts.is_empty() {
        return Err(Refusal::parameter("prompt", "'prompt' must not be empty"));
    }
    Ok(prompts)
}

fn prompt(value: &Value, path: String, vocabulary: usize) -> Result<Prompt, Refusal> {
    match value {
        Value::String(text) if text.is_empty() => {
            let message = format!("'{path}' must not be empty");
            Err(Refusal::parameter(path, message))
        }
        Value::String(text) => Ok(Prompt::Text(text.clone())),
        Value::Array(list) => Ok(Prompt::Ids(ids(list, &path, vocabulary)?)),
        other => Err(mistyped(path, "a string or a list of token ids", other)),
    }
}

fn ids(list: &[Value], path: &str, vocabulary: usize) -> Result<Vec<u32>, Refusal> {
    if list.is_empty() {
        return Err(Refusal::parameter(
            path,
            format!("'{path}' must not be empty"),
        ));
    }
    let id = |(i, value): (usize, &Value)| {
        let id = value.as_u64().filter(|id| *id < vocabulary as u64);
        id.map(|id| id as u32).ok_or_else(|| {
            let message = format!("'{path}[{i}]' is not a token id below {vocabulary}");
            Refusal::parameter(path, message)
        })
    };
    list.iter().enumerate().map(id).collect()
}

fn messages(body: &Parameters) -> Result<Vec<ChatMessage>, Refusal> {
    let messages = body.objects("messages")?;
    let messages = messages.filter(|messages| !messages.is_empty());
    let Some(messages) = messages else {
        let message = "'messages' must have at least one message";
        return Err(Refusal::parameter("messages", message));
    };
    messages.iter().map(message).collect()
}

fn message(message: &Parameters) -> Result<ChatMessage, Refusal> {
    for name in ["tool_calls", "function_call", "audio"] {
        let value = message.get(name);
        if value.is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
            return Err(Refusal::unsupported(
                message.path(name),
                "messages are text",
            ));
        }
    }
    let role = match message.string("role")? {
        // What newer clients call it; templates know the older name.
        Some("developer") => "system",
        Some(role @ ("system" | "user" | "assistant")) => role,
        Some("tool" | "function") => {
            let roles = "roles are system, developer, user and assistant";
            return Err(Refusal::unsupported(message.path("role"), roles));
        }
        _ => {
            let path = message.path("role");
            let text = format!("'{path}' must be system, developer, user or assistant");
            return Err(Refusal::parameter(path, text));
        }
    };
    Ok(ChatMessage {
        role: role.into(),
        content: content(message)?,
        name: message.string("name")?.map(str::to_owned),
    })
}

/// A text, or the texts of several parts, a line each.
fn content(message: &Parameters) -> Result<String, Refusal> {
    if let Some(Value::String(text)) = message.get("content") {
        return Ok(text.clone());
    }
    let Some(parts) = message.objects("content")? else {
        let path = message.path("content");
        let text = format!("'{path}' is missing");
        return Err(Refusal::parameter(path, text));
    };
    let text = |part: &Parameters| match part.string("type")? {
        Some("text") => part.string("text")?.map(str::to_owned).ok_or_else(|| {
            let path = part.path("text");
            let text = format!("'{path}' is missing");
            Refusal::parameter(path, text)
        }),
        _ => Err(Refusal::unsupported(part.path("type"), "messages are text")),
    };
    let texts: Vec<String> = parts.iter().map(text).collect::<Result<_, _>>()?;
    Ok(texts.join("\n"))
}

/// Parameters that would change the answer and are not supported: the values that change nothing, and what to do.
const UNSUPPORTED: [(&str, &[&str], &str); 25] = [
    ("audio", &[], "answers are text"),
    (
        "continue_final_message",
        &["false"],
        "use /v1/completions to continue a text",
    ),
    (
        "function_call",
        &[r#""none""#, r#""auto""#],
        "answers are text",
    ),
    ("functions", &["[]"], "answers are text"),
    ("grammar", &[r#""""#], "answers are free text"),
    ("guided_choice", &[], "answers are free text"),
    ("guided_json", &[], "answers are free text"),
    ("guided_regex", &[], "answers are free text"),
    (
        "ignore_eos",
        &["false"],
        "bias the end token by -100 in logit_bias",
    ),
    ("min_tokens", &["0"], "bias the end token in logit_bias"),
    ("modalities", &[r#"["text"]"#], "answers are text"),
    ("prediction", &[], "leave it out"),
    (
        "prompt_logprobs",
        &["0", "false"],
        "use echo with logprobs of /v1/completions",
    ),
    (
        "reasoning_effort",
        &[],
        "say it in chat_template_kwargs, if the template knows it",
    ),
    (
        "repetition_penalty",
        &["1.0", "1"],
        "use presence_penalty and frequency_penalty",
    ),
    (
        "response_format",
        &[r#"{"type":"text"}"#],
        "answers are free text",
    ),
    ("stop_token_ids", &["[]"], "use stop"),
    ("store", &["false"], "nothing is stored"),
    ("structured_outputs", &[], "answers are free text"),
    ("suffix", &[r#""""#], "there is only a prompt to continue"),
    (
        "tool_choice",
        &[r#""none""#, r#""auto""#],
        "answers are text",
    ),
    ("tools", &["[]"], "answers are text"),
    ("use_beam_search", &["false"], "there is no beam search"),
    ("verbosity", &[], "say it in a message"),
    ("web_search_options", &[], "the model has its weights alone"),
];

fn refuse_unsupported(body: &Parameters) -> Result<(), Refusal> {
    for (name, harmless, instead) in UNSUPPORTED {
        let Some(value) = body.get(name) else {
            continue;
        };
        if !harmless.contains(&&*value.to_string()) {
            return Err(Refusal::unsupported(name, instead));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
