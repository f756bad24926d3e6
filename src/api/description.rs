//! What callers are shown of a keyring: versions, roles, generation; no keys.

use jiff::Timestamp;
use serde::Serialize;

use crate::http::problem::{Code, Problem};
use crate::{refresh::Keyring, secrets};

/// Everything.
#[derive(Serialize)]
pub(crate) struct Description {
    name: String,
    id: String,
    generation: u64,
    wave: String,
    primary: Option<u32>,
    encrypt_until: Timestamp,
    versions: Vec<VersionDescription>,
}

#[derive(Serialize)]
struct VersionDescription {
    version: u32,
    role: &'static str,
    compromised: bool,
    created_at: Timestamp,
}

impl Description {
    pub(crate) fn of(keyring: &Keyring, now: Timestamp) -> Result<Self, Problem> {
        let snapshot = keyring.snapshot();
        let Some(snapshot) = snapshot.as_ref() else {
            return Err(Problem::new(
                Code::ProviderUnavailable,
                "the keyring has not been loaded yet",
            )
            .retry_after(1));
        };
        let table = &snapshot.table;
        let versions = table.manifest().versions.iter().filter_map(|version| {
            let role = table.role(version.version, now)?.as_str();
            Some(VersionDescription {
                version: version.version,
                role,
                compromised: version.compromised,
                created_at: version.created_at,
            })
        });
        Ok(Self {
            name: keyring.name().to_string(),
            id: table.id().to_string(),
            generation: table.generation(),
            wave: table.wave().to_string(),
            primary: table.primary(now),
            encrypt_until: keyring.lease_end(table),
            versions: versions.collect(),
        })
    }
}

/// What an event tells of a keyring: only what changes when somebody changed something.
#[derive(Serialize)]
pub(crate) struct Change {
    keyring: String,
    generation: u64,
    primary: Option<u32>,
    versions: Vec<VersionRole>,
}

#[derive(Serialize)]
struct VersionRole {
    version: u32,
    role: &'static str,
}

impl Change {
    /// What is in force; `None` while nothing is.
    pub(crate) fn of(keyring: &Keyring, now: Timestamp) -> Option<Self> {
        let snapshot = keyring.snapshot();
        let table = &snapshot.as_ref()?.table;
        let versions = table
            .manifest()
            .versions
            .iter()
            .map(|version| version.version);
        Some(Self {
            keyring: keyring.name().to_string(),
            generation: table.generation(),
            primary: table.primary(now),
            versions: versions
                .filter_map(|version| {
                    Some(VersionRole {
                        version,
                        role: table.role(version, now)?.as_str(),
                    })
                })
                .collect(),
        })
    }
}

/// What an event tells of a secret.
#[derive(Serialize)]
pub(crate) struct SecretChange<'c> {
    secret: &'c str,
    version: Option<&'c str>,
    previous: Option<&'c str>,
}

impl<'c> SecretChange<'c> {
    /// As JSON.
    pub(crate) fn text(change: &'c secrets::Change) -> String {
        let (version, previous) = (change.version.as_deref(), change.previous.as_deref());
        match serde_json::to_string(&Self {
            secret: change.secret.as_str(),
            version,
            previous,
        }) {
            Ok(text) => text,
            Err(error) => unreachable!("three plain members serialize: {error}"),
        }
    }
}
