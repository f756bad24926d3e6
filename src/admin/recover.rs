//! Recovery of a lost or rolled-back store from the newest authentic manifest of the fleet (I12).

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::time::timeout;

use super::{
    access::{Admin, MANIFEST_LIMIT},
    backup::CONCURRENT,
    error::AdminError,
    evidence::{TIMEOUT, get},
    ops_client::{Fleet, OpsClient},
    present::Present,
};
use crate::{
    keyring::{Document, Refusal, Rejection, succeeds},
    model::{KeyringName, SignerKey},
};

/// A manifest and its holder.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) holder: String,
    pub(super) document: Document,
}

/// The result of a recovery.
#[derive(Debug)]
pub struct Recovered {
    /// The manifest in the location.
    pub document: Document,
    /// The sidecar it came from; None if the location had it already.
    pub from: Option<String>,
    /// Why the previous content was not a valid manifest, if there was any.
    pub damage: Option<String>,
    /// Manifests that are not authentic, with reasons.
    pub rejected: Vec<String>,
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
    let client = OpsClient::new(fleet).map_err(AdminError::System)?;
    let path = format!("/manifests/{keyring}");
    let requests = stream::iter(&fleet.urls).map(async |url| {
        let response: Result<Bytes, String> =
            match timeout(TIMEOUT, get(&client, url, &path, MANIFEST_LIMIT)).await {
                Ok(response) => response,
                Err(_) => Err(format!("no response within {TIMEOUT:?}")),
            };
        let document =
            response.and_then(|bytes| Document::parse(bytes).map_err(|error| error.to_string()));
        match document {
            Ok(document) => Ok(Held {
                holder: url.to_string(),
                document,
            }),
            Err(reason) => Err(format!("  - {url}: {reason}")),
        }
    });
    let (mut held, mut failed) = (Vec::new(), Vec::new());
    for response in requests.buffered(CONCURRENT).collect::<Vec<_>>().await {
        match response {
            Ok(document) => held.push(document),
            Err(reason) => failed.push(reason),
        }
    }
    if failed.is_empty() {
        return Ok(held);
    }
    let reasons = failed.join("\n");
    let message = format!(
        "these sidecars returned no manifest, and any of them may have the newest; omit those that \
         no longer exist:\n{reasons}"
    );
    Err(Refusal::NotRecoverable(message).into())
}

impl Admin {
    /// Writes the newest authentic manifest of `fleet` to the location, unless that has it or a
    /// newer one. A damaged manifest there counts as lost.
    ///
    /// # Errors
    /// [`AdminError`]; a [`Refusal`] if no manifest is authentic, or if two are not successors of
    /// each other.
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
                "the location has no manifest, so the keyring's name is unknown; give --name NAME"
                    .into(),
            )
        })?;
        let mut held = fetch_manifests(fleet, name).await?;
        let location = self.location().to_string();
        held.extend(present.map(|document| Held {
            holder: location.clone(),
            document,
        }));
        held.sort_by_key(|held| std::cmp::Reverse(held.document.manifest().generation));

        let (authentic, rejected) = self.authentic(held, trusted).await?;
        let Some(newest) = authentic.first() else {
            let message = format!(
                "no sidecar has an authentic manifest: {}",
                rejected.join("; ")
            );
            return Err(Refusal::NotRecoverable(message).into());
        };
        for other in &authentic {
            succeeds(&other.document, &newest.document).map_err(Refusal::Diverged)?;
        }
        let is_there = |held: &Held| {
            held.holder == location && held.document.canonical() == newest.document.canonical()
        };
        if authentic.iter().any(is_there) {
            return Ok(Recovered {
                document: newest.document.clone(),
                from: None,
                damage,
                rejected,
            });
        }
        self.replace_bytes(bytes, &newest.document).await?;
        Ok(Recovered {
            document: newest.document.clone(),
            from: Some(newest.holder.clone()),
            damage,
            rejected,
        })
    }

    /// Separates authentic manifests, in the given order, from the reasons why others are not.
    async fn authentic(
        &self,
        held: Vec<Held>,
        trusted: &[SignerKey],
    ) -> Result<(Vec<Held>, Vec<String>), AdminError> {
        let (mut authentic, mut rejected) = (Vec::new(), Vec::new());
        for candidate in held {
            // Most sidecars have the same manifest; its keys are unwrapped once.
            if authentic
                .iter()
                .any(|held: &Held| held.document.bytes() == candidate.document.bytes())
            {
                authentic.push(candidate);
                continue;
            }
            match self
                .unwrap_versions(&candidate.document, trusted, None)
                .await
            {
                Ok(_) => authentic.push(candidate),
                // Forged, or by an untrusted signer. A manifest that can't be unwrapped may be
                // authentic and the newest, so it is an error.
                Err(AdminError::Unauthentic {
                    error: error @ (Rejection::Unauthenticated(_) | Rejection::Unsigned),
                    ..
                }) => {
                    let generation = candidate.document.manifest().generation;
                    rejected.push(format!(
                        "{}, generation {generation}: {error}",
                        candidate.holder
                    ));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((authentic, rejected))
    }
}
