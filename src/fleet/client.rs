//! What a command asks the sidecars of a fleet.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;

use super::{
    Discovery, Fleet, Sidecar,
    connect::Connector,
    discovery::{Found, find},
    parallel::ask_all,
    request::{get, post},
};
use crate::{
    keyring::{Document, ManifestError},
    model::KeyringName,
    wire::{
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

/// Asks the sidecars of a fleet. Results name each sidecar; a request that failed is part of them,
/// and so is a name that DNS doesn't know.
pub struct FleetClient {
    sidecars: Vec<Sidecar>,
    discover: Vec<Discovery>,
    connector: Connector,
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
        })
    }

    /// Returns the sidecars that there are now, and the names that DNS doesn't know, with reasons.
    pub async fn sidecars(&self) -> Vec<Found> {
        find(&self.sidecars, &self.discover).await
    }

    /// Returns the status of every sidecar.
    pub async fn statuses(&self) -> Vec<(String, Result<Status, String>)> {
        self.ask_every(async |sidecar| self.status(sidecar).await)
            .await
    }

    /// Like [`Self::statuses`], with all that is known of the sidecar.
    pub async fn sidecars_and_statuses(&self) -> Vec<(Found, Result<Status, String>)> {
        let found = self.sidecars().await;
        let statuses = self
            .ask(&found, async |sidecar| self.status(sidecar).await)
            .await;
        found.into_iter().zip(statuses).collect()
    }

    async fn status(&self, sidecar: &Sidecar) -> Result<Status, String> {
        let body = get(&self.connector, sidecar, "/status", MAX_STATUS).await?;
        serde_json::from_slice(&body).map_err(|error| {
            format!("unexpected /status, maybe of another version of Sidekey: {error}")
        })
    }

    /// Returns the active manifest of every sidecar.
    pub async fn manifests(
        &self,
        keyring: &KeyringName,
    ) -> Vec<(String, Result<Document, NoManifest>)> {
        let path = format!("/manifests/{keyring}");
        let path = path.as_str();
        let answers = self
            .ask_every(async |sidecar| get(&self.connector, sidecar, path, MAX_MANIFEST).await)
            .await;
        let parse = |(name, answer): (String, Result<_, _>)| {
            let document = answer
                .map_err(NoManifest::Unanswered)
                .and_then(|bytes| Document::parse(bytes).map_err(NoManifest::Invalid));
            (name, document)
        };
        answers.into_iter().map(parse).collect()
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
            let answer = post(&self.connector, sidecar, "/push", hint, MAX_ANSWER).await?;
            let answer: Pushed = serde_json::from_slice(&answer)
                .map_err(|error| format!("unexpected answer to a push: {error}"))?;
            Ok(answer.refreshing)
        });
        answers.await
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
            .sidecars()
            .await
            .into_iter()
            .filter_map(|found| found.ok().map(|sidecar| (sidecar.name.clone(), sidecar)))
            .collect();
        let (known, json) = (&known, &json);
        let answers = ask_all(names, async |name: &String| {
            let sidecar = known
                .get(name)
                .ok_or("the fleet has no sidecar of that name now")?;
            let answer = post(&self.connector, sidecar, "/prove", json.clone(), MAX_ANSWER).await?;
            serde_json::from_slice(&answer).map_err(|error| format!("unexpected proof: {error}"))
        });
        names.iter().cloned().zip(answers.await).collect()
    }

    async fn ask_every<T>(
        &self,
        ask: impl AsyncFn(&Sidecar) -> Result<T, String>,
    ) -> Vec<(String, Result<T, String>)> {
        let found = self.sidecars().await;
        let answers = self.ask(&found, ask).await;
        let name = |found: Found| match found {
            Ok(sidecar) => sidecar.name,
            Err((name, _)) => name,
        };
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
