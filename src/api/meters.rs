//! What callers did: metrics by keyring, operation and code.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram};

use crate::http::problem::Code;
use crate::{
    model::{KeyringName, Operation, SecretName},
    secrets,
    telemetry::Registry,
};

const REQUESTS: &str = "sidekey_requests_total";
const SECRET_DURATION: &str = "sidekey_secret_request_duration_seconds";
const ITEM_ERRORS: &str = "sidekey_batch_item_errors_total";
const DURATION: &str = "sidekey_request_duration_seconds";
const RECEIVED: &str = "sidekey_received_bytes_total";
const SENT: &str = "sidekey_sent_bytes_total";
const DENIED: &str = "sidekey_policy_denials_total";
const CONNECTIONS: &str = "sidekey_connections";
const REFUSED: &str = "sidekey_connections_refused_total";

/// In the place of a problem's code: the peer took no more of an answer that was still being made.
const ABANDONED: &str = "abandoned";

/// Describes the metrics of the applications' listeners.
pub(crate) fn describe_metrics(registry: &Registry) {
    registry.describe_counter(
        REQUESTS,
        "Requests by keyring, operation and the answer's code; `ok` is success, an empty keyring none that is served.",
    );
    registry.describe_histogram(
        SECRET_DURATION,
        "Time from a request for a secret to its answer.",
    );
    registry.describe_counter(
        ITEM_ERRORS,
        "Items of batches that failed, by code; the batch itself counts as `ok`.",
    );
    registry.describe_histogram(
        DURATION,
        "Time from a request's head to its answer; of a stream or a binary batch, to the answer's end.",
    );
    registry.describe_counter(RECEIVED, "Bytes of request bodies.");
    registry.describe_counter(SENT, "Bytes of answer bodies.");
    registry.describe_counter(DENIED, "Requests that the policy denied.");
    registry.describe_gauge(CONNECTIONS, "Open connections.");
    registry.describe_counter(
        REFUSED,
        "Connections refused or ended early because there were too many.",
    );
}

/// One operation on one keyring.
pub(crate) struct OperationMeters {
    registry: Arc<Registry>,
    keyring: KeyringName,
    operation: Operation,
    ok: Counter,
    duration: Histogram,
    received: Counter,
    sent: Counter,
    denied: Counter,
}

impl OperationMeters {
    pub(crate) fn new(
        registry: &Arc<Registry>,
        keyring: &KeyringName,
        operation: Operation,
    ) -> Self {
        let labels = [
            ("keyring", keyring.as_str()),
            ("operation", operation.as_str()),
        ];
        Self {
            registry: Arc::clone(registry),
            keyring: keyring.clone(),
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
        self.error(REQUESTS, code.as_str());
        self.duration.record(took);
        if code == Code::Forbidden {
            self.denied.increment(1);
        }
    }

    pub(crate) fn item_failed(&self, code: Code) {
        self.error(ITEM_ERRORS, code.as_str());
    }

    fn error(&self, name: &'static str, code: &str) {
        let labels = [
            ("keyring", self.keyring.as_str()),
            ("operation", self.operation.as_str()),
            ("code", code),
        ];
        self.registry.counter(name, &labels).increment(1);
    }
}

/// Requests for secrets. Those that succeed are counted by the secret.
pub(crate) struct SecretRequests {
    registry: Arc<Registry>,
    duration: Histogram,
}

impl SecretRequests {
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

/// An answer that goes on after its head. It is counted once: when it ends, breaks off, or is given up by its peer.
pub(crate) struct Account {
    meters: Arc<OperationMeters>,
    start: Instant,
    received: Arc<AtomicU64>,
    sent: u64,
    is_settled: bool,
}

impl Account {
    /// For a request whose head came at `start` and whose body `received` counts.
    pub(crate) fn new(
        meters: Arc<OperationMeters>,
        start: Instant,
        received: Arc<AtomicU64>,
    ) -> Self {
        Self {
            meters,
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
        self.settle("ok");
    }

    pub(crate) fn failed(&mut self, code: Code) {
        self.settle(code.as_str());
    }

    /// Leaves the counting to somebody else.
    pub(crate) fn cancel(&mut self) {
        self.is_settled = true;
    }

    fn settle(&mut self, code: &'static str) {
        if std::mem::replace(&mut self.is_settled, true) {
            return;
        }
        let meters = &self.meters;
        match code {
            "ok" => meters.ok.increment(1),
            code => meters.error(REQUESTS, code),
        }
        meters
            .received
            .increment(self.received.load(Ordering::Relaxed));
        meters.sent.increment(self.sent);
        meters.duration.record(self.start.elapsed());
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle(ABANDONED);
    }
}

/// Counts a request that is no keyring's, by its answer's code or `ok`.
pub(crate) fn unrouted(registry: &Registry, code: &'static str) {
    registry
        .counter(
            REQUESTS,
            &[("keyring", ""), ("operation", ""), ("code", code)],
        )
        .increment(1);
}

/// A listener's connections.
#[derive(Clone)]
pub(crate) struct ConnectionMeters {
    pub(crate) open: Gauge,
    pub(crate) refused: Counter,
}

impl ConnectionMeters {
    pub(crate) fn new(registry: &Registry, listener: &'static str) -> Self {
        let labels = [("listener", listener)];
        Self {
            open: registry.gauge(CONNECTIONS, &labels),
            refused: registry.counter(REFUSED, &labels),
        }
    }
}
