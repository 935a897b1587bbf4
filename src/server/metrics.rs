//! What is counted, as Prometheus reads it.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: usize) {
        self.0.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// A number that is as it is now.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU64);

impl Gauge {
    pub(super) fn set(&self, value: usize) {
        self.0.store(value as u64, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a histogram's buckets in seconds; what is longer is in one more.
const BOUNDS: [f64; 14] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0,
];

/// How long something took, how often.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    microseconds: AtomicU64,
}

impl Histogram {
    pub(super) fn observe(&self, time: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < time.as_secs_f64());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = time.as_micros() as u64;
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }
}

/// Statuses that are counted apart.
const STATUSES: [u16; 11] = [200, 400, 401, 404, 405, 408, 413, 429, 500, 503, 0];

/// Everything that is counted.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    requests: [Counter; STATUSES.len()],
    /// Answers written to their ends.
    pub(super) answers: Counter,
    /// Sequences that ended because their clients had gone.
    pub(super) cancelled: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) cached_tokens: Counter,
    /// Tokens written.
    pub(super) tokens: Counter,
    /// Answers that were asked for and are not done.
    pub(super) open: Gauge,
    pub(super) running: Gauge,
    pub(super) waiting: Gauge,
    pub(super) cache_bytes: Gauge,
    pub(super) prefix_bytes: Gauge,
    pub(super) connections: Gauge,
    /// From a request's arrival to its first token.
    pub(super) first_token: Histogram,
    /// Of a step of the batch.
    pub(super) steps: Histogram,
}

impl Metrics {
    /// Counts a request that was answered with this status.
    pub(super) fn request(&self, status: u16) {
        let known = STATUSES.iter().position(|known| *known == status);
        self.requests[known.unwrap_or(STATUSES.len() - 1)].add(1);
    }

    /// Everything in Prometheus' text format.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        head(
            &mut text,
            "requests_total",
            "counter",
            "Requests by the status of their answers.",
        );
        for (status, Counter(count)) in STATUSES.iter().zip(&self.requests) {
            let count = count.load(Ordering::Relaxed);
            let status = match status {
                0 => "other".into(),
                status => status.to_string(),
            };
            let _ = writeln!(
                text,
                "context_patch_requests_total{{status=\"{status}\"}} {count}"
            );
        }
        for (name, Counter(count), help) in [
            (
                "answers_total",
                &self.answers,
                "Answers written to their ends.",
            ),
            (
                "cancelled_total",
                &self.cancelled,
                "Sequences ended because their clients had gone.",
            ),
            (
                "prompt_tokens_total",
                &self.prompt_tokens,
                "Tokens of prompts.",
            ),
            (
                "cached_tokens_total",
                &self.cached_tokens,
                "Tokens of prompts that the prefix cache had.",
            ),
            ("generation_tokens_total", &self.tokens, "Tokens written."),
        ] {
            head(&mut text, name, "counter", help);
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "context_patch_{name} {count}");
        }
        for (name, gauge, help) in [
            (
                "answers_open",
                &self.open,
                "Answers that were asked for and are not done.",
            ),
            (
                "sequences_running",
                &self.running,
                "Sequences in the batch.",
            ),
            (
                "sequences_waiting",
                &self.waiting,
                "Prompts that wait for room in the batch.",
            ),
            (
                "cache_bytes",
                &self.cache_bytes,
                "Keys and values set aside for sequences.",
            ),
            (
                "prefix_cache_bytes",
                &self.prefix_bytes,
                "Keys and values kept for later sequences.",
            ),
            ("connections", &self.connections, "Open connections."),
        ] {
            head(&mut text, name, "gauge", help);
            let _ = writeln!(text, "context_patch_{name} {}", gauge.get());
        }
        for (name, histogram, help) in [
            (
                "time_to_first_token_seconds",
                &self.first_token,
                "From a request to its first token.",
            ),
            ("step_seconds", &self.steps, "Steps of the batch."),
        ] {
            head(&mut text, name, "histogram", help);
            write_histogram(&mut text, name, histogram);
        }
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP context_patch_{name} {help}");
    let _ = writeln!(text, "# TYPE context_patch_{name} {kind}");
}

fn write_histogram(text: &mut String, name: &str, histogram: &Histogram) {
    let mut count = 0;
    let bounds = BOUNDS.iter().map(f64::to_string).chain(["+Inf".into()]);
    for (bound, bucket) in bounds.zip(&histogram.buckets) {
        count += bucket.load(Ordering::Relaxed);
        let _ = writeln!(
            text,
            "context_patch_{name}_bucket{{le=\"{bound}\"}} {count}"
        );
    }
    let seconds = histogram.microseconds.load(Ordering::Relaxed) as f64 / 1e6;
    let _ = writeln!(text, "context_patch_{name}_sum {seconds}");
    let _ = writeln!(text, "context_patch_{name}_count {count}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_can_read_it() {
        let metrics = Metrics::default();
        metrics.request(200);
        metrics.request(418);
        metrics.tokens.add(7);
        metrics.running.set(3);
        metrics.steps.observe(Duration::from_millis(1));
        metrics.steps.observe(Duration::from_secs(100));
        let text = metrics.text();
        for line in [
            "context_patch_requests_total{status=\"200\"} 1",
            "context_patch_requests_total{status=\"other\"} 1",
            "# TYPE context_patch_generation_tokens_total counter",
            "context_patch_generation_tokens_total 7",
            "context_patch_sequences_running 3",
            "context_patch_step_seconds_bucket{le=\"0.001\"} 1",
            "context_patch_step_seconds_bucket{le=\"60\"} 1",
            "context_patch_step_seconds_bucket{le=\"+Inf\"} 2",
            "context_patch_step_seconds_sum 100.001",
            "context_patch_step_seconds_count 2",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
    }
}
