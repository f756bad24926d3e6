//! A peer's certificate for the life of its connection: authorities leave the list and certificates
//! expire while connections are open.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    pki_types::{CertificateDer, UnixTime},
    time_provider::TimeProvider,
};
use tokio::time::sleep;
use tracing::warn;

use super::{Tls, material::Material};
use crate::{http::peer::ClientCertificate, wire::CertificateNames};

/// How long a verification counts while the authorities stay the same.
const RECHECK: Duration = Duration::from_secs(60);

/// A certificate that was accepted when its connection began.
pub(crate) struct AcceptedClient {
    tls: Arc<Tls>,
    /// The peer's certificate, and those that lead to its authority.
    chain: Vec<CertificateDer<'static>>,
    verified: ArcSwap<Verified>,
}

/// The last time at which the certificate was found to be valid.
struct Verified {
    by: Arc<Material>,
    at: Timestamp,
}

impl AcceptedClient {
    /// Takes over a certificate that a handshake with `by` has verified.
    pub(super) fn new(
        tls: Arc<Tls>,
        chain: Vec<CertificateDer<'static>>,
        by: Arc<Material>,
    ) -> Self {
        let at = tls.clock.now();
        Self {
            tls,
            chain,
            verified: ArcSwap::from_pointee(Verified { by, at }),
        }
    }

    /// The names in the certificate.
    #[cfg(feature = "hub")]
    pub(crate) fn names(&self) -> CertificateNames {
        let first = self.chain.first();
        first
            .map(|first| CertificateNames::of(first))
            .unwrap_or_default()
    }

    /// Whether a new connection with this certificate would be accepted now, or up to a minute ago.
    pub(crate) fn verdict(&self) -> ClientCertificate {
        match self.verify() {
            Ok(()) => ClientCertificate::Accepted,
            Err(_) => ClientCertificate::Withdrawn,
        }
    }

    fn verify(&self) -> Result<(), String> {
        let (active, now) = (self.tls.active.load(), self.tls.clock.now());
        let verified = self.verified.load();
        let is_recent = now.duration_since(verified.at).unsigned_abs() < RECHECK;
        if is_recent && Arc::ptr_eq(&active, &verified.by) {
            return Ok(());
        }
        let Some((certificate, issuers)) = self.chain.split_first() else {
            return Err("it is empty".into());
        };
        // A listener that no longer has authorities would ask for no certificate.
        if let Some(verifier) = &active.client_verifier {
            let time = self.tls.clock.current_time().unwrap_or_else(UnixTime::now);
            verifier
                .verify_client_cert(certificate, issuers, time)
                .map_err(|error| error.to_string())?;
        }
        self.verified.store(Arc::new(Verified {
            by: Arc::clone(&active),
            at: now,
        }));
        Ok(())
    }

    /// Resolves when the certificate is no longer accepted.
    pub(crate) async fn withdrawn(&self) {
        let reason = loop {
            // Before verifying, so that no reload in between is missed.
            let reloaded = self.tls.reloaded.notified();
            if let Err(reason) = self.verify() {
                break reason;
            }
            tokio::select! {
                () = reloaded => {}
                () = sleep(RECHECK) => {}
            }
        };
        let names = self.chain.first().map(|first| CertificateNames::of(first));
        warn!(
            listener = self.tls.listener,
            dns = ?names.as_ref().map(|names| &names.dns),
            uris = ?names.as_ref().map(|names| &names.uris),
            "closing a connection: its client certificate is no longer accepted: {reason}"
        );
        self.tls.metrics.withdrew();
    }
}
