//! Trying what a sidecar will need: every location and every KEK that its config and its manifests name.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use crate::{
    backend::Backends,
    clock::Clock,
    config::{self, KekUri, KeyringName, Settings},
    keyring::{Document, Expectations, KeyTable, Version},
    refresh::Keks,
};

/// What came of one try.
pub struct Probe {
    /// For which keyring.
    pub keyring: KeyringName,
    /// The location, or the KEK.
    pub subject: String,
    /// How long it took.
    pub took: Duration,
    /// What is wrong and what to do, if it failed.
    pub result: Result<(), String>,
}

/// Reads every keyring's manifest as a sidecar with these settings would, and opens one version through each KEK that wraps any.
pub async fn probe(settings: &Settings, clock: Clock) -> Vec<Probe> {
    let backends = Backends::new(&settings.backends);
    let keks = Keks::new(Arc::clone(&backends), &settings.refresh, clock, Arc::default());
    let mut probes = Vec::new();
    for keyring in &settings.keyrings {
        let begun = Instant::now();
        let read = read(&backends, keyring, &settings.refresh).await;
        let (document, result) = match read {
            Ok(document) => (Some(document), Ok(())),
            Err(reason) => (None, Err(reason)),
        };
        let (name, subject) = (keyring.name.clone(), keyring.location.to_string());
        probes.push(Probe { keyring: name, subject, took: begun.elapsed(), result });
        let Some(document) = document else { continue };
        for version in one_for_each_kek(&document) {
            let trials = keks.try_each(document.manifest().id, &version, &keyring.keks).await;
            probes.extend(trials.into_iter().map(|trial| Probe {
                keyring: keyring.name.clone(),
                subject: trial.uri.to_string(),
                took: trial.took,
                result: trial.result.map_err(|error| error.to_string()),
            }));
        }
    }
    probes
}

async fn read(backends: &Backends, keyring: &config::Keyring, times: &config::Refresh) -> Result<Document, String> {
    let store = backends.store(&keyring.location).map_err(|error| error.to_string())?;
    let late = || format!("{}: no answer within {:?} (`refresh.read_timeout`)", keyring.location, times.read_timeout);
    let bytes = timeout(times.read_timeout, store.read(times.manifest_bytes)).await.map_err(|_| late())?;
    let document = Document::parse(&bytes.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    KeyTable::examine(None, &document, &Expectations::from(keyring)).map_err(|rejection| rejection.to_string())?;
    Ok(document)
}

/// For every KEK the newest version that it wraps, with that wrap alone.
fn one_for_each_kek(document: &Document) -> Vec<Version> {
    let mut newest: BTreeMap<&KekUri, Version> = BTreeMap::new();
    for version in document.manifest().live() {
        for wrap in &version.wraps {
            newest.insert(&wrap.kek, Version { wraps: vec![wrap.clone()], ..version.clone() });
        }
    }
    newest.into_values().collect()
}
