//! Connections: how many, how long each may take for what, and how they end.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Sleep, sleep};

use super::metrics::Metrics;

/// Bytes of a request's line and headers at most.
const HEAD: usize = 64 << 10;
/// How long to wait where the system has no file left for a connection.
const OUT_OF_FILES: Duration = Duration::from_millis(50);
/// What a client is told for whom there is no connection.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\nRetry-After: 1\r\n\r\n";

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// At once.
    pub(super) connections: usize,
    /// How long one may be without a request, a request without all its headers, and an answer without a reader.
    pub(super) idle: Duration,
}

/// Takes connections until `stop` says so; then ends each when its answer is whole. Done when all are.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    metrics: Arc<Metrics>,
    mut stop: watch::Receiver<bool>,
) {
    let most = limits.connections.min(Semaphore::MAX_PERMITS);
    let places = Arc::new(Semaphore::new(most));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The client has gone already, or there is no file left, which another one's end changes.
            Err(_) => {
                sleep(OUT_OF_FILES).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            // As much as can be said without waiting.
            let _ = stream.try_write(FULL);
            continue;
        };
        // A token is to leave at once, and not to wait for the next one to fill a packet.
        let _ = stream.set_nodelay(true);
        let (router, stop) = (router.clone(), stop.clone());
        metrics.connections.set(most - places.available_permits());
        let (places, metrics) = (Arc::clone(&places), Arc::clone(&metrics));
        tokio::spawn(async move {
            connection(stream, router, limits.idle, stop).await;
            drop(place);
            metrics.connections.set(most - places.available_permits());
        });
    }
    drop(listener);
    // All places are free when all connections have ended.
    let _ = places
        .acquire_many(u32::try_from(most).unwrap_or(u32::MAX))
        .await;
}

/// Serves the requests of a connection until it ends.
async fn connection(
    stream: TcpStream,
    router: Router,
    idle: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let stream = Impatient {
        stream,
        idle,
        waiting: None,
    };
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(idle)
        .max_buf_size(HEAD);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // How it ends is the client's business: there is nobody to be told.
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = stop.wait_for(|stop| *stop) => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A connection that fails where its client does not read for so long.
struct Impatient {
    stream: TcpStream,
    idle: Duration,
    /// Since a write has been waiting for its client.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    /// What became of a write: an error where it has waited for too long.
    fn written<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let idle = self.idle;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(idle)));
        match waiting.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.written(written, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.written(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
