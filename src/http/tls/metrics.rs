//! Metrics of TLS, by listener.

use std::io;

use metrics::{Counter, Gauge};
use rustls::Error;

use super::material::Material;
use crate::telemetry::Registry;

const EXPIRY: &str = "sidekey_tls_certificate_expiry_timestamp_seconds";
const RELOADS: &str = "sidekey_tls_reloads_total";
const FAILING: &str = "sidekey_tls_reload_failing";
const WITHDRAWN: &str = "sidekey_tls_withdrawn_connections_total";
const HANDSHAKES: &str = "sidekey_tls_handshake_failures_total";

/// Describes the metrics of TLS.
pub(crate) fn describe_metrics(registry: &Registry) {
    registry.describe_gauge(EXPIRY, "When the active certificate expires.");
    registry.describe_counter(
        RELOADS,
        "Reloads of changed certificates, keys or client authorities, by result.",
    );
    registry.describe_gauge(FAILING, "1 while the current files can't be used.");
    registry.describe_counter(HANDSHAKES, "Failed TLS handshakes, by reason.");
    registry.describe_counter(
        WITHDRAWN,
        "Connections closed because their client certificate was no longer accepted.",
    );
}

/// Why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The client closed the connection.
    Closed,
    /// The client's certificate is missing, expired or not issued by a trusted authority.
    ClientCertificate,
    /// The client sent an alert, most often because it rejected our certificate.
    Refused,
    /// The client offered no supported protocol version or algorithm.
    Incompatible,
    /// The client's certificate has no allowed name.
    Name,
    /// The client violated the protocol or does not speak TLS.
    Protocol,
    /// The handshake timed out, or the connection was evicted.
    Unfinished,
}

impl HandshakeFailure {
    const ALL: [Self; 7] = [
        Self::Closed,
        Self::ClientCertificate,
        Self::Refused,
        Self::Incompatible,
        Self::Name,
        Self::Protocol,
        Self::Unfinished,
    ];

    pub(crate) fn of(error: &io::Error) -> Self {
        match error
            .get_ref()
            .and_then(|error| error.downcast_ref::<Error>())
        {
            None => Self::Closed,
            Some(Error::InvalidCertificate(_) | Error::NoCertificatesPresented) => {
                Self::ClientCertificate
            }
            Some(Error::AlertReceived(_)) => Self::Refused,
            Some(Error::PeerIncompatible(_)) => Self::Incompatible,
            Some(_) => Self::Protocol,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientCertificate => "client_certificate",
            Self::Refused => "refused_by_client",
            Self::Incompatible => "incompatible",
            Self::Name => "client_name",
            Self::Protocol => "protocol",
            Self::Unfinished => "unfinished",
        }
    }
}

/// The TLS metrics of one listener.
pub(crate) struct TlsMetrics {
    expiry: Gauge,
    reloaded: Counter,
    reload_failed: Counter,
    failing: Gauge,
    failures: [Counter; HandshakeFailure::ALL.len()],
    withdrawn: Counter,
}

/// Counts a handshake as unfinished when dropped, unless [`HandshakeGuard::finish`] was called.
pub(crate) struct HandshakeGuard<'m>(Option<&'m Counter>);

impl TlsMetrics {
    pub(crate) fn new(registry: &Registry, listener: &'static str) -> Self {
        let label = ("listener", listener);
        let failures = HandshakeFailure::ALL
            .map(|failure| registry.counter(HANDSHAKES, &[label, ("reason", failure.as_str())]));
        Self {
            expiry: registry.gauge(EXPIRY, &[label]),
            reloaded: registry.counter(RELOADS, &[label, ("result", "changed")]),
            reload_failed: registry.counter(RELOADS, &[label, ("result", "failed")]),
            failing: registry.gauge(FAILING, &[label]),
            failures,
            withdrawn: registry.counter(WITHDRAWN, &[label]),
        }
    }

    pub(crate) fn activated(&self, material: &Material) {
        self.expiry.set(material.not_after.as_second() as f64);
    }

    pub(crate) fn reloaded(&self) {
        self.reloaded.increment(1);
    }

    pub(crate) fn reload_failed(&self) {
        self.reload_failed.increment(1);
    }

    pub(crate) fn set_failing(&self, is_failing: bool) {
        self.failing.set(if is_failing { 1.0 } else { 0.0 });
    }

    pub(crate) fn handshake_failed(&self, failure: HandshakeFailure) {
        self.failures[failure as usize].increment(1);
    }

    pub(crate) fn withdrew(&self) {
        self.withdrawn.increment(1);
    }

    pub(crate) fn begin_handshake(&self) -> HandshakeGuard<'_> {
        HandshakeGuard(Some(&self.failures[HandshakeFailure::Unfinished as usize]))
    }
}

impl HandshakeGuard<'_> {
    pub(crate) fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for HandshakeGuard<'_> {
    fn drop(&mut self) {
        if let Some(counter) = self.0 {
            counter.increment(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_counter_of_its_own() {
        for (index, failure) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index, "{}", failure.as_str());
        }
    }
}
