//! Descriptions of keyrings and secrets for callers and events. They contain no keys or values.

use jiff::Timestamp;
use serde::Serialize;

use crate::{refresh::Keyring, secrets, session::SessionError};

/// A keyring, as callers see it.
#[derive(Serialize)]
pub(crate) struct KeyringDescription {
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

impl KeyringDescription {
    /// # Errors
    /// [`SessionError::NotLoaded`]
    pub(crate) fn of(keyring: &Keyring, now: Timestamp) -> Result<Self, SessionError> {
        let snapshot = keyring.snapshot();
        let snapshot = snapshot.as_ref().ok_or(SessionError::NotLoaded)?;
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

/// The data of a keyring event: only what operators change.
#[derive(Serialize)]
pub(crate) struct KeyringEvent {
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

impl KeyringEvent {
    /// The active state; None until the keyring is loaded.
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

/// The data of a secret event.
#[derive(Serialize)]
pub(crate) struct SecretEvent<'c> {
    secret: &'c str,
    version: Option<&'c str>,
    previous: Option<&'c str>,
}

impl<'c> SecretEvent<'c> {
    pub(crate) fn to_json(change: &'c secrets::SecretChange) -> String {
        let (version, previous) = (change.version.as_deref(), change.previous.as_deref());
        match serde_json::to_string(&Self {
            secret: change.secret.as_str(),
            version,
            previous,
        }) {
            Ok(text) => text,
            Err(error) => unreachable!("strings serialize: {error}"),
        }
    }
}
