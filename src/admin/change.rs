//! Changes of a keyring, as compare-and-swap with retries.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tokio::time::sleep;

use super::{
    access::{Admin, Signing},
    base::leads_to,
    error::AdminError,
    evidence::ask_sightings,
};
use crate::{
    backend::{BackendError, ErrorKind},
    config,
    crypto::{Dek, KeyringId, SigningKey, WrapContext},
    keyring::{
        self, Document, Expectations, Loss, Manifest, NearLimit, NewVersion, Policy, Refusal,
        RolloutMark, Sighting, State, WaveSelector, examine,
    },
    model::{KekUri, KeyringName},
};

/// How many times a change is tried if other changes intervene.
const ATTEMPTS: u32 = 32;

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
        self.compare_before_init().await?;
        let manifest = keyring::init(name, id, policy, new, now);
        let document = self.authenticate(manifest, &BTreeMap::from([(1, keys)]))?;
        let document = readable(None, &document)?;
        self.replace(None, &document).await?;
        self.remember(&document)?;
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
        let document = self
            .retry(async || self.add_version(keks, None).await)
            .await?;
        let version = document.manifest().newest_version();
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
        self.change(|current, now| keyring::activate(current, version, wave.clone(), at, now))
            .await
    }

    /// Makes any other change.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn change(
        &self,
        change: impl Fn(&Document, Timestamp) -> Result<Manifest, Refusal>,
    ) -> Result<Document, AdminError> {
        self.change_at(None, change).await
    }

    /// Makes a change, by hand or as the step `mark` of a rollout.
    pub(super) async fn change_at(
        &self,
        mark: Option<&RolloutMark>,
        change: impl Fn(&Document, Timestamp) -> Result<Manifest, Refusal>,
    ) -> Result<Document, AdminError> {
        self.retry(async || {
            let current = self.read_trusted().await?;
            // Before any KEK is used, so that a refusal needs no rights.
            let next = advanced(&current, change(&current, self.clock.now())?, mark)?;
            let keys = self.unwrap_versions(&current, &[]).await?;
            self.write(&current, next, &keys).await
        })
        .await
    }

    /// Destroys a disabled version. `confirm` is the phrase that replaces a verified backup.
    ///
    /// # Errors
    /// [`AdminError`]; a [`Refusal`] such as one of a waiting time that isn't over.
    pub async fn destroy(
        &self,
        version: u32,
        confirm: Option<&str>,
    ) -> Result<Document, AdminError> {
        self.destroy_at(None, version, confirm).await
    }

    /// Destroys a version, by hand or as the step `mark` of a rollout.
    pub(super) async fn destroy_at(
        &self,
        mark: Option<&RolloutMark>,
        version: u32,
        confirm: Option<&str>,
    ) -> Result<Document, AdminError> {
        self.require_clock().await?;
        self.retry(async || {
            let current = self.read_trusted().await?;
            let seen = self.first_seen(current.manifest(), version).await?;
            let next = keyring::destroy(&current, version, confirm, seen, self.clock.now())?;
            let next = advanced(&current, next, mark)?;
            let keys = self.unwrap_versions(&current, &[]).await?;
            self.write(&current, next, &keys).await
        })
        .await
    }

    /// Drops versions that were destroyed before `before`.
    ///
    /// # Errors
    /// [`AdminError`]
    pub async fn trim(&self, before: Timestamp) -> Result<Document, AdminError> {
        self.require_clock().await?;
        self.change(|current, now| keyring::trim(current, before, now))
            .await
    }

    /// Returns when this user's commands or the sidecars first saw the state of a version.
    async fn first_seen(&self, manifest: &Manifest, version: u32) -> Result<Sighting, AdminError> {
        let mut by_sidecars = Sighting::default();
        for fleet in [&self.bases.sidecars, &self.bases.clocks] {
            let seen = ask_sightings(fleet, manifest, version).await;
            by_sidecars = by_sidecars.or_earlier(seen.map_err(AdminError::System)?);
        }
        let here = match &self.bases.memory {
            Some(memory) => memory.sightings(manifest.id)?.of(version),
            None => Sighting::default(),
        };
        Ok(here.or_earlier(by_sidecars))
    }

    /// Destroys versions that no KEK can unwrap any more.
    ///
    /// # Errors
    /// [`AdminError`]; a [`Refusal`] if a KEK can, or might again, unwrap one of them.
    pub async fn declare_lost(&self, loss: Loss<'_>) -> Result<Document, AdminError> {
        self.retry(async || {
            let current = self.read_trusted().await?;
            let next = keyring::declare_lost(&current, loss, self.clock.now())?;
            let keys = self.unwrap_versions(&current, loss.versions).await?;
            self.require_lost(current.manifest(), loss).await?;
            self.write(&current, next, &keys).await
        })
        .await
    }

    /// Refuses to treat a version as lost that a KEK can, or might again, unwrap.
    async fn require_lost(&self, manifest: &Manifest, loss: Loss<'_>) -> Result<(), AdminError> {
        // Missing, or replaced by another key. Other errors may be temporary: the network, rights,
        // settings.
        let is_gone = |error: &BackendError| {
            matches!(
                error.kind,
                ErrorKind::NotFound | ErrorKind::Rejected | ErrorKind::Exchanged
            )
        };
        let mut doubts = Vec::new();
        for number in loss.versions {
            let Some(version) = manifest.version(*number) else {
                continue;
            };
            // A KEK that may not be asked might still unwrap the version, so it is a doubt.
            let attempts = self.keks.try_each(manifest.id, version, &self.scope).await;
            if attempts.iter().any(|attempt| attempt.result.is_ok()) {
                return Err(Refusal::NotLost(*number).into());
            }
            let errors = attempts
                .into_iter()
                .filter_map(|attempt| attempt.result.err());
            doubts.extend(
                errors
                    .filter(|error| !is_gone(error))
                    .map(|error| format!("version {number}: {error}")),
            );
        }
        let phrase = keyring::doubted_loss_phrase(&manifest.name, loss.versions);
        if doubts.is_empty() || loss.confirm == Some(phrase.as_str()) {
            return Ok(());
        }
        Err(Refusal::LossUnconfirmed { doubts, phrase }.into())
    }

    /// Adds a version, by hand or as the step `mark` of a rollout.
    pub(super) async fn add_version(
        &self,
        keks: &[KekUri],
        mark: Option<&RolloutMark>,
    ) -> Result<Document, AdminError> {
        let current = self.read_trusted().await?;
        let manifest = current.manifest();
        let mut keys = self.unwrap_versions(&current, &[]).await?;
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
        let number = manifest.newest_version() + 1;
        let now = self.clock.now();
        let (new, new_keys) = self.new_version(manifest.id, number, keks).await?;
        keys.insert(number, new_keys);
        let next = advanced(&current, keyring::rotate(&current, new, now), mark)?;
        self.write(&current, next, &keys).await
    }

    async fn new_version(
        &self,
        id: KeyringId,
        version: u32,
        keks: &[KekUri],
    ) -> Result<(NewVersion, SigningKey), AdminError> {
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
        let succession = dek.succession_key();
        Ok((
            NewVersion {
                wraps,
                check: dek.check_value(&id, version),
                key: succession.public_key(),
            },
            succession,
        ))
    }

    pub(super) async fn write(
        &self,
        current: &Document,
        next: Manifest,
        keys: &BTreeMap<u32, SigningKey>,
    ) -> Result<Document, AdminError> {
        if !self.bases.despite_rollout {
            keyring::require_no_rollout(current.manifest(), &next)?;
        }
        self.require_signing(current)?;
        self.compare_with_keks()?;
        let next = self.with_times_repaired(current, next)?;
        let document = readable(Some(current), &self.authenticate(next, keys)?)?;
        self.replace(Some(current), &document).await?;
        self.note_stamp(current.manifest(), document.manifest());
        self.remember(&document)?;
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
    pub(super) async fn retry(
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

impl Admin {
    /// Returns the limits of the format, the location and the sidecars' defaults of which a
    /// manifest uses half or more.
    pub fn near_limits(&self, document: &Document) -> Vec<NearLimit> {
        let readable = config::Refresh::default().manifest_bytes;
        let capacity = self.store.capacity().unwrap_or(usize::MAX).min(readable);
        keyring::near_limits(document, capacity)
    }
}

/// Moves the rollout that makes a change on to its step `mark`; None if it is made by hand.
fn advanced(
    current: &Document,
    next: Manifest,
    mark: Option<&RolloutMark>,
) -> Result<Manifest, Refusal> {
    match mark {
        Some(mark) => keyring::advance_rollout(current, next, mark.clone()),
        None => Ok(next),
    }
}

/// Waits for a random time, so that concurrent operators don't collide again.
pub(super) async fn back_off() {
    sleep(Duration::from_millis(fastrand::u64(1..50))).await;
}

/// Parses what is about to be written and examines it as a reader of `current` will, so that no
/// command writes a manifest that readers refuse. They may have to accept losses.
pub(super) fn readable(
    current: Option<&Document>,
    document: &Document,
) -> Result<Document, AdminError> {
    let read = Document::parse(document.bytes().clone())
        .map_err(|error| AdminError::Unreadable(error.to_string()))?;
    let verdict = match current {
        Some(current) => {
            let versions = read.manifest().versions.iter();
            let lost: Vec<u32> = versions
                .filter(|version| version.is_lost())
                .map(|version| version.version)
                .collect();
            leads_to(current, &read, &lost)
        }
        None => examine(None, &read, &Expectations::of(&read.manifest().name)),
    };
    verdict.map_err(|error| AdminError::Unreadable(error.to_string()))?;
    Ok(read)
}
