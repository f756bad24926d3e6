//! Unwrapping all versions of a keyring and verifying its manifest.

use std::collections::BTreeMap;

use super::{access::Admin, backup::CONCURRENT, error::AdminError};
use crate::{
    crypto::{ProofKey, SigningKey},
    keyring::{Document, Manifest, Refusal, State, verify_signatures, verify_words},
    model::SignerKey,
};

impl Admin {
    /// Unwraps every version that is not destroyed, and verifies the words of all of them. Unless
    /// `trusted` is empty, a signature by one of these keys is required, too.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn verify(&self, trusted: &[SignerKey]) -> Result<Document, AdminError> {
        let document = self.read_checked().await?;
        verify_signatures(&document, trusted).map_err(|error| self.unauthentic(error))?;
        self.unwrap_versions(&document, &[]).await?;
        Ok(document)
    }

    /// Returns the key that verifies what sidecars prove about a version.
    ///
    /// # Errors
    /// [`AdminError::NoProofKey`] if no KEK unwraps the version; a [`Refusal`] if it doesn't exist
    /// or was destroyed; [`AdminError::Unauthentic`].
    pub async fn proof_key(
        &self,
        document: &Document,
        version: u32,
    ) -> Result<ProofKey, AdminError> {
        verify_words(document).map_err(|error| self.unauthentic(error))?;
        let manifest = document.manifest();
        let listed = manifest
            .version(version)
            .ok_or_else(|| Refusal::NoSuchVersion {
                keyring: manifest.name.clone(),
                version,
                first: manifest.first_version(),
                last: manifest.newest_version(),
            })?;
        if listed.state == State::Destroyed {
            let (state, needed) = (listed.state, "its key can't be proven");
            return Err(Refusal::WrongState {
                version,
                state,
                needed,
            }
            .into());
        }
        let unwrapped = self.keks.unwrap(manifest.id, listed, &self.scope).await;
        let dek = unwrapped.or_else(|reason| {
            let dek = self.dek_in_backup(manifest.id, listed, &reason);
            dek.ok_or(AdminError::NoProofKey {
                version,
                reason: reason.message,
            })
        })?;
        Ok(dek.proof_key())
    }

    /// Unwraps all versions except the `lost` ones, and verifies the document.
    pub(super) async fn unwrap_versions(
        &self,
        document: &Document,
        lost: &[u32],
    ) -> Result<BTreeMap<u32, SigningKey>, AdminError> {
        let mut keys = BTreeMap::new();
        self.unwrap_missing(&mut keys, document, lost).await?;
        Ok(keys)
    }

    /// Unwraps the versions whose succession keys aren't in `keys` yet. An unwrapped key is the one
    /// that the manifest lists, and with all of them the words prove who wrote it.
    pub(super) async fn unwrap_missing(
        &self,
        keys: &mut BTreeMap<u32, SigningKey>,
        document: &Document,
        lost: &[u32],
    ) -> Result<(), AdminError> {
        // Before any KEK is asked: it needs none.
        verify_words(document).map_err(|error| self.unauthentic(error))?;
        self.unwrap_keys(keys, document.manifest(), lost).await
    }

    /// Unwraps the live versions of a manifest that may not be authenticated yet. The keys in a
    /// backup replace those that no KEK unwraps.
    pub(super) async fn unwrap_keys(
        &self,
        keys: &mut BTreeMap<u32, SigningKey>,
        manifest: &Manifest,
        lost: &[u32],
    ) -> Result<(), AdminError> {
        let needed = manifest.live().filter(|version| {
            !lost.contains(&version.version) && !keys.contains_key(&version.version)
        });
        let unwrapped = self
            .keks
            .unwrap_each(
                manifest.id,
                needed.collect::<Vec<_>>(),
                &self.scope,
                CONCURRENT,
            )
            .await;
        let mut failed = Vec::new();
        for (version, result) in unwrapped {
            let dek = result.or_else(|reason| {
                let listed = manifest.version(version);
                let dek =
                    listed.and_then(|listed| self.dek_in_backup(manifest.id, listed, &reason));
                dek.ok_or(reason)
            });
            match dek {
                Ok(dek) => drop(keys.insert(version, dek.succession_key())),
                Err(reason) => failed.push((version, reason.message)),
            }
        }
        // They arrive in the order in which KEKs answer.
        failed.sort();
        if failed.is_empty() {
            Ok(())
        } else {
            Err(AdminError::NotUnwrapped(failed))
        }
    }
}
