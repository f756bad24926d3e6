//! The leases of a secret's values.

use std::{sync::Arc, time::Duration};

use tracing::{info, warn};

use super::Secret;
use crate::{
    backend::{self, BackendError, ErrorKind, Lease},
    clock::Uptime,
    schedule::FAR_FUTURE,
};

/// The lease on which the current value depends.
pub(super) struct ActiveLease {
    pub(super) lease: Arc<dyn Lease>,
    /// How long it ran when it was granted.
    duration: Duration,
    pub(super) end: Uptime,
}

impl ActiveLease {
    /// Returns None if the lease has no duration, because then its end can't be anticipated.
    pub(super) fn new(lease: Arc<dyn Lease>, granted_at: Uptime) -> Option<Self> {
        let duration = lease.duration().min(FAR_FUTURE);
        (!duration.is_zero()).then(|| Self {
            lease,
            duration,
            end: granted_at + duration,
        })
    }

    pub(super) fn remaining(&self, now: Uptime) -> Duration {
        self.end.since(now)
    }

    /// Whether too little is left to wait for another renewal.
    pub(super) fn is_near_end(&self, now: Uptime) -> bool {
        self.remaining(now) <= self.duration / 3
    }

    /// Asks for more time. A lease that no longer exists ends now.
    ///
    /// # Errors
    /// The provider refused or did not respond; the end is unchanged.
    pub(super) async fn renew(&mut self, secret: &Secret) -> Result<(), BackendError> {
        let asked_at = secret.shared.clock.uptime();
        let limit = secret.shared.read_timeout;
        match backend::within(limit, self.lease.renew()).await {
            Ok(Ok(granted)) => {
                self.end = asked_at + granted.min(FAR_FUTURE);
                Ok(())
            }
            // It expired or was revoked, regardless of what was granted before.
            Ok(Err(error)) if error.kind == ErrorKind::NotFound => {
                info!(secret = %secret.name(), "the lease no longer exists: {error}");
                self.end = asked_at;
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(late) => Err(super::timed_out(secret.source(), late)),
        }
    }
}

/// The leases of former values, to be revoked when those are no longer served.
#[derive(Default)]
pub(super) struct RetiredLeases(Vec<(Uptime, Arc<dyn Lease>)>);

impl RetiredLeases {
    pub(super) fn push(&mut self, revoke_at: Uptime, lease: Arc<dyn Lease>) {
        self.0.push((revoke_at, lease));
    }

    /// Returns when the next lease is due.
    pub(super) fn next_due(&self) -> Option<Uptime> {
        self.0.iter().map(|(at, _)| *at).min()
    }

    /// Revokes the leases that are due.
    pub(super) async fn revoke_due(&mut self, secret: &Secret) {
        let now = secret.shared.clock.uptime();
        // A lease is removed only after it is revoked: shutdown can drop this future in between.
        while let Some((at, lease)) = self.0.iter().find(|(at, _)| *at <= now).cloned() {
            revoke(secret, &*lease).await;
            self.0
                .retain(|(other, kept)| *other != at || !Arc::ptr_eq(kept, &lease));
        }
    }

    /// Revokes all leases and `active`.
    pub(super) async fn revoke_all(self, secret: &Secret, active: Option<ActiveLease>) {
        let retired = self.0.into_iter().map(|(_, lease)| lease);
        for lease in retired.chain(active.map(|active| active.lease)) {
            revoke(secret, &*lease).await;
        }
    }
}

async fn revoke(secret: &Secret, lease: &dyn Lease) {
    let limit = secret.shared.read_timeout;
    let (name, source) = (secret.name(), secret.source());
    let result = backend::within(limit, lease.revoke())
        .await
        .unwrap_or_else(|late| Err(super::timed_out(source, late)));
    match result {
        Ok(()) => info!(secret = %name, "lease revoked"),
        Err(error) => {
            warn!(secret = %name, "can't revoke a lease; it ends when it expires: {error}");
        }
    }
}
