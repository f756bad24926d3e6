//! Whether this machine's clock can be trusted: it stamps changes and decides when waiting times
//! are over (I15).

use jiff::Timestamp;

use super::{access::Admin, error::AdminError};
use crate::{
    fleet::FleetClient,
    keyring::{self, CLOCK_TOLERANCE, Document, Manifest},
};

impl Admin {
    /// Checks that there is a clock to compare with, or that the operator trusts this one. Every
    /// change compares them.
    ///
    /// # Errors
    /// [`AdminError::NoClock`]; errors of reading the location and of unwrapping, because both the
    /// location and the KEKs may tell the time.
    pub async fn require_clock(&self) -> Result<(), AdminError> {
        let bases = &self.bases;
        if bases.trust_clock || !bases.sidecars.is_empty() || !bases.clocks.is_empty() {
            return Ok(());
        }
        let current = self.read_trusted().await?;
        if self.store.server_time().is_some() {
            return Ok(());
        }
        // A KEK has a time once it has responded.
        self.unwrap_versions(&current, &[]).await?;
        if self.keks.server_times().is_empty() {
            return Err(AdminError::NoClock);
        }
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
        if self.bases.trust_clock || theirs.duration_since(ours).abs() <= CLOCK_TOLERANCE {
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
}

fn is_near(stamp: Timestamp, now: Timestamp) -> bool {
    stamp.duration_since(now) <= CLOCK_TOLERANCE
}
