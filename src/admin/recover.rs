//! Recovery: the fleet is a replica (I12). A store that was lost or rolled back gets the newest
//! authentic manifest that sidecars hold.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::{
    Admin, AdminError, MANIFEST_LIMIT,
    backup::CONCURRENT,
    evidence::{PATIENCE, get},
    ops_client::{Fleet, OpsClient},
    present::Present,
};
use crate::{
    keyring::{Document, Refusal, Rejection, succeeds},
    model::{KeyringName, SignerKey},
};

/// A manifest and who holds it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) place: String,
    pub(super) document: Document,
}

/// What came of a recovery.
#[derive(Debug)]
pub struct Recovered {
    /// The manifest that is in the location now.
    pub document: Document,
    /// The sidecar that had it; `None` if it was in the location already.
    pub from: Option<String>,
    /// Why what stood there before was no manifest, if something did.
    pub damage: Option<String>,
    /// Manifests that are not authentic, with the reasons.
    pub passed_over: Vec<String>,
}

/// What every one of `fleet` has in force.
///
/// # Errors
/// A file that TLS needs can't be used. [`Refusal::NotRecoverable`] names those that gave none:
/// each of them may be the one with the newest.
pub(super) async fn ask_manifests(
    fleet: &Fleet,
    keyring: &KeyringName,
) -> Result<Vec<Held>, AdminError> {
    let client = OpsClient::new(fleet).map_err(AdminError::System)?;
    let path = format!("/manifests/{keyring}");
    let asked = stream::iter(&fleet.urls).map(async |url| {
        let answer: Result<Bytes, String> =
            match timeout(PATIENCE, get(&client, url, &path, MANIFEST_LIMIT)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {PATIENCE:?}")),
            };
        let document =
            answer.and_then(|bytes| Document::parse(bytes).map_err(|error| error.to_string()));
        match document {
            Ok(document) => Ok(Held {
                place: url.to_string(),
                document,
            }),
            Err(reason) => Err(format!("  - {url}: {reason}")),
        }
    });
    let (mut held, mut silent) = (Vec::new(), Vec::new());
    for answer in asked.buffered(CONCURRENT).collect::<Vec<_>>().await {
        match answer {
            Ok(document) => held.push(document),
            Err(reason) => silent.push(reason),
        }
    }
    if silent.is_empty() {
        return Ok(held);
    }
    let reasons = silent.join("\n");
    let message = format!(
        "these sidecars gave no manifest, and one of them may hold the newest; leave out those that are gone:\n{reasons}"
    );
    Err(Refusal::NotRecoverable(message).into())
}

impl Admin {
    /// Puts the newest authentic manifest that any of `fleet` has in force into the location,
    /// unless that has it, or a newer one. What is no manifest there counts as lost.
    ///
    /// # Errors
    /// [`AdminError`]: [`Refusal`] for manifests that can't have come of each other, and if none is authentic.
    pub async fn recover(
        &self,
        name: Option<&KeyringName>,
        fleet: &Fleet,
        trusted: &[SignerKey],
    ) -> Result<Recovered, AdminError> {
        let Present {
            bytes,
            document: present,
            damage,
        } = self.present().await?;
        let name = name.or(present.as_ref().map(|document| &document.manifest().name));
        let name = name.ok_or_else(|| {
            Refusal::NotRecoverable(
                "there is no manifest that tells the keyring's name; give --name NAME".into(),
            )
        })?;
        let mut held = ask_manifests(fleet, name).await?;
        let location = self.location().to_string();
        held.extend(present.map(|document| Held {
            place: location.clone(),
            document,
        }));
        held.sort_by_key(|held| std::cmp::Reverse(held.document.manifest().generation));

        let (mut authentic, mut passed_over) = (Vec::new(), Vec::new());
        for candidate in held {
            // Most of a fleet holds the same bytes; the KEKs are asked for them once.
            if authentic
                .iter()
                .any(|held: &Held| held.document.bytes() == candidate.document.bytes())
            {
                authentic.push(candidate);
                continue;
            }
            match self.open(&candidate.document, trusted, None).await {
                Ok(_) => authentic.push(candidate),
                // Forged, or by a signer whom nobody trusts. One that doesn't open may be right:
                // without it we might go back.
                Err(AdminError::Unauthentic {
                    error: error @ (Rejection::Unauthenticated(_) | Rejection::Unsigned),
                    ..
                }) => {
                    let generation = candidate.document.manifest().generation;
                    passed_over.push(format!(
                        "{}, generation {generation}: {error}",
                        candidate.place
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        let Some(newest) = authentic.first() else {
            let message = format!(
                "nobody holds an authentic manifest: {}",
                passed_over.join("; ")
            );
            return Err(Refusal::NotRecoverable(message).into());
        };
        for other in &authentic {
            succeeds(&other.document, &newest.document).map_err(Refusal::Diverged)?;
        }
        let is_there = |held: &Held| {
            held.place == location && held.document.canonical() == newest.document.canonical()
        };
        if authentic.iter().any(is_there) {
            return Ok(Recovered {
                document: newest.document.clone(),
                from: None,
                damage,
                passed_over,
            });
        }
        self.replace_bytes(bytes, &newest.document).await?;
        Ok(Recovered {
            document: newest.document.clone(),
            from: Some(newest.place.clone()),
            damage,
            passed_over,
        })
    }
}
