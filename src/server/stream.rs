//! An answer as server-sent events.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedReceiver;

use super::answer::Event;
use super::refusal::Refusal;
use super::reply::Reply;

/// Bytes that are sent together where several events are there at once.
const TOGETHER: usize = 16 << 10;

/// The body of a streamed answer. Dropped, which is what happens when its client has gone, it ends the answer.
pub(super) struct EventStream {
    reply: Reply,
    events: UnboundedReceiver<Event>,
    ready: String,
    ended: bool,
}

impl EventStream {
    pub(super) fn new(reply: Reply, events: UnboundedReceiver<Event>) -> Self {
        Self {
            reply,
            events,
            ready: String::new(),
            ended: false,
        }
    }

    fn send(&mut self, data: &str) {
        self.ready += "data: ";
        self.ready += data;
        self.ready += "\n\n";
    }

    fn send_all(&mut self, chunks: impl IntoIterator<Item = Value>) {
        for chunk in chunks {
            self.send(&chunk.to_string());
        }
    }

    fn take(&mut self, event: Event) {
        match self.reply.take(event) {
            Ok(piece) => {
                let chunks = piece.map(|piece| self.reply.chunks(piece));
                self.send_all(chunks.into_iter().flatten());
                if self.reply.is_complete() {
                    self.send_all(self.reply.usage_chunk());
                    self.send("[DONE]");
                    self.ended = true;
                }
            }
            Err(refusal) => self.fail(&refusal),
        }
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.send(&refusal.body().to_string());
        self.ended = true;
    }
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while !self.ended && self.ready.len() < TOGETHER {
            match self.events.poll_recv(context) {
                Poll::Ready(Some(event)) => self.take(event),
                Poll::Ready(None) => self.fail(&Refusal::internal("the answer broke off")),
                Poll::Pending if self.ready.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        if self.ready.is_empty() {
            return Poll::Ready(None);
        }
        let ready = std::mem::take(&mut self.ready);
        Poll::Ready(Some(Ok(ready.into())))
    }
}
