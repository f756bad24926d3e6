//! New wraps for the same keys, after a KEK was added, removed or rotated.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use jiff::Timestamp;

use super::{access::Admin, change::back_off, error::AdminError};
use crate::{
    backend::ErrorKind,
    crypto::{KeyringId, WrapContext},
    keks::UnwrapAttempt,
    keyring::{self, Document, Version, Wrap},
    model::{KekScope, KekUri},
};

/// Versions rewrapped per generation; an interruption loses at most this many.
const CHUNK: usize = 16;

/// A change of the KEKs that wrap a keyring's versions.
#[derive(Debug, Clone, Default)]
pub struct KekChange {
    /// KEKs to add to every version.
    pub add: Vec<KekUri>,
    /// KEKs to remove from every version.
    pub remove: Vec<KekUri>,
    /// Renew wraps older than this.
    pub refresh_before: Option<Timestamp>,
}

impl KekChange {
    /// The KEKs that must wrap a version again.
    fn missing<'a>(&'a self, version: &'a Version) -> impl Iterator<Item = &'a KekUri> {
        let added = self
            .add
            .iter()
            .filter(|kek| !version.wraps.iter().any(|wrap| wrap.kek == **kek));
        let stale = self.kept(version).filter(|wrap| {
            self.refresh_before
                .is_some_and(|time| wrap.wrapped_at < time)
        });
        added.chain(stale.map(|wrap| &wrap.kek))
    }

    fn kept<'a>(&'a self, version: &'a Version) -> impl Iterator<Item = &'a Wrap> {
        version
            .wraps
            .iter()
            .filter(|wrap| !self.remove.contains(&wrap.kek))
    }

    fn concerns(&self, version: &Version) -> bool {
        self.missing(version).next().is_some() || self.kept(version).count() < version.wraps.len()
    }
}

impl Admin {
    /// Changes the wraps of every version that is not destroyed, a few versions per generation.
    /// Calls `progress` with the numbers of finished and of all versions. The same call resumes an
    /// interrupted change.
    ///
    /// # Errors
    /// [`AdminError`]. No wrap is removed before the others are known to work.
    pub async fn rewrap(
        &self,
        change: &KekChange,
        progress: impl Fn(usize, usize),
    ) -> Result<(Document, usize), AdminError> {
        let mut keys = BTreeMap::new();
        let mut done = 0;
        loop {
            let current = self.read_trusted().await?;
            let manifest = current.manifest();
            let waiting: Vec<&Version> = manifest
                .live()
                .filter(|version| change.concerns(version))
                .collect();
            progress(done, done + waiting.len());
            if waiting.is_empty() {
                return Ok((current, done));
            }
            self.unwrap_missing(&mut keys, &current, &[]).await?;
            let chunk = &waiting[..waiting.len().min(CHUNK)];
            let wraps = try_join_all(
                chunk
                    .iter()
                    .map(|version| self.rewrapped(manifest.id, version, change)),
            )
            .await?;
            let next = keyring::rewrap(&current, wraps.into_iter().collect(), self.now())?;
            match self.write(&current, next, &keys).await {
                Ok(_) => done += chunk.len(),
                // Another change intervened; the next iteration reads what is left to do.
                Err(AdminError::Backend(error)) if error.kind == ErrorKind::Conflict => {
                    back_off().await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn rewrapped(
        &self,
        keyring: KeyringId,
        version: &Version,
        change: &KekChange,
    ) -> Result<(u32, Vec<Wrap>), AdminError> {
        let number = version.version;
        let missing: Vec<KekUri> = change.missing(version).cloned().collect();
        let fresh = if missing.is_empty() {
            Vec::new()
        } else {
            let dek = match self.keks.unwrap(keyring, version, &self.scope).await {
                Ok(dek) => dek,
                Err(reason) => self
                    .dek_in_backup(keyring, version, &reason)
                    .ok_or_else(|| AdminError::NotUnwrapped(vec![(number, reason.message)]))?,
            };
            self.keks
                .wrap(
                    &missing,
                    &dek,
                    WrapContext {
                        keyring,
                        version: number,
                    },
                )
                .await?
        };
        let kept: Vec<Wrap> = change
            .kept(version)
            .filter(|wrap| !fresh.iter().any(|fresh| fresh.kek == wrap.kek))
            .cloned()
            .collect();
        // Every new wrap must be unwrapped; without new ones, one of the remaining.
        let (wraps, scope) = if fresh.is_empty() {
            (kept.clone(), &*self.scope)
        } else {
            // The operator named these KEKs.
            (fresh.clone(), &KekScope::Any)
        };
        let to_prove = Version {
            wraps,
            ..version.clone()
        };
        let attempts = self.keks.try_each(keyring, &to_prove, scope).await;
        let failed: Vec<String> = attempts
            .iter()
            .filter_map(|attempt| Some(attempt.result.as_ref().err()?.to_string()))
            .collect();
        let is_proven = if fresh.is_empty() {
            failed.len() < attempts.len()
        } else {
            failed.is_empty()
        };
        if !is_proven && !to_prove.wraps.is_empty() {
            return Err(AdminError::Unproven {
                version: number,
                reasons: failed.join("; "),
            });
        }
        Ok((number, kept.into_iter().chain(fresh).collect()))
    }

    /// Tries to unwrap every wrap of every version that is not destroyed.
    pub async fn try_wraps(&self, document: &Document) -> Vec<(u32, Vec<UnwrapAttempt>)> {
        let manifest = document.manifest();
        let mut attempts = Vec::new();
        // One version at a time, to limit the load on KEKs.
        for version in manifest.live() {
            attempts.push((
                version.version,
                self.keks.try_each(manifest.id, version, &self.scope).await,
            ));
        }
        attempts
    }
}
