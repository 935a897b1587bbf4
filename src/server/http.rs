//! The paths, and who may take them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::app::{App, Submitted, alone};
use super::parameters::Parameters;
use super::refusal::Refusal;
use super::request::{ChatRequest, CompletionRequest};
use super::stream::EventStream;

type Shared = State<Arc<App>>;

/// A JSON answer.
struct Json(Value);

impl IntoResponse for Json {
    fn into_response(self) -> Response {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        (kind, self.0.to_string()).into_response()
    }
}

/// The paths of a server.
pub(super) fn router(app: &Arc<App>) -> Router {
    let mut v1 = Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model));
    if app.options.admin {
        v1 = v1
            .route("/v1/patches", post(load_patch))
            .route("/v1/patches/{name}", delete(unload_patch));
    }
    v1.route_layer(from_fn_with_state(Arc::clone(app), check_key))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(no_path)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(Arc::clone(app), count_and_share))
        .with_state(Arc::clone(app))
}

async fn no_path() -> Refusal {
    Refusal::no_path(
        "no such path: there are POST /v1/completions and /v1/chat/completions, GET /v1/models, /health and /metrics",
    )
}

async fn no_method() -> Refusal {
    Refusal::method("that path has another method: completions are POST, everything else is GET")
}

/// Counts every answer, and lets the pages of an origin read them where that was asked for.
async fn count_and_share(State(app): Shared, request: Request, next: Next) -> Response {
    let origin = app.options.cors.as_deref();
    let origin = origin.and_then(|origin| HeaderValue::from_str(origin).ok());
    let mut response = if origin.is_some() && request.method() == Method::OPTIONS {
        StatusCode::NO_CONTENT.into_response()
    } else {
        next.run(request).await
    };
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        for (name, value) in [
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                "authorization, content-type, x-receipt",
            ),
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, DELETE"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    app.metrics.request(response.status().as_u16());
    response
}

/// Refuses who has no key, where keys are asked for.
async fn check_key(State(app): Shared, request: Request, next: Next) -> Result<Response, Refusal> {
    let keys = &app.options.keys;
    if keys.is_empty() || has_key(request.headers(), keys) {
        return Ok(next.run(request).await);
    }
    Err(Refusal::unauthorized())
}

/// Hashes are compared, so that the time tells nothing of a key.
fn has_key(headers: &HeaderMap, keys: &[String]) -> bool {
    let sent = headers
        .get(header::AUTHORIZATION)
        .map(HeaderValue::as_bytes);
    let sent = sent.and_then(|sent| sent.strip_prefix(b"Bearer "));
    let hash = |key: &[u8]| Sha256::digest(key);
    let sent = sent.map(hash);
    sent.is_some_and(|sent| keys.iter().any(|key| hash(key.as_bytes()) == sent))
}

/// The body of a request, which may take as long as a connection may be idle.
async fn read(app: &App, body: Body) -> Result<Bytes, Refusal> {
    let limit = app.options.body;
    match tokio::time::timeout(app.options.idle, to_bytes(body, limit)).await {
        Ok(Ok(body)) => Ok(body),
        // Or the client has gone, and hears nothing anyway.
        Ok(Err(_)) => Err(Refusal::too_large(limit)),
        Err(_) => Err(Refusal::timeout("the request's body did not come in time")),
    }
}

async fn completions(
    State(app): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let body = read(&app, body).await?;
    let request = CompletionRequest::parse(&body, app.model.config().vocab_size)?;
    let stream = request.settings.stream;
    respond(
        app.complete(request, wants_receipt(&headers)).await?,
        stream,
    )
    .await
}

async fn chat(State(app): Shared, headers: HeaderMap, body: Body) -> Result<Response, Refusal> {
    let body = read(&app, body).await?;
    let request = ChatRequest::parse(&body, app.model.config().vocab_size)?;
    let stream = request.settings.stream;
    respond(app.chat(request, wants_receipt(&headers)).await?, stream).await
}

