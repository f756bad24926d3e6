//! Changes of a keyring, as compare-and-swap with retries.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::time::sleep;

use super::{
    access::{Admin, Signing},
    error::AdminError,
};
use crate::{
    backend::{BackendError, ErrorKind},
    crypto::{Dek, KeyringId, VersionKeys, WrapContext},
    keyring::{self, Document, Manifest, NewVersion, Policy, Refusal, State, WaveSelector},
    model::{KekScope, KekUri, KeyringName},
};

/// How many times a change is tried if other changes intervene.
const ATTEMPTS: u32 = 32;

/// A version that can't be unwrapped any more and is about to be destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loss<'w> {
    /// The version's number.
    pub version: u32,
    /// The phrase with which the operator confirmed the loss.
    pub confirm: Option<&'w str>,
}

/// When a new version becomes the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// Not yet: the version stays pending.
    Later,
    /// For every wave, immediately.
    Now,
    /// For every wave, at this time.
    At(Timestamp),
}

impl Admin {
    /// Creates a keyring. Version 1 is wrapped with each of `keks` and the primary of every wave.
    ///
    /// # Errors
    /// [`AdminError`]; [`ErrorKind::Conflict`] if the location already has a manifest.
    pub async fn init(
        &self,
        name: KeyringName,
        keks: &[KekUri],
        policy: Policy,
    ) -> Result<Document, AdminError> {
        let id = KeyringId::generate()?;
        let now = self.clock.now();
        let (new, keys) = self.new_version(id, 1, keks).await?;
        let manifest = keyring::init(name, id, policy, new, now);
        let document = self.authenticate(manifest, &BTreeMap::from([(1, keys)]))?;
        self.replace(None, &document).await?;
        Ok(document)
    }

    /// Adds a version, wrapped with `keks` or, if empty, with the KEKs of the newest version that
    /// is not destroyed.
    ///
    /// # Errors
    /// [`AdminError`]. If only the activation failed, the new version exists and is pending.
    pub async fn rotate(
        &self,
        keks: &[KekUri],
        takeover: Takeover,
    ) -> Result<(Document, u32), AdminError> {
        if let Takeover::At(at) = takeover
            && at < self.clock.now()
        {
            // Checked before anything is written.
            return Err(Refusal::InThePast { at }.into());
        }
        let document = self.retry(async || self.add_version(keks).await).await?;
        let version = newest(document.manifest());
        let document = match takeover {
            Takeover::Later => document,
            Takeover::Now => self.activate(version, WaveSelector::Every, None).await?,
            Takeover::At(at) => {
                self.activate(version, WaveSelector::Every, Some(at))
                    .await?
            }
        };
        Ok((document, version))
    }

