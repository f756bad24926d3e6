//! Restores: the manifest and the keys of a backup, wrapped under KEKs that work, as a new
//! generation that goes behind nobody's.

use std::{collections::BTreeMap, path::Path};

use super::{
    Admin, AdminError,
    backup::{for_each, open_content, read_file},
    envelope::Opener,
    ops_client::Fleet,
    payload::{self, Content},
    present::Present,
    recover::{Held, ask_manifests},
};
use crate::{
    crypto::{Dek, WrapContext},
    keyring::{self, Document, Refusal, Version, Wrap, succeeds},
    model::{KekScope, KekUri},
};

/// What to restore, and how.
pub struct Restoring<'a> {
    /// The backup.
    pub file: &'a Path,
    /// What opens it.
    pub opener: &'a Opener,
    /// These wrap every version from now on. None: those that the manifest names, as far as they
    /// open.
    pub keks: &'a [KekUri],
    /// Sidecars that may hold something newer.
    pub sidecars: &'a Fleet,
    /// There is no sidecar that could hold something newer, as the operator says.
    pub no_sidecar: bool,
    /// Keep a newer manifest, and give its versions the backup's keys.
    pub onto_newer: bool,
}

/// What was restored.
#[derive(Debug)]
pub struct Restored {
    /// The new generation.
    pub document: Document,
    /// Whether a newer manifest than the backup's was kept.
    pub kept_newer: bool,
    /// Why what stood there before was no manifest, if something did.
    pub damage: Option<String>,
}

impl Admin {
    /// Restores a keyring from a backup.
    ///
    /// # Errors
    /// [`AdminError`]: [`Refusal::NobodyAsked`] if nothing shows what is newest; [`Refusal::NewerPresent`] and [`Refusal::Diverged`] for what stands in the location, or is in force at a sidecar,
    /// and can't have come before the backup.
    pub async fn restore(&self, how: &Restoring<'_>) -> Result<Restored, AdminError> {
        let backup = read_file(how.file)?;
        let content = open_content(&backup, how.opener).map_err(|reason| AdminError::Backup {
            file: how.file.to_owned(),
            reason,
        })?;
        let record = self.record_of(&content.document, &backup);
        let Present {
            bytes,
            document: present,
            damage,
        } = self.present().await?;
        if present.is_none() && how.sidecars.urls.is_empty() && !how.no_sidecar {
            let what = if damage.is_some() {
                "holds no manifest that can be read"
            } else {
                "is empty"
            };
            return Err(Refusal::NobodyAsked {
                place: self.location().to_string(),
                what,
            }
            .into());
        }
        let mut others = ask_manifests(how.sidecars, &content.document.manifest().name).await?;
        others.extend(present.map(|document| Held {
            place: self.location().to_string(),
            document,
        }));
        let (base, kept_newer) = base(&content.document, &others, how.onto_newer)?;
        self.demand_signing(&base)?;

        let Content { deks, .. } = content;
        let deks = self.complete(&base, deks).await?;
        let keys = payload::derive(&deks).map_err(AdminError::System)?;
        keyring::verify(&base, &keys, &[]).map_err(|error| AdminError::Unauthentic {
            location: self.location().clone(),
            error,
        })?;
        let wraps = self.wraps_of(&base, &deks, how.keks).await?;
        let document = self.authenticate(
            keyring::restore(base.manifest(), wraps, &record, self.now()),
            &keys,
        )?;
        self.replace_bytes(bytes, &document).await?;
        Ok(Restored {
            document,
            kept_newer,
            damage,
        })
    }

    /// The keys of all versions that `base` has left: those in the backup, and what came after it
    /// through its KEKs.
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
        let opened = for_each(missing, async |version: &Version| {
            let dek = self.keks.unwrap(manifest.id, version, &self.scope).await;
            let unopened = |reason| {
                AdminError::Unopened(vec![(
                    version.version,
                    format!("it isn't in the backup, and {reason}"),
                )])
            };
            dek.map(|dek| (version.version, dek)).map_err(unopened)
        });
        deks.extend(opened.await?);
        deks.retain(|version, _| manifest.live().any(|live| live.version == *version));
        Ok(deks)
    }

    /// New wraps under `keks`, shown to open; or none, if there are no `keks` and every version
    /// still opens through those it has.
    async fn wraps_of(
        &self,
        base: &Document,
        deks: &BTreeMap<u32, Dek>,
        keks: &[KekUri],
    ) -> Result<BTreeMap<u32, Vec<Wrap>>, AdminError> {
        let manifest = base.manifest();
        if keks.is_empty() {
            let closed = for_each(manifest.live(), async |version: &Version| {
                let opened = self.keks.unwrap(manifest.id, version, &self.scope).await;
                Ok(opened.err().map(|reason| (version.version, reason)))
            });
            let closed: Vec<_> = closed.await?.into_iter().flatten().collect();
            return if closed.is_empty() {
                Ok(BTreeMap::new())
            } else {
                Err(AdminError::NeedsKeks(closed))
            };
        }
        let wrapped = for_each(manifest.live(), async |version: &Version| {
            let number = version.version;
            // `complete` has seen to it that there is one for every version.
            let Some(dek) = deks.get(&number) else {
                return Err(AdminError::Unopened(vec![(number, "it has no key".into())]));
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

/// The manifest that the next generation follows: the backup's, or a newer one that is held
/// elsewhere and may be kept.
fn base(
    backup: &Document,
    others: &[Held],
    onto_newer: bool,
) -> Result<(Document, bool), AdminError> {
    let newest = others
        .iter()
        .max_by_key(|held| held.document.manifest().generation);
    let newer =
        newest.filter(|held| held.document.manifest().generation > backup.manifest().generation);
    let base = match newer {
        None => backup,
        Some(held) => {
            succeeds(backup, &held.document).map_err(Refusal::Diverged)?;
            if !onto_newer {
                return Err(AdminError::Refused(Refusal::NewerPresent {
                    place: held.place.clone(),
                    present: held.document.manifest().generation,
                    backup: backup.manifest().generation,
                }));
            }
            &held.document
        }
    };
    for held in others {
        succeeds(&held.document, base).map_err(Refusal::Diverged)?;
    }
    Ok((base.clone(), newer.is_some()))
}
