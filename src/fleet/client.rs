//! What a command asks the sidecars of a fleet, dialled and joined.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::{OptionFuture, join};
use serde::Deserialize;
use serde_json::json;

use super::{
    Discovery, Fleet, Member, Sidecar,
    connect::Connector,
    discovery::{Found, find},
    hub::HubClient,
    parallel::ask_all,
    request::{get, post},
};
use crate::{
    keyring::{Document, ManifestError},
    ledger::Verdict,
    model::KeyringName,
    wire::{
        hub::EvidenceRequest,
        proof::{Proof, ProofRequest},
        status::Status,
    },
};

/// The longest `/status`, in bytes.
const MAX_STATUS: usize = 64 << 20;
/// The longest manifest, in bytes.
const MAX_MANIFEST: usize = 256 << 20;
/// The longest response to a push or a proof, in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// Why a name gives no proof.
const NO_SUCH: &str = "the fleet has no sidecar of that name now";
/// Comes after the name of a sidecar that has joined the hub, if a dialled one has the same.
const JOINED: &str = " (joined)";

/// Asks the sidecars of a fleet. Results name each sidecar; a request that failed is part of them,
/// and so are a name that DNS doesn't know and a hub that doesn't answer.
pub struct FleetClient {
    sidecars: Vec<Sidecar>,
    discover: Vec<Discovery>,
    connector: Connector,
    hub: Option<HubClient>,
}

/// Why a sidecar gave no manifest.
#[derive(Debug, thiserror::Error)]
pub enum NoManifest {
    /// It didn't answer, or has none.
    #[error("{0}")]
    Unanswered(String),
    /// What it gave is no manifest.
    #[error(transparent)]
    Invalid(ManifestError),
}

#[derive(Deserialize)]
struct Pushed {
    refreshing: bool,
}

impl FleetClient {
    /// Creates a client. TLS files are read now, if any URL needs them.
    ///
    /// # Errors
    /// A TLS file can't be used.
    pub fn new(fleet: &Fleet) -> Result<Self, String> {
        Ok(Self {
            sidecars: fleet.sidecars.clone(),
            discover: fleet.discover.clone(),
            connector: Connector::new(&fleet.tls, fleet.needs_tls())?,
            hub: fleet.hub.as_ref().map(HubClient::new).transpose()?,
        })
    }

    /// Returns the sidecars to dial now, and the names that DNS doesn't know, with reasons.
    async fn dialled(&self) -> Vec<Found> {
        find(&self.sidecars, &self.discover).await
    }

    /// Returns the status of every sidecar.
    pub async fn statuses(&self) -> Vec<(String, Result<Status, String>)> {
        let statuses = self.members_and_statuses().await;
        let name = |(member, status): (Member, _)| (member.name, status);
        statuses.into_iter().map(name).collect()
    }

    /// Like [`Self::statuses`], with all that is known of the sidecar.
    pub async fn members_and_statuses(&self) -> Vec<(Member, Result<Status, String>)> {
        let dialled = async {
            let found = self.dialled().await;
            let statuses = self
                .ask(&found, async |sidecar| self.status(sidecar).await)
                .await;
            found.into_iter().map(Member::from).zip(statuses).collect()
        };
        let joined = OptionFuture::from(self.hub.as_ref().map(HubClient::statuses));
        let (dialled, joined) = Box::pin(join(dialled, joined)).await;
        with_joined(dialled, joined.unwrap_or_default())
    }

    /// Returns the status of every sidecar that is dialled.
    pub async fn dialled_statuses(&self) -> Vec<(String, Result<Status, String>)> {
        self.ask_every(async |sidecar| self.status(sidecar).await)
            .await
    }

    /// Returns what the hub's ledger says about a version. `None` without a hub.
    pub async fn evidence(&self, request: &EvidenceRequest) -> Option<Result<Verdict, String>> {
        let hub = self.hub.as_ref()?;
        let verdict = hub.evidence(request).await;
        Some(verdict.map_err(|reason| format!("{}: {reason}", hub.name())))
    }

