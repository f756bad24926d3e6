//! What version 2 of the key-value engine knows about the versions of a secret (`MOUNT/metadata/PATH`).

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct History {
    pub(super) data: Versions,
}

#[derive(Deserialize)]
pub(super) struct Versions {
    pub(super) current_version: u64,
    pub(super) versions: BTreeMap<String, State>,
}

#[derive(Deserialize)]
pub(super) struct State {
    pub(super) created_time: String,
    pub(super) deletion_time: String,
    pub(super) destroyed: bool,
}

impl State {
    /// Whether it can be read. A deletion may be ahead (`delete_version_after`).
    pub(super) fn is_there(&self) -> bool {
        !self.destroyed
            && time(&self.deletion_time).is_none_or(|deletion| deletion > Timestamp::now())
    }
}

/// A time as Vault writes it, which writes none as an empty string.
pub(super) fn time(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}
