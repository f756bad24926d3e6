//! Recovery of a lost or rolled-back store from the manifests that the fleet holds (I12, I14).

use std::collections::BTreeMap;

use super::{access::Admin, base::Held, change::readable, error::AdminError, present::Present};
use crate::{
    fleet::{Fleet, FleetClient, NoManifest},
    keyring::{
        self, Document, Refusal, descends_from, is_vouched_for, verify_signatures, verify_words,
    },
    model::{KeyringName, SignerKey},
};

/// A request to recover a keyring.
#[derive(Debug)]
pub struct Recovery<'a> {
    /// The keyring's name; None to take it from the location.
    pub name: Option<&'a KeyringName>,
    /// The sidecars to ask.
    pub fleet: &'a Fleet,
    /// Unless empty, one of these must have signed a manifest.
    pub trusted: &'a [SignerKey],
    /// The digest of the branch to continue, in hexadecimal digits, if there are several.
    pub branch: Option<&'a str>,
}

/// The result of a recovery.
#[derive(Debug)]
pub struct Recovered {
    /// The manifest in the location.
    pub document: Document,
    /// The holder it came from; None if the location had it already.
    pub from: Option<String>,
    /// Why the previous content was not a valid manifest, if there was any.
    pub damage: Option<String>,
    /// Manifests that nothing vouches for, with reasons.
    pub rejected: Vec<String>,
    /// Holders of a merged branch that won't follow, with reasons.
    pub stranded: Vec<String>,
}

/// Fetches the active manifest of every sidecar.
///
/// # Errors
/// A TLS file can't be used; or [`Refusal::NotRecoverable`] if any sidecar fails, because it may
/// have the newest manifest.
pub(super) async fn fetch_manifests(
    fleet: &Fleet,
    keyring: &KeyringName,
) -> Result<Vec<Held>, AdminError> {
    let (held, invalid) = fetch_valid(fleet, keyring).await?;
    if invalid.is_empty() {
        return Ok(held);
    }
    Err(no_manifest(&invalid))
}

/// Fetches the active manifest of every sidecar, and separates those that are no manifest, with
/// reasons.
async fn fetch_valid(
    fleet: &Fleet,
    keyring: &KeyringName,
) -> Result<(Vec<Held>, Vec<String>), AdminError> {
    let client = FleetClient::new(fleet).map_err(AdminError::System)?;
    let (mut held, mut invalid, mut failed) = (Vec::new(), Vec::new(), Vec::new());
    for (holder, manifest) in client.manifests(keyring).await {
        match manifest {
            Ok(document) => held.push(Held { holder, document }),
            Err(NoManifest::Invalid(error)) => invalid.push(format!("{holder}: {error}")),
            Err(NoManifest::Unanswered(reason)) => failed.push(format!("{holder}: {reason}")),
        }
    }
    if failed.is_empty() {
        Ok((held, invalid))
    } else {
        Err(no_manifest(&failed))
    }
}

fn no_manifest(reasons: &[String]) -> AdminError {
    let reasons: Vec<String> = reasons
        .iter()
        .map(|reason| format!("  - {reason}"))
        .collect();
    let message = format!(
        "these sidecars returned no manifest, and any of them may have the newest; omit those that \
         no longer exist:\n{}",
        reasons.join("\n")
    );
    Refusal::NotRecoverable(message).into()
}

impl Admin {
    /// Writes the manifest that every other authentic one in `fleet` leads to, unless the location
    /// has it. A damaged manifest there counts as lost. The highest generation alone proves
    /// nothing: one lying sidecar could name any.
    ///
    /// # Errors
    /// [`AdminError`]; [`AdminError::Base`] and [`Refusal::NotRecoverable`] if nothing shows which
    /// manifests are authentic, or if they are on several branches and none was chosen.
    pub async fn recover(&self, how: &Recovery<'_>) -> Result<Recovered, AdminError> {
        let Present {
            bytes,
            document: present,
            damage,
        } = self.present().await?;
        let name = how
            .name
            .or(present.as_ref().map(|document| &document.manifest().name));
        let name = name.ok_or_else(|| {
            Refusal::NotRecoverable(
                "the location has no manifest, so the keyring's name is unknown; give --name NAME"
                    .into(),
            )
        })?;
        let (mut held, invalid) = fetch_valid(how.fleet, name).await?;
        let location = self.location().to_string();
        held.extend(present.map(|document| Held {
            holder: location.clone(),
            document,
        }));
        let (authentic, mut rejected) = self.authentic(held, how.trusted)?;
        rejected.extend(invalid);
        if authentic.is_empty() {
            let message = format!(
                "no sidecar has an authentic manifest: {}",
                rejected.join("; ")
            );
            return Err(Refusal::NotRecoverable(message).into());
        }
        let (from, document, stranded) = match (self.newest(&authentic), how.branch) {
            (Some(newest), None) => (newest.holder.clone(), newest.document.clone(), Vec::new()),
            (_, Some(digest)) => self.continue_branch(&authentic, digest).await?,
            (None, None) => return Err(Refusal::NotRecoverable(branches(&authentic)).into()),
        };
        let is_there = |held: &Held| {
            held.holder == location && held.document.canonical() == document.canonical()
        };
        let is_there = authentic.iter().any(is_there);
        if !is_there {
            self.replace_bytes(bytes, &document).await?;
        }
        self.remember(&document)?;
        Ok(Recovered {
            document,
            from: (!is_there).then_some(from),
            damage,
            rejected,
            stranded,
        })
    }