    async fn status(&self, sidecar: &Sidecar) -> Result<Status, String> {
        let body = get(&self.connector, &sidecar.target(), "/status", MAX_STATUS).await?;
        serde_json::from_slice(&body).map_err(|error| {
            format!("unexpected /status, maybe of another version of Sidekey: {error}")
        })
    }

    /// Returns the active manifest of every sidecar that is dialled. Those that have joined a hub
    /// can't be asked for it, which is part of the result.
    pub async fn manifests(
        &self,
        keyring: &KeyringName,
    ) -> Vec<(String, Result<Document, NoManifest>)> {
        let path = format!("/manifests/{keyring}");
        let path = path.as_str();
        let answers = self
            .ask_every(async |sidecar| {
                get(&self.connector, &sidecar.target(), path, MAX_MANIFEST).await
            })
            .await;
        let parse = |(name, answer): (String, Result<_, _>)| {
            let document = answer
                .map_err(NoManifest::Unanswered)
                .and_then(|bytes| Document::parse(bytes).map_err(NoManifest::Invalid));
            (name, document)
        };
        let unasked = self.hub.iter().map(|hub| {
            let reason = "sidecars that have joined a hub can't be asked for manifests; name \
                          their ops listeners (--sidecar)";
            (hub.name(), Err(NoManifest::Unanswered(reason.into())))
        });
        answers.into_iter().map(parse).chain(unasked).collect()
    }

    /// Tells every sidecar that a keyring has this generation, and returns which of them refresh
    /// because of that. A push is only accepted with a client certificate.
    pub async fn push(
        &self,
        keyring: &KeyringName,
        generation: u64,
    ) -> Vec<(String, Result<bool, String>)> {
        let hint = json!({ "keyring": keyring, "generation": generation }).to_string();
        let hint = hint.as_bytes();
        let answers = self.ask_every(async |sidecar| {
            let hint = hint.to_vec();
            let to = sidecar.target();
            let answer = post(&self.connector, &to, "/push", hint, MAX_ANSWER).await?;
            let answer: Pushed = serde_json::from_slice(&answer)
                .map_err(|error| format!("unexpected answer to a push: {error}"))?;
            Ok(answer.refreshing)
        });
        let hinted = self.hub.as_ref().map(|hub| hub.push(keyring, generation));
        let both = Box::pin(join(answers, OptionFuture::from(hinted)));
        let (mut answers, hinted) = both.await;
        answers.extend(hinted.unwrap_or_default());
        answers
    }

    /// Asks the sidecars with these names to prove that they hold a version. Verify the proofs with
    /// [`ProofKey::verify`](crate::crypto::ProofKey::verify).
    pub async fn prove(
        &self,
        names: &[String],
        request: &ProofRequest,
    ) -> Vec<(String, Result<Proof, String>)> {
        let json = match serde_json::to_vec(request) {
            Ok(json) => json,
            Err(error) => unreachable!("a request has only text and numbers: {error}"),
        };
        let known: BTreeMap<String, Sidecar> = self
            .dialled()
            .await
            .into_iter()
            .filter_map(|found| found.ok().map(|sidecar| (sidecar.name.clone(), sidecar)))
            .collect();
        let (known, json) = (&known, &json);
        let dialled = names.iter().filter(|name| known.contains_key(*name));
        let dialled: Vec<&String> = dialled.collect();
        let proofs = ask_all(dialled.iter().copied(), async |name: &String| {
            let sidecar = known.get(name).ok_or(NO_SUCH)?;
            let to = sidecar.target();
            let answer = post(&self.connector, &to, "/prove", json.clone(), MAX_ANSWER).await?;
            serde_json::from_slice(&answer).map_err(|error| format!("unexpected proof: {error}"))
        });
        let others = names.iter().filter(|name| !known.contains_key(*name));
        let others: Vec<String> = others.map(|name| joined_name(name).to_owned()).collect();
        let hub = self.hub.as_ref().filter(|_| !others.is_empty());
        let joined = OptionFuture::from(hub.map(|hub| hub.prove(others, request)));
        let (proofs, joined) = Box::pin(join(proofs, joined)).await;
        let joined = joined.unwrap_or_default();
        let mut proofs: BTreeMap<&String, _> = dialled.into_iter().zip(proofs).collect();
        let answer = |name: &String| {
            let proof = proofs.remove(name);
            let proof = proof.or_else(|| joined.get(joined_name(name)).cloned());
            (name.clone(), proof.unwrap_or_else(|| Err(NO_SUCH.into())))
        };
        names.iter().map(answer).collect()
    }

