//! The keyring's rules: manifest, versions, activations, lifecycle, and what a sidecar requires of
//! a manifest before it serves from it.
//!
//! Pure: no I/O, no clock, no async. Callers pass the time, and keys that are already unwrapped.

mod activation;
mod authentication;
mod backup;
mod branches;
mod consistency;
mod destruction;
mod document;
mod lifecycle;
mod limits;
mod manifest;
mod policy;
mod refusal;
mod rejection;
mod rollout;
mod sightings;
mod spread;
mod succession;
mod table;
#[cfg(test)]
mod tests;
mod trim;

pub use activation::{
    Activation, PrimaryPeriod, WaveSelector, primaries, primary_at, primary_period, scheduled,
    superseding_generation,
};
pub use authentication::{authenticate, is_signed_by, verify_signatures, verify_words};
pub use backup::{record_backup, restore};
pub use branches::merge;
pub use consistency::LINEAGE;
pub use destruction::{
    Loss, backup_phrase, declare_lost, destroy, destroyable_from, doubted_loss_phrase, lost_phrase,
    require_unasked,
};
pub use document::{Document, ManifestError, is_of_another_format};
pub use lifecycle::{
    Evidence, FleetEvidence, LedgerEvidence, NewVersion, SidecarReport, VersionUse, activate,
    compromise, disable, enable, init, repair_times, rewrap, rotate, touch,
};
pub use limits::{NearLimit, near_limits};
pub use manifest::{
    Ancestor, Authentication, BackupRecord, Base64, Manifest, Signature, State, Testament, Trimmed,
    Version, Word, Wrap,
};
pub use policy::{Class, Kept, Policy, overdue, set_policy};
pub use refusal::Refusal;
pub use rejection::Rejection;
pub use rollout::{
    ENDED_ROLLOUTS, RolloutMark, advance_rollout, end_rollout, replace_compromised,
    require_last_rollout, require_no_rollout, roll_back,
};
pub use sightings::{CLOCK_TOLERANCE, Sighting, Sightings};
pub use spread::waiting;
pub use succession::{Expectations, Succession, descends_from, examine, is_vouched_for};
pub use table::{KeyTable, NotUnwrapped, Role, Slot, UnwrapResults};
pub use trim::trim;
