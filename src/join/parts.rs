use std::{sync::Arc, time::Duration};

use crate::{
    clock::Clock,
    refresh::Keyring,
    wire::{hub::ProofResult, proof::ProofRequest, status::Status},
};

/// What a member of a fleet reports on.
pub struct Parts {
    /// The identity of the process.
    pub instance: [u8; 16],
    /// The keyrings served.
    pub keyrings: Vec<Arc<Keyring>>,
    /// The time.
    pub clock: Clock,
    /// The longest wait before the hub is dialled again.
    pub max_backoff: Duration,
    /// The longest manifest, in bytes.
    pub manifest_bytes: usize,
    /// Returns the state of the sidecar.
    pub status: Box<dyn Fn() -> Status + Send + Sync>,
    /// Answers a request for a proof.
    pub prove: Box<dyn Fn(&ProofRequest) -> ProofResult + Send + Sync>,
}
