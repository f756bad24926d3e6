//! Restoring the manifest and the keys of a backup as a new generation, never below one that any
//! sidecar has.

use std::{collections::BTreeMap, path::Path};

use super::{
    access::Admin,
    backup::{for_each, open_content, read_file},
    base::Held,
    change::readable,
    envelope::DecryptWith,
    error::AdminError,
    payload::{self, Content},
    present::Present,
    recover::fetch_manifests,
};
use crate::{
    crypto::{Dek, WrapContext},
    fleet::Fleet,
    keyring::{self, Document, NotUnwrapped, Refusal, Version, Wrap, descends_from, verify_words},
    model::{KekScope, KekUri},
};

/// How far `at_least` may exceed the newest known generation.
const MAX_JUMP: u64 = 1_000_000;

/// A request to restore a keyring.
pub struct Restoring<'a> {
    /// The backup's file.
    pub file: &'a Path,
    /// What decrypts the backup.
    pub decrypt_with: &'a DecryptWith,
    /// KEKs that wrap every version from now on; empty to keep those in the manifest.
    pub keks: &'a [KekUri],
    /// Sidecars that may have a newer manifest.
    pub sidecars: &'a Fleet,
    /// The operator states that no sidecar exists.
    pub no_sidecar: bool,
    /// Keep a newer manifest, and restore only its keys from the backup.
    pub onto_newer: bool,
    /// The lowest generation to write, if sidecars that can't be asked may have a newer one.
    pub at_least: u64,
}

/// The result of a restore.
#[derive(Debug)]
pub struct Restored {
    /// The new generation.
    pub document: Document,
    /// Whether a newer manifest than the backup's was kept.
    pub kept_newer: bool,
    /// Why the previous content was not a valid manifest, if there was any.
    pub damage: Option<String>,
}

impl Admin {
    /// Restores a keyring from a backup.
    ///
    /// # Errors
    /// [`AdminError`]: [`Refusal::NoSidecarAsked`] if nothing shows which generation is the newest;
    /// [`Refusal::NewerPresent`] or [`Refusal::Diverged`] if a manifest in the location or at a
    /// sidecar is not a predecessor of the backup's.
    pub async fn restore(&self, how: &Restoring<'_>) -> Result<Restored, AdminError> {
        let backup = read_file(how.file)?;
        let content =
            open_content(&backup, how.decrypt_with).map_err(|reason| AdminError::Backup {
                file: how.file.to_owned(),
                reason,
            })?;
        let record = self.record_of(&content.document, &backup);
        let Present {
            bytes,
            document: present,
            damage,
        } = self.present().await?;
        if present.is_none() && how.sidecars.is_empty() && !how.no_sidecar {
            let what = if damage.is_some() {
                "has no valid manifest"
            } else {
                "is empty"
            };
            return Err(Refusal::NoSidecarAsked {
                place: self.location().to_string(),
                what,
            }
            .into());
        }
        let manifest = content.document.manifest();
        let mut others = fetch_manifests(how.sidecars, &manifest.name).await?;
        others.extend(present.map(|document| Held {
            holder: self.location().to_string(),
            document,
        }));
        let (base, kept_newer) = self.base(&content.document, &others, how.onto_newer)?;
        self.require_signing(&base)?;

        let Content { deks, .. } = content;
        // Before any KEK is asked.
        verify_words(&base).map_err(|error| self.unauthentic(error))?;
        let deks = self.complete(&base, deks).await?;
        let keys = payload::succession_keys(&deks);
        let wraps = self.wraps_of(&base, &deks, how.keks).await?;
        // What is remembered here only raises the number: the sidecars know whether it is in use.
        others.extend(self.own_bases(base.manifest().id)?);
        let least = next_generation(&base, &others, how.at_least)?;
        self.compare_before_repair().await?;
        let restored = keyring::restore(&base, wraps, &record, least, self.now());
        let restored = self.with_times_repaired(&base, restored)?;
        let document = readable(Some(&base), &self.authenticate(restored, &keys)?)?;
        self.replace_bytes(bytes, &document).await?;
        self.note_stamp(base.manifest(), document.manifest());
        self.remember(&document)?;
        Ok(Restored {
            document,
            kept_newer,
            damage,
        })
    }

