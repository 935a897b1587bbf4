//! Requests and responses: what is accepted, and how it is refused.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use context_patch::tensor::Element;
use futures_core::Stream;
use serde::Deserialize;
use serde_json::json;

use super::engine::{Answer, Engine};

/// What a client asks for. Fields it does not know are refused, so that a misspelt one is noticed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Request {
    pub(super) prompt: String,
    #[serde(default = "default_max_tokens")]
    pub(super) max_tokens: usize,
    #[serde(default)]
    pub(super) temperature: f64,
    #[serde(default)]
    pub(super) top_k: usize,
    #[serde(default = "default_top_p")]
    pub(super) top_p: f64,
    #[serde(default)]
    pub(super) seed: u64,
}

fn default_max_tokens() -> usize {
    128
}

fn default_top_p() -> f64 {
    1.0
}

impl Request {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let request: Self = serde_json::from_slice(body)
            .map_err(|error| Refusal::bad(format!("the body is no such request: {error}")))?;
        let wrong = if request.prompt.is_empty() {
            "prompt must not be empty"
        } else if request.max_tokens == 0 {
            "max_tokens must be at least 1"
        } else if request.temperature < 0.0 {
            "temperature must be 0 or more"
        } else if !(request.top_p > 0.0 && request.top_p <= 1.0) {
            "top_p must be above 0 and at most 1"
        } else {
            return Ok(request);
        };
        Err(Refusal::bad(wrong))
    }
}

/// Why a request has no answer.
pub(super) struct Refusal {
    status: StatusCode,
    reason: String,
}

impl Refusal {
    /// The request itself is at fault.
    fn bad(reason: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            reason: reason.into(),
        }
    }

    /// It may be sent again later.
    pub(super) fn unavailable(reason: &str) -> Self {
        Self {
            status: StatusCode::SERVICE_UNAVAILABLE,
            reason: reason.into(),
        }
    }

    /// The server is at fault.
    pub(super) fn internal() -> Self {
        Self {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            reason: "internal error; the server's log has it".into(),
        }
    }
}

/// What the library refuses before it computes is the request's fault.
impl<E: Into<context_patch::Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::bad(error.into().to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let json = format!("{}\n", json!({ "error": self.reason }));
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (self.status, kind, json).into_response()
    }
}

/// The paths; a body has at most `body` bytes.
pub(super) fn router<E: Element>(engine: Arc<Engine<E>>, body: usize) -> Router {
    let refuse = |status, reason: &'static str| Refusal {
        status,
        reason: reason.into(),
    };
    Router::new()
        .route("/generate", post(generate::<E>))
        .route("/health", get(health::<E>))
        .fallback(move || async move {
            let paths = "no such path; there are POST /generate and GET /health";
            refuse(StatusCode::NOT_FOUND, paths)
        })
        .method_not_allowed_fallback(move || async move {
            let methods = "POST /generate, and GET /health";
            refuse(StatusCode::METHOD_NOT_ALLOWED, methods)
        })
        .layer(DefaultBodyLimit::max(body))
        .with_state(engine)
}

async fn generate<E: Element>(
    State(engine): State<Arc<Engine<E>>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refusal> {
    let body = body.map_err(|rejection| Refusal {
        status: rejection.status(),
        reason: rejection.body_text(),
    })?;
    let answer = engine.answer(Request::parse(&body)?).await?;
    let kind = [(header::CONTENT_TYPE, "application/x-ndjson")];
    Ok((kind, Body::from_stream(Lines(answer))).into_response())
}

async fn health<E: Element>(State(engine): State<Arc<Engine<E>>>) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, format!("{}\n", engine.health())).into_response()
}

/// An answer as a body.
struct Lines(Answer);

impl Stream for Lines {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let line = self.0.poll_line(context);
        line.map(|line| line.map(|line| Ok(line.into())))
    }
}
