//! Whether this machine's clock can be trusted: it stamps changes and decides when waiting times
//! are over (I15).

use std::{
    fmt,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;

use super::{access::Admin, error::AdminError};
use crate::{
    fleet::FleetClient,
    keyring::{self, CLOCK_TOLERANCE, Document, Manifest},
};

/// A step of the stamps up to this one is unremarkable, however short the lease is.
const SHORT_STEP: Duration = Duration::from_secs(24 * 60 * 60);

/// What a command knows about its clock.
#[derive(Debug, Default)]
pub(super) struct ClockEvidence {
    /// Another clock agreed with it.
    is_compared: AtomicBool,
    /// The first large step of a manifest's stamps that this command made.
    large_step: Mutex<Option<StampStep>>,
}

/// A manifest is stamped long after its predecessor, and no other clock than this machine's says
/// that so much time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StampStep {
    /// The stamp of the predecessor.
    pub from: Timestamp,
    /// The stamp of the manifest.
    pub to: Timestamp,
}

impl fmt::Display for StampStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let days = self.to.duration_since(self.from).as_hours() / 24;
        write!(
            f,
            "the change is stamped {}, {days} days after the last one, by the clock of this \
             machine, and there was no other to compare it with; if it is ahead, correct it and \
             run `keyring touch --repair-time`; otherwise name a sidecar with --sidecar URL, or \
             vouch for the clock with --trust-clock",
            self.to
        )
    }
}

impl Admin {
    /// Checks that there is a clock to compare with, or that the operator trusts this one. Every
    /// change compares them.
    ///
    /// # Errors
    /// [`AdminError::NoClock`]; errors of reading the location and of unwrapping, because both the
    /// location and the KEKs may tell the time.
    pub async fn require_clock(&self) -> Result<(), AdminError> {
        self.compare_clocks().await?;
        if self.is_clock_vouched_for() {
            return Ok(());
        }
        let current = self.read_trusted().await?;
        if self.is_clock_vouched_for() {
            return Ok(());
        }
        // A KEK has a time once it has responded.
        self.unwrap_versions(&current, &[]).await?;
        self.compare_with_keks()?;
        if self.is_clock_vouched_for() {
            return Ok(());
        }
        Err(AdminError::NoClock)
    }

    /// Returns whether another clock agreed with this one, or the operator trusts it.
    fn is_clock_vouched_for(&self) -> bool {
        self.bases.trust_clock || self.clock_evidence.is_compared.load(Ordering::Relaxed)
    }

    /// Compares the clock before there is a manifest, with those of the KEKs or else with the
    /// location's.
    ///
    /// # Errors
    /// [`AdminError::ClockDiffers`]
    pub(super) async fn compare_before_init(&self) -> Result<(), AdminError> {
        self.compare_with_keks()?;
        if !self.is_clock_vouched_for() {
            // Every response states the time. Whether the location is empty, the write finds out.
            let _ = self.read_bytes().await;
            self.compare_with_location()?;
        }
        Ok(())
    }

    /// Compares the clock with all others before a manifest is repaired, once the location and the
    /// KEKs have answered.
    ///
    /// # Errors
    /// [`AdminError::ClockDiffers`]
    pub(super) async fn compare_before_repair(&self) -> Result<(), AdminError> {
        self.compare_clocks().await?;
        self.compare_with_location()?;
        self.compare_with_keks()
    }

    /// Compares the clock with those of the KEKs, which have unwrapped every key of a manifest
    /// before its successor is written.
    ///
    /// # Errors
    /// [`AdminError::ClockDiffers`]
    pub(super) fn compare_with_keks(&self) -> Result<(), AdminError> {
        for (kek, theirs) in self.keks.server_times() {
            self.compare_with(theirs, || kek.to_string())?;
        }
        Ok(())
    }

    /// Compares the clock with the location's, once that has answered.
    ///
    /// # Errors
    /// [`AdminError::ClockDiffers`]
    pub(super) fn compare_with_location(&self) -> Result<(), AdminError> {
        match self.store.server_time() {
            Some(theirs) => self.compare_with(theirs, || self.location.to_string()),
            None => Ok(()),
        }
    }

    fn compare_with(
        &self,
        theirs: Timestamp,
        holder: impl FnOnce() -> String,
    ) -> Result<(), AdminError> {
        let ours = self.now();
        if self.bases.trust_clock {
            return Ok(());
        }
        if theirs.duration_since(ours).abs() <= CLOCK_TOLERANCE {
            let is_compared = &self.clock_evidence.is_compared;
            is_compared.store(true, Ordering::Relaxed);
            return Ok(());
        }
        Err(AdminError::ClockDiffers {
            holder: holder(),
            theirs,
            ours,
        })
    }

    /// Compares the clock with those of the sidecars, if the command was given any.
    ///
    /// # Errors
    /// [`AdminError::ClockDiffers`] if one differs by more than five minutes, unless the operator
    /// trusts the clock.
    pub(super) async fn compare_clocks(&self) -> Result<(), AdminError> {
        if self.bases.trust_clock {
            return Ok(());
        }
        for fleet in [&self.bases.sidecars, &self.bases.clocks] {
            let client = FleetClient::new(fleet).map_err(AdminError::System)?;
            // A sidecar that doesn't answer is reported where it is needed as evidence or base.
            for (sidecar, status) in client.statuses().await {
                let Some(theirs) = status.ok().and_then(|status| status.now) else {
                    continue;
                };
                self.compare_with(theirs, || sidecar)?;
            }
        }
        Ok(())
    }

    /// Refuses to write over a manifest from the future, or repairs its times if the operator asks
    /// for that.
    pub(super) fn with_times_repaired(
        &self,
        current: &Document,
        next: Manifest,
    ) -> Result<Manifest, AdminError> {
        let (stamp, now) = (current.manifest().updated_at, self.now());
        if is_near(stamp, now) {
            return Ok(next);
        }
        if !self.bases.repair_time {
            return Err(AdminError::FromTheFuture {
                location: self.location.clone(),
                stamp,
                now,
            });
        }
        Ok(keyring::repair_times(current.manifest(), next, now))
    }

    /// Notes that a manifest was written after `current`. Stamps that follow each other closely
    /// show nothing wrong: the writer of the former one had a clock, too.
    pub(super) fn note_stamp(&self, current: &Manifest, next: &Manifest) {
        let step = StampStep {
            from: current.updated_at,
            to: next.updated_at,
        };
        // Half of it is when sidecars that rely on stamps begin to warn.
        let usual = SHORT_STEP.max(current.policy.encrypt_lease.0 / 2);
        let passed = step.to.duration_since(step.from);
        if passed.is_positive() && passed.unsigned_abs() > usual {
            self.large_step().get_or_insert(step);
        }
    }

    /// Returns how far the clock took the stamps of the keyring, if that is far and no other clock
    /// agreed.
    pub fn unconfirmed_step(&self) -> Option<StampStep> {
        self.large_step().filter(|_| !self.is_clock_vouched_for())
    }

    fn large_step(&self) -> MutexGuard<'_, Option<StampStep>> {
        let step = self.clock_evidence.large_step.lock();
        step.unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_near(stamp: Timestamp, now: Timestamp) -> bool {
    stamp.duration_since(now) <= CLOCK_TOLERANCE
}
