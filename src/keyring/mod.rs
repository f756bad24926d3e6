//! The keyring's rules: manifest, versions, activations, lifecycle, and what a sidecar demands of a manifest before it serves from it.
//!
//! Pure: no I/O, no clock, no async. Time comes as an argument, keys come opened.

mod activation;
mod authentication;
mod backup;
mod lifecycle;
mod manifest;
#[cfg(test)]
mod properties;
mod succession;
mod table;

pub use activation::{Activation, Reign, WaveSelector, primaries, primary_at, reign, scheduled};
pub use authentication::{authenticate, verify};
pub use backup::{record_backup, restore};
pub use lifecycle::{
    Destruction, Evidence, NewVersion, Refusal, SidecarReport, VersionUse, activate, backup_phrase,
    compromise, destroy, disable, doubted_loss_phrase, enable, init, lost_phrase, rewrap, rotate,
    touch,
};
pub use manifest::{
    Authentication, BackupRecord, Base64, Document, Mac, Manifest, ManifestError, Policy,
    Signature, State, Version, Wrap, is_of_another_format,
};
pub use succession::succeeds;
pub use table::{Expectations, KeyTable, Opened, Rejection, Role, Slot, Succession};
