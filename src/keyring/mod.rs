//! The keyring's rules: manifest, versions, activations, lifecycle, and what a sidecar requires of
//! a manifest before it serves from it.
//!
//! Pure: no I/O, no clock, no async. Callers pass the time, and keys that are already unwrapped.

mod activation;
mod authentication;
mod backup;
mod destruction;
mod lifecycle;
mod manifest;
mod refusal;
mod rejection;
mod succession;
mod table;
#[cfg(test)]
mod tests;

pub use activation::{
    Activation, PrimaryPeriod, WaveSelector, primaries, primary_at, primary_period, scheduled,
};
pub use authentication::{authenticate, verify};
pub use backup::{record_backup, restore};
pub use destruction::{Destruction, backup_phrase, destroy, doubted_loss_phrase, lost_phrase};
pub use lifecycle::{
    Evidence, NewVersion, SidecarReport, VersionUse, activate, compromise, disable, enable, init,
    rewrap, rotate, touch,
};
pub use manifest::{
    Authentication, BackupRecord, Base64, Document, Mac, Manifest, ManifestError, Policy,
    Signature, State, Version, Wrap, is_of_another_format,
};
pub use refusal::Refusal;
pub use rejection::Rejection;
pub use succession::{Succession, succeeds};
pub use table::{Expectations, KeyTable, Role, Slot, UnwrapResults};