    /// Makes a version the primary of `wave` at `at`, or now.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn activate(
        &self,
        version: u32,
        wave: WaveSelector,
        at: Option<Timestamp>,
    ) -> Result<Document, AdminError> {
        self.change(None, |current, now| {
            keyring::activate(current, version, wave.clone(), at, now)
        })
        .await
    }

    /// Makes any other change. The version in `lost` need not be unwrapped.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn change(
        &self,
        lost: Option<Loss<'_>>,
        change: impl Fn(&Manifest, Timestamp) -> Result<Manifest, Refusal>,
    ) -> Result<Document, AdminError> {
        self.retry(async || {
            let current = self.read().await?;
            // Before any KEK is used, so that a refusal needs no rights.
            let next = change(current.manifest(), self.clock.now())?;
            let keys = self
                .unwrap_versions(&current, &[], lost.map(|lost| lost.version))
                .await?;
            if let Some(lost) = lost {
                self.require_lost(current.manifest(), lost).await?;
            }
            self.write(&current, next, &keys).await
        })
        .await
    }

    /// Refuses to treat a version as lost that a KEK can, or might again, unwrap.
    async fn require_lost(&self, manifest: &Manifest, lost: Loss<'_>) -> Result<(), AdminError> {
        let Loss {
            version: number,
            confirm,
        } = lost;
        let Some(version) = manifest.version(number) else {
            return Ok(());
        };
        // Every KEK, regardless of the allowed scope: any of them may unwrap the version.
        let attempts = self
            .keks
            .try_each(manifest.id, version, &KekScope::Any)
            .await;
        if attempts.iter().any(|attempt| attempt.result.is_ok()) {
            return Err(Refusal::NotLost(number).into());
        }
        // Missing, or replaced by another key. Other errors may be temporary: the network, rights,
        // settings.
        let is_gone =
            |error: &BackendError| matches!(error.kind, ErrorKind::NotFound | ErrorKind::Rejected);
        let errors = attempts
            .into_iter()
            .filter_map(|attempt| attempt.result.err());
        let doubts: Vec<String> = errors
            .filter(|error| !is_gone(error))
            .map(|error| error.to_string())
            .collect();
        let phrase = keyring::doubted_loss_phrase(&manifest.name, number);
        if doubts.is_empty() || confirm == Some(phrase.as_str()) {
            return Ok(());
        }
        Err(Refusal::LossUnconfirmed {
            version: number,
            doubts,
            phrase,
        }
        .into())
    }

    async fn add_version(&self, keks: &[KekUri]) -> Result<Document, AdminError> {
        let current = self.read().await?;
        let manifest = current.manifest();
        let mut keys = self.unwrap_versions(&current, &[], None).await?;
        let inherited: Vec<KekUri>;
        let keks = if keks.is_empty() {
            let model = manifest
                .versions
                .iter()
                .rev()
                .find(|version| version.state != State::Destroyed);
            inherited = model
                .into_iter()
                .flat_map(|version| &version.wraps)
                .map(|wrap| wrap.kek.clone())
                .collect();
            &inherited
        } else {
            keks
        };
        let number = newest(manifest) + 1;
        let now = self.clock.now();
        let (new, new_keys) = self.new_version(manifest.id, number, keks).await?;
        keys.insert(number, new_keys);
        self.write(&current, keyring::rotate(manifest, new, now), &keys)
            .await
    }

    async fn new_version(
        &self,
        id: KeyringId,
        version: u32,
        keks: &[KekUri],
    ) -> Result<(NewVersion, VersionKeys), AdminError> {
        let dek = Dek::generate()?;
        let wraps = self
            .keks
            .wrap(
                keks,
                &dek,
                WrapContext {
                    keyring: id,
                    version,
                },
            )
            .await?;
        let keys = VersionKeys::derive(&dek).map_err(|error| {
            AdminError::System(format!("can't allocate memory for keys: {error}"))
        })?;
        Ok((
            NewVersion {
                wraps,
                check: dek.check_value(&id, version),
            },
            keys,
        ))
    }

    pub(super) async fn write(
        &self,
        current: &Document,
        next: Manifest,
        keys: &BTreeMap<u32, VersionKeys>,
    ) -> Result<Document, AdminError> {
        self.require_signing(current)?;
        let document = self.authenticate(next, keys)?;
        self.replace(Some(current), &document).await?;
        Ok(document)
    }

    /// Refuses to replace a signed manifest by an unsigned one, unless requested.
    pub(super) fn require_signing(&self, current: &Document) -> Result<(), AdminError> {
        let was_signed = !current.manifest().authentication.signatures.is_empty();
        if was_signed && matches!(self.signing, Signing::NoKey) {
            return Err(AdminError::WouldDropSignature(self.location.clone()));
        }
        Ok(())
    }

    /// Repeats `attempt` if another change intervened (I8).
    async fn retry(
        &self,
        attempt: impl AsyncFn() -> Result<Document, AdminError>,
    ) -> Result<Document, AdminError> {
        for _ in 1..ATTEMPTS {
            match attempt().await {
                Err(AdminError::Backend(error)) if error.kind == ErrorKind::Conflict => {
                    back_off().await;
                }
                result => return result,
            }
        }
        attempt().await
    }
}

/// Waits for a random time, so that concurrent operators don't collide again.
pub(super) async fn back_off() {
    sleep(Duration::from_millis(fastrand::u64(1..50))).await;
}

fn newest(manifest: &Manifest) -> u32 {
    manifest
        .versions
        .last()
        .map_or(0, |version| version.version)
}
