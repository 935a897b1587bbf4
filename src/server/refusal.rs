//! Why a request has no answer, in OpenAI's shape.

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::error::Error;
use crate::message::one_line;

/// A refused request, as OpenAI's API words it: a status, and an object with `message`, `type`, `param` and `code`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
}

/// The request is at fault.
const INVALID: &str = "invalid_request_error";

impl Refusal {
    fn new(status: StatusCode, kind: &'static str, message: impl AsRef<str>) -> Self {
        Self {
            status,
            kind,
            code: None,
            param: None,
            message: one_line(message.as_ref(), 500),
        }
    }

    /// The request is at fault as a whole.
    pub(super) fn bad(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, INVALID, message)
    }

    /// One of its parameters is at fault.
    pub(super) fn parameter(param: impl Into<String>, message: impl AsRef<str>) -> Self {
        Self {
            param: Some(param.into()),
            ..Self::bad(message)
        }
    }

    /// One of its parameters is known, and not supported.
    pub(super) fn unsupported(param: impl Into<String>, instead: &str) -> Self {
        let param = param.into();
        let message = format!("'{param}' is not supported by this server: {instead}");
        Self {
            code: Some("unsupported_parameter"),
            ..Self::parameter(param, message)
        }
    }

    /// Prompt and answer do not fit.
    pub(super) fn too_long(param: &str, message: impl AsRef<str>) -> Self {
        Self {
            code: Some("context_length_exceeded"),
            ..Self::parameter(param, message)
        }
    }

    /// The body is larger than `limit` bytes.
    pub(super) fn too_large(limit: usize) -> Self {
        let message = format!("the body has more than the {limit} bytes that are allowed");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, INVALID, message)
    }

    /// The body did not come.
    pub(super) fn timeout(message: &str) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, INVALID, message)
    }

    /// No or a wrong key.
    pub(super) fn unauthorized() -> Self {
        Self {
            code: Some("invalid_api_key"),
            ..Self::new(
                StatusCode::UNAUTHORIZED,
                INVALID,
                "no such API key: send one of the server's as 'Authorization: Bearer KEY'",
            )
        }
    }

    /// A model that there is not.
    pub(super) fn no_model(model: &str) -> Self {
        Self {
            code: Some("model_not_found"),
            param: Some("model".into()),
            ..Self::new(
                StatusCode::NOT_FOUND,
                INVALID,
                format!(
                    "the model '{}' does not exist: GET /v1/models lists those that do",
                    one_line(model, 80)
                ),
            )
        }
    }

    /// A path that there is not.
    pub(super) fn no_path(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, INVALID, message)
    }

    /// A path that has other methods.
    pub(super) fn method(message: &str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, INVALID, message)
    }

    /// Too many wait already.
    pub(super) fn queue_full() -> Self {
        Self {
            code: Some("rate_limit_exceeded"),
            ..Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                "as many requests are waiting as may: try again later",
            )
        }
    }

    /// The server is about to end.
    pub(super) fn shutting_down() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "service_unavailable",
            "the server is shutting down",
        )
    }

    /// The server is at fault.
    pub(super) fn internal(message: impl AsRef<str>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
    }

    /// What a client is told, as the whole answer or within a stream.
    pub fn body(&self) -> Value {
        json!({ "error": {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }})
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status.as_u16()
    }
}

/// What the library refuses before it computes is the request's fault.
impl<E: Into<Error>> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::bad(error.into().to_string())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let json = [(header::CONTENT_TYPE, "application/json")];
        let body = self.body().to_string();
        let mut response = (self.status, json, body).into_response();
        let mut add = |name: HeaderName, value: &'static str| {
            let value = axum::http::HeaderValue::from_static(value);
            response.headers_mut().insert(name, value);
        };
        match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                add(header::RETRY_AFTER, "1");
            }
            StatusCode::UNAUTHORIZED => add(header::WWW_AUTHENTICATE, "Bearer"),
            _ => {}
        }
        response
    }
}
