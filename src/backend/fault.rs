#[cfg(any(feature = "aws", feature = "vault"))]
use super::StoreError;
use super::{KekError, KekFault, SecretError};
#[cfg(any(feature = "aws", feature = "vault"))]
use crate::model::Location;
use crate::model::{KekUri, SecretSource};

/// What is wrong with an outside system, before it is known what was wanted there.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) kind: KekFault,
    pub(super) reason: String,
}

impl Fault {
    pub(super) fn new(kind: KekFault, reason: impl Into<String>) -> Self {
        Self {
            kind,
            reason: reason.into(),
        }
    }

    pub(super) fn of_kek(self, uri: &KekUri) -> KekError {
        KekError::new(self.kind, format!("{uri}: {}", self.reason))
    }

    pub(super) fn of_secret(self, source: &SecretSource) -> SecretError {
        SecretError::new(self.kind.into(), format!("{source}: {}", self.reason))
    }

    #[cfg(any(feature = "aws", feature = "vault"))]
    pub(super) fn of_location(self, location: &Location) -> StoreError {
        let Self { kind, reason } = self;
        let location = location.clone();
        match kind {
            KekFault::Denied => StoreError::Denied { location, reason },
            _ => StoreError::Failed { location, reason },
        }
    }
}
