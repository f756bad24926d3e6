//! What the config lets a keyring trust.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{config, keyring::Expectations, model::KekScope};

/// What a manifest and its KEKs are measured by. Another config replaces all of it at once.
pub(super) struct Trust {
    pub(super) expectations: Expectations,
    pub(super) scope: Arc<KekScope>,
    /// Cancelled when another config replaces it.
    pub(super) replaced: CancellationToken,
}

impl Trust {
    pub(super) fn new(settings: &config::Keyring) -> Arc<Self> {
        Arc::new(Self {
            expectations: Expectations::from(settings),
            scope: Arc::new(settings.keks.clone()),
            replaced: CancellationToken::new(),
        })
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        (&self.expectations, &self.scope) == (&other.expectations, &other.scope)
    }
}

impl From<&config::Keyring> for Expectations {
    fn from(settings: &config::Keyring) -> Self {
        Self {
            name: settings.name.clone(),
            min_generation: settings.min_generation,
            trusted_signers: settings.trusted_signers.clone(),
            anchor: settings.anchor.clone(),
            accept_lost: settings.accept_lost.clone(),
        }
    }
}
