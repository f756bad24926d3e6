//! What is counted of TLS.

use std::io;

use metrics::{Counter, Gauge};
use rustls::Error;

use super::material::Material;
use crate::telemetry::Registry;

const EXPIRY: &str = "sidekey_tls_certificate_expiry_timestamp_seconds";
const RELOADS: &str = "sidekey_tls_reloads_total";
const FAILING: &str = "sidekey_tls_reload_failing";
const HANDSHAKES: &str = "sidekey_tls_handshake_failures_total";

/// Describes the metrics of TLS.
pub(crate) fn describe_metrics(registry: &Registry) {
    registry.describe_gauge(EXPIRY, "When the certificate in force expires.");
    registry.describe_counter(
        RELOADS,
        "New certificates, keys or client authorities that were read, by outcome.",
    );
    registry.describe_gauge(FAILING, "1 while what is in the files can't be taken up.");
    registry.describe_counter(
        HANDSHAKES,
        "TLS handshakes that came to nothing, by reason.",
    );
}

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The client went away.
    Closed,
    /// The client's certificate is missing, or of another authority, or expired.
    ClientCertificate,
    /// The client refuses, most often our certificate.
    Refused,
    /// The client speaks an older version, or shares no algorithm with us.
    Incompatible,
    /// The client's certificate has no name on the list.
    Name,
    /// This is not TLS, or not rightly.
    Protocol,
    /// It took too long, or its place was needed.
    Unfinished,
}

impl Failure {
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

/// The metrics of one listener's TLS.
pub(crate) struct Meters {
    expiry: Gauge,
    reloaded: Counter,
    reload_failed: Counter,
    failing: Gauge,
    failures: [Counter; Failure::ALL.len()],
}

/// A handshake that counts as unfinished unless somebody says otherwise.
pub(crate) struct Unfinished<'m>(Option<&'m Counter>);

impl Meters {
    pub(crate) fn new(registry: &Registry, listener: &'static str) -> Self {
        let label = ("listener", listener);
        let failures = Failure::ALL
            .map(|failure| registry.counter(HANDSHAKES, &[label, ("reason", failure.as_str())]));
        Self {
            expiry: registry.gauge(EXPIRY, &[label]),
            reloaded: registry.counter(RELOADS, &[label, ("result", "changed")]),
            reload_failed: registry.counter(RELOADS, &[label, ("result", "failed")]),
            failing: registry.gauge(FAILING, &[label]),
            failures,
        }
    }

    pub(crate) fn in_force(&self, material: &Material) {
        self.expiry.set(material.not_after.as_second() as f64);
    }

    pub(crate) fn reloaded(&self) {
        self.reloaded.increment(1);
    }

    pub(crate) fn reload_failed(&self) {
        self.reload_failed.increment(1);
    }

    pub(crate) fn failing(&self, is_failing: bool) {
        self.failing.set(if is_failing { 1.0 } else { 0.0 });
    }

    pub(crate) fn failed(&self, failure: Failure) {
        self.failures[failure as usize].increment(1);
    }

    pub(crate) fn unfinished(&self) -> Unfinished<'_> {
        Unfinished(Some(&self.failures[Failure::Unfinished as usize]))
    }
}

impl Unfinished<'_> {
    pub(crate) fn finish(mut self) {
        self.0 = None;
    }
}

impl Drop for Unfinished<'_> {
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
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure as usize, index, "{}", failure.as_str());
        }
    }
}
