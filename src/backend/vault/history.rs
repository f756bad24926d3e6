//! The metadata of a secret's versions (`MOUNT/metadata/PATH`, version 2 of the key-value engine).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct HistoryResponse {
    pub(super) data: History,
}

#[derive(Deserialize)]
pub(super) struct History {
    pub(super) current_version: u64,
    pub(super) versions: BTreeMap<String, VersionState>,
}

#[derive(Deserialize)]
pub(super) struct VersionState {
    pub(super) created_time: String,
    pub(super) deletion_time: String,
    pub(super) destroyed: bool,
}

impl VersionState {
    /// Whether the version can be read. Its deletion may be scheduled (`delete_version_after`).
    pub(super) fn is_readable(&self) -> bool {
        !self.destroyed
            && time(&self.deletion_time).is_none_or(|deletion| deletion > Timestamp::now())
    }
}

/// Parses a time. Vault writes an empty string for none.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}