    /// Returns the manifest that the next generation is based on: the backup's, or a newer one if
    /// `onto_newer`.
    fn base(
        &self,
        backup: &Document,
        others: &[Held],
        onto_newer: bool,
    ) -> Result<(Document, bool), AdminError> {
        let newest = others
            .iter()
            .max_by_key(|held| held.document.manifest().generation);
        let newer = newest
            .filter(|held| held.document.manifest().generation > backup.manifest().generation);
        let base = match newer {
            None => backup,
            Some(held) => {
                self.leads_to(backup, &held.document)
                    .map_err(Refusal::Diverged)?;
                if !onto_newer {
                    return Err(AdminError::Refused(Refusal::NewerPresent {
                        place: held.holder.clone(),
                        present: held.document.manifest().generation,
                        backup: backup.manifest().generation,
                    }));
                }
                &held.document
            }
        };
        for held in others {
            if !descends_from(base, &held.document) {
                self.leads_to(&held.document, base)
                    .map_err(Refusal::Diverged)?;
            }
        }
        Ok((base.clone(), newer.is_some()))
    }

    /// Returns the keys of all versions of `base`: those in the backup, and those of later
    /// versions, unwrapped.
    async fn complete(
        &self,
        base: &Document,
        mut deks: BTreeMap<u32, Dek>,
    ) -> Result<BTreeMap<u32, Dek>, AdminError> {
        let manifest = base.manifest();
        let missing: Vec<&Version> = manifest
            .live()
            .filter(|version| !deks.contains_key(&version.version))
            .collect();
        let unwrapped = for_each(missing, async |version: &Version| {
            let dek = self.keks.unwrap(manifest.id, version, &self.scope).await;
            let failed = |reason: NotUnwrapped| {
                AdminError::NotUnwrapped(vec![(
                    version.version,
                    format!("not in the backup; {reason}"),
                )])
            };
            dek.map(|dek| (version.version, dek)).map_err(failed)
        });
        deks.extend(unwrapped.await?);
        deks.retain(|version, _| manifest.live().any(|live| live.version == *version));
        Ok(deks)
    }

    /// Returns new wraps with `keks`, verified by unwrapping them. Without `keks`, verifies that
    /// every version can be unwrapped, and returns no wraps.
    async fn wraps_of(
        &self,
        base: &Document,
        deks: &BTreeMap<u32, Dek>,
        keks: &[KekUri],
    ) -> Result<BTreeMap<u32, Vec<Wrap>>, AdminError> {
        let manifest = base.manifest();
        if keks.is_empty() {
            let failed = for_each(manifest.live(), async |version: &Version| {
                let unwrapped = self.keks.unwrap(manifest.id, version, &self.scope).await;
                Ok(unwrapped
                    .err()
                    .map(|reason| (version.version, reason.message)))
            });
            let failed: Vec<_> = failed.await?.into_iter().flatten().collect();
            return if failed.is_empty() {
                Ok(BTreeMap::new())
            } else {
                Err(AdminError::NeedsKeks(failed))
            };
        }
        let wrapped = for_each(manifest.live(), async |version: &Version| {
            let number = version.version;
            // `complete` ensures that there is one for every version.
            let Some(dek) = deks.get(&number) else {
                return Err(AdminError::NotUnwrapped(vec![(number, "no key".into())]));
            };
            let wraps = self
                .keks
                .wrap(
                    keks,
                    dek,
                    WrapContext {
                        keyring: manifest.id,
                        version: number,
                    },
                )
                .await?;
            let fresh = Version {
                wraps: wraps.clone(),
                ..version.clone()
            };
            let trials = self
                .keks
                .try_each(manifest.id, &fresh, &KekScope::Any)
                .await;
            let failed: Vec<String> = trials
                .iter()
                .filter_map(|trial| Some(trial.result.as_ref().err()?.to_string()))
                .collect();
            if !failed.is_empty() {
                return Err(AdminError::Unproven {
                    version: number,
                    reasons: failed.join("; "),
                });
            }
            Ok((number, wraps))
        });
        Ok(wrapped.await?.into_iter().collect())
    }
}

/// Returns the generation to write: higher than any that is known.
fn next_generation(base: &Document, others: &[Held], at_least: u64) -> Result<u64, Refusal> {
    let known = others
        .iter()
        .map(|held| held.document.manifest().generation)
        .fold(base.manifest().generation, u64::max);
    let next = known.saturating_add(1);
    if at_least > next.saturating_add(MAX_JUMP) {
        return Err(Refusal::NotRecoverable(format!(
            "--at-least {at_least} is more than {MAX_JUMP} above generation {known}"
        )));
    }
    Ok(next.max(at_least))
}
