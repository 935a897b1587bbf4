//! The signals that end the server.

use std::io::Result;

/// Ctrl-C, and on Unix SIGTERM, by which services are stopped, and SIGHUP.
pub(super) struct Signals {
    #[cfg(unix)]
    each: [tokio::signal::unix::Signal; 3],
}

impl Signals {
    /// From now on the signals do not end the program by themselves.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            each: {
                use tokio::signal::unix::{SignalKind, signal};
                [
                    signal(SignalKind::interrupt())?,
                    signal(SignalKind::terminate())?,
                    signal(SignalKind::hangup())?,
                ]
            },
        })
    }

    /// Waits for the next one.
    #[cfg(unix)]
    pub(super) async fn next(&mut self) {
        use std::task::Poll;
        std::future::poll_fn(|context| {
            let mut each = self.each.iter_mut();
            if each.any(|signal| signal.poll_recv(context).is_ready()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits for the next one.
    #[cfg(not(unix))]
    pub(super) async fn next(&mut self) {
        // Without a handler Ctrl-C still ends the program.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
