//! Metrics of requests by keyring, operation and code.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Counter, Histogram};

use crate::{
    model::{Operation, SecretName},
    refresh::Keyring,
    secrets,
    telemetry::Registry,
    wire::Code,
};

const REQUESTS: &str = "sidekey_requests_total";
const SECRET_DURATION: &str = "sidekey_secret_request_duration_seconds";
const ITEM_ERRORS: &str = "sidekey_batch_item_errors_total";
const DURATION: &str = "sidekey_request_duration_seconds";
const RECEIVED: &str = "sidekey_received_bytes_total";
const SENT: &str = "sidekey_sent_bytes_total";
const DENIED: &str = "sidekey_policy_denials_total";

/// Takes the place of a problem code when the peer abandons a streamed response.
const ABANDONED: &str = "abandoned";

/// Describes the metrics of the applications' API.
pub(crate) fn describe_metrics(registry: &Registry) {
    registry.describe_counter(
        REQUESTS,
        "Requests by keyring, operation and code. `ok` is success; requests on no keyring have an \
         empty one.",
    );
    registry.describe_histogram(
        SECRET_DURATION,
        "Time from the head of a request for a secret to its response.",
    );
    registry.describe_counter(
        ITEM_ERRORS,
        "Failed items of batches, by code. The batch itself counts as `ok`.",
    );
    registry.describe_histogram(
        DURATION,
        "Time from a request's head to its response; for streams and binary batches, to the end of \
         the response.",
    );
    registry.describe_counter(RECEIVED, "Bytes of request bodies.");
    registry.describe_counter(SENT, "Bytes of response bodies.");
    registry.describe_counter(DENIED, "Requests denied by the policy.");
}

/// The metrics of one operation on one keyring.
pub(crate) struct OperationMetrics {
    registry: Arc<Registry>,
    keyring: Arc<Keyring>,
    operation: Operation,
    ok: Counter,
    duration: Histogram,
    received: Counter,
    sent: Counter,
    denied: Counter,
}

impl OperationMetrics {
    pub(crate) fn new(
        registry: &Arc<Registry>,
        keyring: &Arc<Keyring>,
        operation: Operation,
    ) -> Self {
        let labels = [
            ("keyring", keyring.name().as_str()),
            ("operation", operation.as_str()),
        ];
        Self {
            registry: Arc::clone(registry),
            keyring: Arc::clone(keyring),
            operation,
            ok: registry.counter(REQUESTS, &[labels[0], labels[1], ("code", "ok")]),
            duration: registry.histogram(DURATION, &labels),
            received: registry.counter(RECEIVED, &labels),
            sent: registry.counter(SENT, &labels),
            denied: registry.counter(DENIED, &labels),
        }
    }

    pub(crate) fn succeeded(&self, received: usize, sent: usize, took: Duration) {
        self.ok.increment(1);
        self.received.increment(received as u64);
        self.sent.increment(sent as u64);
        self.duration.record(took);
    }

    pub(crate) fn failed(&self, code: Code, took: Duration) {
        self.error(REQUESTS, code);
        self.duration.record(took);
        if code == Code::Forbidden {
            self.denied.increment(1);
        }
    }

    pub(crate) fn item_failed(&self, code: Code) {
        self.error(ITEM_ERRORS, code);
    }

    fn error(&self, name: &'static str, code: Code) {
        self.keyring.failures().count(self.operation, code);
        self.increment(name, code.as_str());
    }

    fn increment(&self, name: &'static str, code: &str) {
        let labels = [
            ("keyring", self.keyring.name().as_str()),
            ("operation", self.operation.as_str()),
            ("code", code),
        ];
        self.registry.counter(name, &labels).increment(1);
    }
}

/// The metrics of requests for secrets. Successes are counted by `secrets`.
pub(crate) struct SecretRequestMetrics {
    registry: Arc<Registry>,
    duration: Histogram,
}

impl SecretRequestMetrics {
    pub(crate) fn new(registry: &Arc<Registry>) -> Self {
        Self {
            registry: Arc::clone(registry),
            duration: registry.histogram(SECRET_DURATION, &[]),
        }
    }

    pub(crate) fn succeeded(&self, took: Duration) {
        self.duration.record(took);
    }

    pub(crate) fn failed(&self, secret: Option<&SecretName>, code: Code, took: Duration) {
        let labels = [
            ("secret", secret.map_or("", SecretName::as_str)),
            ("code", code.as_str()),
        ];
        self.registry
            .counter(secrets::REQUESTS, &labels)
            .increment(1);
        self.duration.record(took);
    }
}

/// A streamed response. It is counted once: when it ends, is aborted, or is abandoned by the peer.
pub(crate) struct StreamAccount {
    metrics: Arc<OperationMetrics>,
    start: Instant,
    received: Arc<AtomicU64>,
    sent: u64,
    is_settled: bool,
}

/// How a streamed response ends.
enum Ending {
    Complete,
    Failed(Code),
    /// By the peer.
    Abandoned,
}

impl StreamAccount {
    /// `start` is when the request's head arrived; `received` counts the bytes of its body.
    pub(crate) fn new(
        metrics: Arc<OperationMetrics>,
        start: Instant,
        received: Arc<AtomicU64>,
    ) -> Self {
        Self {
            metrics,
            start,
            received,
            sent: 0,
            is_settled: false,
        }
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    pub(crate) fn succeeded(&mut self) {
        self.settle(Ending::Complete);
    }

    pub(crate) fn failed(&mut self, code: Code) {
        self.settle(Ending::Failed(code));
    }

    /// Prevents the account from counting the request.
    pub(crate) fn cancel(&mut self) {
        self.is_settled = true;
    }

    fn settle(&mut self, ending: Ending) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let metrics = &self.metrics;
        match ending {
            Ending::Complete => metrics.ok.increment(1),
            Ending::Failed(code) => metrics.error(REQUESTS, code),
            Ending::Abandoned => metrics.increment(REQUESTS, ABANDONED),
        }
        metrics
            .received
            .increment(self.received.load(Ordering::Relaxed));
        metrics.sent.increment(self.sent);
        metrics.duration.record(self.start.elapsed());
    }
}

impl Drop for StreamAccount {
    fn drop(&mut self) {
        self.settle(Ending::Abandoned);
    }
}

/// Counts a request on no keyring, by its code or `ok`.
pub(crate) fn count_other(registry: &Registry, code: &'static str) {
    registry
        .counter(
            REQUESTS,
            &[("keyring", ""), ("operation", ""), ("code", code)],
        )
        .increment(1);
}
