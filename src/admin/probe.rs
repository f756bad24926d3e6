//! Trying what a sidecar will need: every location, KEK and secret that its config and its
//! manifests name.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    backend::{self, Answer, Backends, Which},
    clock::Clock,
    config::{self, Settings},
    keks::Keks,
    keyring::{Document, Expectations, KeyTable, Version},
    model::{KekUri, KeyringName, SecretName},
};

/// What something is needed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A keyring.
    Keyring(KeyringName),
    /// A secret.
    Secret(SecretName),
}

/// What came of one try.
pub struct Probe {
    /// For which keyring or secret.
    pub purpose: Purpose,
    /// The location, the KEK or the source.
    pub subject: String,
    /// How long it took.
    pub took: Duration,
    /// What is wrong and what to do, if it failed.
    pub result: Result<(), String>,
}

/// Reads every keyring's manifest as a sidecar with these settings would, and opens one version
/// through each KEK that wraps any; and reads every secret. Leases that this makes are given back.
pub async fn probe(settings: &Settings, clock: Clock) -> Vec<Probe> {
    let backends = backend::configured(&settings.backends);
    let keks = Keks::new(
        Arc::clone(&backends),
        &settings.refresh,
        clock,
        Arc::default(),
    );
    let mut probes = Vec::new();
    for keyring in &settings.keyrings {
        let begun = Instant::now();
        let read = read(&*backends, keyring, &settings.refresh).await;
        let (document, result) = match read {
            Ok(document) => (Some(document), Ok(())),
            Err(reason) => (None, Err(reason)),
        };
        let (name, subject) = (keyring.name.clone(), keyring.location.to_string());
        probes.push(Probe {
            purpose: Purpose::Keyring(name),
            subject,
            took: begun.elapsed(),
            result,
        });
        let Some(document) = document else { continue };
        for version in one_for_each_kek(&document) {
            let attempts = keks
                .try_each(document.manifest().id, &version, &keyring.keks)
                .await;
            probes.extend(attempts.into_iter().map(|attempt| Probe {
                purpose: Purpose::Keyring(keyring.name.clone()),
                subject: attempt.uri.to_string(),
                took: attempt.took,
                result: attempt.result.map_err(|error| error.to_string()),
            }));
        }
    }
    for secret in &settings.secrets.named {
        let begun = Instant::now();
        let result = fetch(&*backends, secret, settings).await;
        let (purpose, subject) = (
            Purpose::Secret(secret.name.clone()),
            secret.source.to_string(),
        );
        probes.push(Probe {
            purpose,
            subject,
            took: begun.elapsed(),
            result,
        });
    }
    probes
}

async fn fetch(
    backends: &dyn Backends,
    secret: &config::Secret,
    settings: &Settings,
) -> Result<(), String> {
    let limit = settings.refresh.read_timeout;
    let late = || {
        format!(
            "{}: no answer within {limit:?} (`refresh.read_timeout`)",
            secret.source
        )
    };
    let provider = backends
        .secret(&secret.source)
        .map_err(|error| error.to_string())?;
    let answer = timeout(
        limit,
        provider.fetch(&Which::Current, None, settings.secrets.value_bytes),
    )
    .await
    .map_err(|_| late())?;
    let Answer::Value(fetched) = answer.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let Some(lease) = fetched.lease else {
        return Ok(());
    };
    // Renewing is a right of its own, without which the credentials end sooner.
    let renewed = timeout(limit, lease.renew()).await.map_err(|_| late())?;
    let revoked = timeout(limit, lease.revoke()).await.map_err(|_| late())?;
    renewed.map_err(|error| error.to_string())?;
    revoked.map_err(|error| format!("a lease was made and can't be given back: {error}"))
}

async fn read(
    backends: &dyn Backends,
    keyring: &config::Keyring,
    times: &config::Refresh,
) -> Result<Document, String> {
    let store = backends
        .store(&keyring.location)
        .map_err(|error| error.to_string())?;
    let late = || {
        format!(
            "{}: no answer within {:?} (`refresh.read_timeout`)",
            keyring.location, times.read_timeout
        )
    };
    let bytes = timeout(times.read_timeout, store.read(times.manifest_bytes))
        .await
        .map_err(|_| late())?;
    let document = Document::parse(bytes.map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())?;
    KeyTable::examine(None, &document, &Expectations::from(keyring))
        .map_err(|rejection| rejection.to_string())?;
    Ok(document)
}

/// For every KEK the newest version that it wraps, with that wrap alone.
fn one_for_each_kek(document: &Document) -> Vec<Version> {
    let mut newest: BTreeMap<&KekUri, Version> = BTreeMap::new();
    for version in document.manifest().live() {
        for wrap in &version.wraps {
            newest.insert(
                &wrap.kek,
                Version {
                    wraps: vec![wrap.clone()],
                    ..version.clone()
                },
            );
        }
    }
    newest.into_values().collect()
}