    /// Separates manifests that the bases vouch for from the others, with reasons.
    fn authentic(
        &self,
        held: Vec<Held>,
        trusted: &[SignerKey],
    ) -> Result<(Vec<Held>, Vec<String>), AdminError> {
        let bases = self.recovery_bases(&held)?;
        let (mut authentic, mut rejected) = (Vec::new(), Vec::new());
        // What is remembered here may be newer than anything that is left elsewhere.
        for candidate in held.into_iter().chain(bases.clone()) {
            let document = &candidate.document;
            let verdict = verify_signatures(document, trusted)
                .and_then(|()| verify_words(document))
                .map_err(|error| error.to_string())
                .and_then(|()| {
                    let stranger = bases.iter().find(|base| {
                        !is_vouched_for(&base.document, document, &self.bases.accept_lost)
                    });
                    match stranger {
                        None => Ok(()),
                        Some(base) => Err(format!(
                            "no version that {} knows vouches for it",
                            base.holder
                        )),
                    }
                });
            match verdict {
                Ok(()) => authentic.push(candidate),
                Err(reason) => rejected.push(format!(
                    "{}, generation {}: {reason}",
                    candidate.holder,
                    document.manifest().generation
                )),
            }
        }
        Ok((authentic, rejected))
    }

    /// Returns what is trusted before any sidecar is believed.
    fn recovery_bases(&self, held: &[Held]) -> Result<Vec<Held>, AdminError> {
        for candidate in held {
            let own = self.own_bases(candidate.document.manifest().id)?;
            if !own.is_empty() {
                return Ok(own);
            }
        }
        let first_time = self.bases.first_time.as_deref();
        let accepted = held
            .iter()
            .find(|candidate| first_time == Some(candidate.document.digest_hex().as_str()));
        match accepted {
            Some(candidate) => Ok(vec![candidate.clone()]),
            None => Err(Refusal::NotRecoverable(format!(
                "nothing is known about this keyring here, so any of these manifests may be \
                 forged; give a trusted copy by --base FILE, or --first-time DIGEST for the one \
                 that is genuine:\n{}",
                listed(held)
            ))
            .into()),
        }
    }

    /// Returns the manifest that all others lead to.
    fn newest<'h>(&self, authentic: &'h [Held]) -> Option<&'h Held> {
        authentic.iter().find(|newest| {
            authentic
                .iter()
                .all(|held| self.is_followed_by(&held.document, &newest.document))
        })
    }

    fn is_followed_by(&self, older: &Document, newer: &Document) -> bool {
        descends_from(newer, older) || self.leads_to(older, newer).is_ok()
    }

    /// Writes the next generation of one branch, which the holders of the others follow as well.
    async fn continue_branch(
        &self,
        authentic: &[Held],
        digest: &str,
    ) -> Result<(String, Document, Vec<String>), AdminError> {
        let chosen = authentic
            .iter()
            .find(|held| held.document.digest_hex() == digest)
            .ok_or_else(|| {
                Refusal::NotRecoverable(format!(
                    "no authentic manifest has the digest {digest}:\n{}",
                    listed(authentic)
                ))
            })?;
        self.require_signing(&chosen.document)?;
        let others: Vec<&Held> = authentic
            .iter()
            .filter(|held| !self.is_followed_by(&held.document, &chosen.document))
            .collect();
        let branches: Vec<&Document> = others.iter().map(|held| &held.document).collect();
        let merged = keyring::merge(&chosen.document, &branches, self.now())?;
        let mut keys = BTreeMap::new();
        self.unwrap_keys(&mut keys, &merged, &[]).await?;
        self.compare_before_repair().await?;
        let merged = self.with_times_repaired(&chosen.document, merged)?;
        let document = readable(Some(&chosen.document), &self.authenticate(merged, &keys)?)?;
        self.note_stamp(chosen.document.manifest(), document.manifest());
        let stranded = others.iter().filter_map(|held| {
            let error = self.leads_to(&held.document, &document).err()?;
            Some(format!("{}: {error}", held.holder))
        });
        let stranded = stranded.collect();
        Ok((chosen.holder.clone(), document, stranded))
    }
}

fn branches(authentic: &[Held]) -> String {
    format!(
        "the manifests are on several branches, as after the store was rolled back and written \
         again; choose the one to continue with --branch DIGEST:\n{}",
        listed(authentic)
    )
}

/// Lists manifests by generation, newest first, each with its digest and holders.
fn listed(held: &[Held]) -> String {
    let mut found: BTreeMap<(u64, String), Vec<&str>> = BTreeMap::new();
    for held in held {
        let key = (
            held.document.manifest().generation,
            held.document.digest_hex(),
        );
        found.entry(key).or_default().push(&held.holder);
    }
    let lines: Vec<String> = found
        .iter()
        .rev()
        .map(|((generation, digest), holders)| {
            format!(
                "  - generation {generation}, {digest}: {}",
                holders.join(", ")
            )
        })
        .collect();
    lines.join("\n")
}
