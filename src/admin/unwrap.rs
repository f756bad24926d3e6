//! Unwrapping all versions of a keyring and verifying its manifest.

use std::collections::BTreeMap;

use super::{access::Admin, error::AdminError};
use crate::{
    crypto::VersionKeys,
    keyring::{self, Document},
    model::SignerKey,
};

impl Admin {
    /// Unwraps every version that is not destroyed, and verifies the MACs. Unless `trusted` is
    /// empty, a signature by one of these keys is required, too.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn verify(&self, trusted: &[SignerKey]) -> Result<Document, AdminError> {
        let document = self.read().await?;
        self.unwrap_versions(&document, trusted, None).await?;
        Ok(document)
    }

    /// Unwraps all versions except `lost`, and verifies the document.
    pub(super) async fn unwrap_versions(
        &self,
        document: &Document,
        trusted: &[SignerKey],
        lost: Option<u32>,
    ) -> Result<BTreeMap<u32, VersionKeys>, AdminError> {
        let mut keys = BTreeMap::new();
        self.unwrap_missing(&mut keys, document, trusted, lost)
            .await?;
        Ok(keys)
    }

    /// Unwraps the versions whose keys aren't in `keys` yet, and verifies the document with all
    /// keys.
    pub(super) async fn unwrap_missing(
        &self,
        keys: &mut BTreeMap<u32, VersionKeys>,
        document: &Document,
        trusted: &[SignerKey],
        lost: Option<u32>,
    ) -> Result<(), AdminError> {
        let manifest = document.manifest();
        let needed = manifest.live().filter(|version| {
            Some(version.version) != lost && !keys.contains_key(&version.version)
        });
        let unwrapped = self
            .keks
            .unwrap_all(manifest.id, needed.collect::<Vec<_>>(), &self.scope)
            .await;
        let mut failed = Vec::new();
        for (version, result) in unwrapped {
            match result {
                Ok(derived) => drop(keys.insert(version, derived)),
                Err(reason) => failed.push((version, reason)),
            }
        }
        if !failed.is_empty() {
            return Err(AdminError::NotUnwrapped(failed));
        }
        keyring::verify(document, keys, trusted).map_err(|error| AdminError::Unauthentic {
            location: self.location.clone(),
            error,
        })
    }
}
