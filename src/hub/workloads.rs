//! The workloads that the config declares, and the keyrings that they may use.

use crate::{
    config::Workload,
    ledger::Declared,
    model::{KeyringName, Span},
};

/// The declared workloads.
pub(super) struct Workloads(Vec<Workload>);

impl Workloads {
    pub(super) fn new(declared: &[Workload]) -> Self {
        Self(declared.to_vec())
    }

    /// Whether a workload of this name is declared.
    pub(super) fn has(&self, workload: &str) -> bool {
        self.0.iter().any(|known| known.name == workload)
    }

    /// Whether the workload may use the keyring.
    pub(super) fn may_use(&self, workload: &str, keyring: &KeyringName) -> bool {
        let mut workloads = self.0.iter();
        workloads.any(|known| known.name == workload && known.keyrings.contains(keyring))
    }

    /// Returns the workloads that may use a keyring.
    pub(super) fn of(&self, keyring: &KeyringName) -> Vec<Declared> {
        let workloads = self.0.iter();
        workloads
            .filter(|workload| workload.keyrings.contains(keyring))
            .map(|workload| Declared {
                workload: workload.name.clone(),
                max_interval: workload.max_interval.map(Span),
            })
            .collect()
    }
}