    async fn ask_every<T>(
        &self,
        ask: impl AsyncFn(&Sidecar) -> Result<T, String>,
    ) -> Vec<(String, Result<T, String>)> {
        let found = self.dialled().await;
        let answers = self.ask(&found, ask).await;
        let name = |found| Member::from(found).name;
        found.into_iter().map(name).zip(answers).collect()
    }

    async fn ask<T>(
        &self,
        found: &[Found],
        ask: impl AsyncFn(&Sidecar) -> Result<T, String>,
    ) -> Vec<Result<T, String>> {
        let ask = &ask;
        ask_all(found, async |found: &Found| match found {
            Ok(sidecar) => ask(sidecar).await,
            Err((_, reason)) => Err(reason.clone()),
        })
        .await
    }
}

/// Adds the sidecars that have joined a hub to those that were dialled. One that was dialled as well
/// counts once, by what it said itself: what a hub says may add uses and remove none.
fn with_joined(
    mut dialled: Vec<(Member, Result<Status, String>)>,
    joined: Vec<(Member, Result<Status, String>)>,
) -> Vec<(Member, Result<Status, String>)> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (place, (_, status)) in dialled.iter().enumerate() {
        let instance = status
            .as_ref()
            .ok()
            .and_then(|status| status.instance.clone());
        places.extend(instance.map(|instance| (instance, place)));
    }
    let names: BTreeSet<String> = dialled
        .iter()
        .map(|(member, _)| member.name.clone())
        .collect();
    for (mut member, status) in joined {
        let instance = status
            .as_ref()
            .ok()
            .and_then(|status| status.instance.as_ref());
        let place = instance.and_then(|instance| places.get(instance));
        if let Some((known, _)) = place.and_then(|place| dialled.get_mut(*place)) {
            known.workload = known.workload.take().or(member.workload);
            continue;
        }
        if names.contains(&member.name) {
            member.name.push_str(JOINED);
        }
        dialled.push((member, status));
    }
    dialled
}

/// Returns what the hub calls a sidecar.
fn joined_name(name: &str) -> &str {
    name.strip_suffix(JOINED).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(name: &str, instance: &str) -> (Member, Result<Status, String>) {
        let status = json!({
            "version": "0.1.0", "instance": instance, "started_at": "2026-11-24T12:00:00Z",
            "ready": true, "pending": [],
            "key_memory": {"locked_bytes": 0, "unlocked_bytes": 0, "limit_bytes": null},
            "keks": [], "keyrings": [],
        });
        let status = serde_json::from_value(status).expect("a status");
        (Member::named(name), Ok(status))
    }

    fn joined(name: &str, instance: &str) -> (Member, Result<Status, String>) {
        let (mut member, status) = answer(name, instance);
        member.is_joined = true;
        (member, status)
    }

    #[test]
    fn a_sidecar_that_is_dialled_and_has_joined_counts_once() {
        let joined = vec![joined("pod-a", "01"), joined("b", "03"), joined("c", "04")];
        let all = with_joined(vec![answer("a", "01"), answer("b", "02")], joined);
        let names: Vec<&str> = all.iter().map(|(member, _)| member.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "b (joined)", "c"]);
        assert_eq!(joined_name(names[2]), "b");
        let is_joined: Vec<bool> = all.iter().map(|(member, _)| member.is_joined).collect();
        assert_eq!(is_joined, [false, false, true, true], "its own word counts");
    }
}