/// Whether each answer is to come with its receipt.
fn wants_receipt(headers: &HeaderMap) -> bool {
    let wanted = headers.get("x-receipt").map(HeaderValue::as_bytes);
    wanted.is_some_and(|wanted| wanted == b"1" || wanted.eq_ignore_ascii_case(b"true"))
}

/// The answer to a job, in pieces or whole.
async fn respond(submitted: Submitted, stream: bool) -> Result<Response, Refusal> {
    let Submitted {
        mut reply,
        mut events,
        seed,
    } = submitted;
    // So that an answer can be had again.
    let seed = (HeaderName::from_static("x-seed"), HeaderValue::from(seed));
    if stream {
        let headers = [
            seed,
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("text/event-stream"),
            ),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        let body = Body::from_stream(EventStream::new(reply, events));
        return Ok((headers, body).into_response());
    }
    let mut pieces = Vec::new();
    while !reply.is_complete() {
        let Some(event) = events.recv().await else {
            return Err(Refusal::internal("the answer broke off"));
        };
        pieces.extend(reply.take(event)?);
    }
    Ok(([seed], Json(reply.whole(pieces))).into_response())
}

/// A model as OpenAI lists it.
fn listed(id: &str, created: u64) -> Value {
    json!({ "id": id, "object": "model", "created": created, "owned_by": "context-patch" })
}

/// The names of all models, and when each was loaded.
fn all_models(app: &App) -> Vec<(String, u64)> {
    let patched = app.patches.list().into_iter();
    let patched =
        patched.map(|(patch, created)| (format!("{}+{patch}", app.options.name), created));
    [(app.options.name.clone(), app.created)]
        .into_iter()
        .chain(patched)
        .collect()
}

async fn models(State(app): Shared) -> Json {
    let models = all_models(&app).into_iter();
    let data: Vec<_> = models.map(|(id, created)| listed(&id, created)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(State(app): Shared, Path(asked): Path<String>) -> Result<Json, Refusal> {
    let models = all_models(&app);
    let model = models.iter().find(|(id, _)| *id == asked);
    let (id, created) = model.ok_or_else(|| Refusal::no_model(&asked))?;
    Ok(Json(listed(id, *created)))
}

async fn load_patch(State(app): Shared, body: Body) -> Result<Response, Refusal> {
    let body = Parameters::parse(&read(&app, body).await?)?;
    let wanted = |name: &str| -> Result<String, Refusal> {
        let value = body.string(name)?.map(str::to_owned);
        value.ok_or_else(|| Refusal::parameter(name, format!("'{name}' is missing")))
    };
    let (name, file) = (wanted("name")?, PathBuf::from(wanted("file")?));
    let own = Arc::clone(&app);
    app.blocking(move || {
        alone(|| own.patches.load(&name, &file))?;
        let id = format!("{}+{name}", own.options.name);
        let created = own.patches.get(&name).map_or(0, |patch| patch.created);
        Ok((StatusCode::CREATED, Json(listed(&id, created))).into_response())
    })
    .await
}

async fn unload_patch(State(app): Shared, Path(name): Path<String>) -> Result<Json, Refusal> {
    let id = format!("{}+{name}", app.options.name);
    if !app.patches.unload(&name) {
        return Err(Refusal::no_model(&id));
    }
    Ok(Json(
        json!({ "id": id, "object": "model", "deleted": true }),
    ))
}

async fn health(State(app): Shared) -> Response {
    if app.closing.load(Ordering::Relaxed) {
        return Refusal::shutting_down().into_response();
    }
    Json(json!({ "status": "ok" })).into_response()
}

async fn metrics(State(app): Shared) -> Response {
    let open = app.options.places() - app.places.available_permits();
    app.metrics.open.set(open);
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (kind, app.metrics.text()).into_response()
}
