//! What a refresh leads to besides a key table: metrics, status, the log and the audit log.

use std::sync::Arc;

use jiff::Timestamp;
use tracing::{debug, info, warn};

use super::{Keyring, RefreshFailure, Shared, Trigger, audit_observer::AuditObserver};
use crate::{clock::Clock, keyring::KeyTable, telemetry::Registry};

pub(super) enum RefreshOutcome {
    Unchanged,
    /// The location is a copy that lags: it confirms nothing and changes nothing.
    Behind,
    Changed,
    /// Published, but some versions could not be unwrapped.
    Partial,
}

impl RefreshOutcome {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Behind => "behind",
            Self::Changed => "changed",
            Self::Partial => "partial",
        }
    }
}

/// Reports the refreshes of one keyring.
pub(super) struct Reporter {
    keyring: Arc<Keyring>,
    registry: Arc<Registry>,
    clock: Clock,
    observer: AuditObserver,
    warned_of_lease: bool,
}

impl Reporter {
    pub(super) fn new(keyring: &Arc<Keyring>, shared: &Shared) -> Self {
        Self {
            keyring: Arc::clone(keyring),
            registry: Arc::clone(&shared.registry),
            clock: shared.clock.clone(),
            observer: AuditObserver::new(shared.audit.clone()),
            warned_of_lease: false,
        }
    }

    /// Reports a refresh, and what it changed.
    pub(super) fn report(
        &mut self,
        trigger: Trigger,
        result: &Result<RefreshOutcome, RefreshFailure>,
    ) {
        let label = match result {
            Ok(outcome) => outcome.as_str(),
            Err(failure) => failure.code,
        };
        self.keyring
            .metrics
            .refreshed(&self.registry, trigger, label);
        let now = self.clock.now();
        self.log(trigger, result, now);
        self.observer.observe(&self.keyring, now);
        self.warn_of_lease(now);
    }

    /// Reports what came of a manifest that wasn't read from the location: it was sent here, or is
    /// the active one, whose versions have had their turn. It says nothing about the location, and
    /// anyone who may send manifests can send any number of bad ones.
    pub(super) fn report_aside(
        &mut self,
        trigger: Trigger,
        result: &Result<RefreshOutcome, RefreshFailure>,
    ) {
        let now = self.clock.now();
        let label = match result {
            Ok(outcome) => outcome.as_str(),
            Err(failure) => failure.code,
        };
        self.keyring
            .metrics
            .refreshed(&self.registry, trigger, label);
        match result {
            Ok(RefreshOutcome::Changed) => self.log_active(trigger, now),
            Ok(_) => {}
            Err(failure) => debug!(
                keyring = %self.keyring.name(), trigger = trigger.as_str(), code = failure.code,
                "nothing changes: {failure}"
            ),
        }
        self.observer.observe(&self.keyring, now);
    }

    fn log_active(&self, trigger: Trigger, now: Timestamp) {
        if let Some(snapshot) = self.keyring.snapshot().as_deref() {
            let table = &snapshot.table;
            info!(
                keyring = %self.keyring.name(), trigger = trigger.as_str(),
                generation = table.generation(), primary = table.primary(now),
                "keyring active"
            );
        }
    }

    /// Logs a failure when it first occurs, and the recovery from it.
    fn log(
        &self,
        trigger: Trigger,
        result: &Result<RefreshOutcome, RefreshFailure>,
        now: Timestamp,
    ) {
        let name = self.keyring.name();
        let snapshot = self.keyring.snapshot().clone();
        let table = snapshot.as_deref().map(|snapshot| &snapshot.table);
        let failure = match result {
            Ok(_) => table.and_then(RefreshFailure::not_unwrapped),
            Err(failure) => Some(failure.clone()),
        };
        let is_valid = result
            .as_ref()
            .is_ok_and(|outcome| !matches!(outcome, RefreshOutcome::Behind));
        let before = self.keyring.record(now, is_valid, failure.clone());
        let is_news = before != failure;
        if let Some(failure) = &failure {
            if is_news {
                self.observer.refused(&self.keyring, failure);
                warn!(
                    keyring = %name, trigger = trigger.as_str(), code = failure.code,
                    generation_served = table.map(KeyTable::generation),
                    "refresh failed: {failure}"
                );
            }
        } else if before.is_some() {
            info!(keyring = %name, trigger = trigger.as_str(), "refresh works again");
        }
        let is_changed = match result {
            Ok(RefreshOutcome::Changed) => true,
            Ok(RefreshOutcome::Partial) => is_news,
            Ok(RefreshOutcome::Unchanged | RefreshOutcome::Behind) | Err(_) => false,
        };
        if is_changed {
            self.log_active(trigger, now);
        }
    }

    /// Warns once when half of the encrypt lease has passed without a confirmation.
    fn warn_of_lease(&mut self, now: Timestamp) {
        let snapshot = self.keyring.snapshot();
        let Some(table) = snapshot.as_deref().map(|snapshot| &snapshot.table) else {
            return;
        };
        let end = self.keyring.lease_end(table);
        let is_half_over = self.keyring.is_lease_half_over(table, now);
        if is_half_over && !self.warned_of_lease {
            warn!(
                keyring = %self.keyring.name(), %end,
                "half of the encrypt lease has passed without a confirmed manifest; encryption \
                 stops when the lease ends. Check {}",
                self.keyring.location()
            );
        }
        self.warned_of_lease = is_half_over;
    }
}
