//! Checks whether a sidecar could use every location, KEK and secret in its config.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    backend::{self, Backends, FetchOutcome, TimedOut, VersionSelector},
    clock::Clock,
    config::{self, Settings},
    keks::Keks,
    keyring::{Document, Expectations, Version, examine},
    model::{KekUri, KeyringName, SecretName},
};

/// The setting that limits reads.
const SETTING: &str = "refresh.read_timeout";

/// What a probe belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// A keyring.
    Keyring(KeyringName),
    /// A secret.
    Secret(SecretName),
}

/// The result of one check.
pub struct Probe {
    /// The keyring or secret.
    pub purpose: Purpose,
    /// The location, KEK or source.
    pub subject: String,
    /// The duration of the check.
    pub took: Duration,
    /// The error and what to do about it.
    pub result: Result<(), String>,
}

/// Reads every manifest as a sidecar with these settings would, unwraps one version with each KEK,
/// and reads every secret. Leases created by this are revoked.
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
    let timed_out = |late: TimedOut| late.on(&secret.source, Some(SETTING)).to_string();
    let provider = backends
        .secret(&secret.source)
        .map_err(|error| error.to_string())?;
    let answer = backend::within(
        limit,
        provider.fetch(
            &VersionSelector::Current,
            None,
            settings.secrets.value_bytes,
        ),
    )
    .await
    .map_err(timed_out)?;
    let FetchOutcome::Value(fetched) = answer.map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let Some(lease) = fetched.lease else {
        return Ok(());
    };
    // Renewal requires its own right, without which the credentials expire sooner.
    let renewed = backend::within(limit, lease.renew())
        .await
        .map_err(timed_out)?;
    let revoked = backend::within(limit, lease.revoke())
        .await
        .map_err(timed_out)?;
    renewed.map_err(|error| error.to_string())?;
    revoked.map_err(|error| format!("a lease was created and can't be revoked: {error}"))
}

async fn read(
    backends: &dyn Backends,
    keyring: &config::Keyring,
    times: &config::Refresh,
) -> Result<Document, String> {
    let store = backends
        .store(&keyring.location)
        .map_err(|error| error.to_string())?;
    let timed_out = |late: TimedOut| late.on(&keyring.location, Some(SETTING)).to_string();
    let bytes = backend::within(times.read_timeout, store.read(times.manifest_bytes))
        .await
        .map_err(timed_out)?;
    let document = Document::parse(bytes.map_err(|error| error.to_string())?)
        .map_err(|error| error.to_string())?;
    examine(None, &document, &Expectations::from(keyring))
        .map_err(|rejection| rejection.to_string())?;
    Ok(document)
}

/// Returns for every KEK the newest version that it wraps, with only that wrap.
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
