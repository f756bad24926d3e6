//! `vault-kv:MOUNT/PATH`: a manifest in the key-value engine, version 2. Its check-and-set makes changes safe (I8).

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{ANSWER, Answer, Fault, Vault};
use crate::{
    backend::{KekFault, ManifestStore, Pending, StoreError},
    config::Location,
};

/// The longest manifest that is compared with what a change expects.
const LONGEST: usize = 64 << 20;

/// A secret with one member, `manifest`: the document as a string, so that its bytes come back as they were.
pub(super) struct KvStore {
    vault: Arc<Vault>,
    path: String,
    location: Location,
}

#[derive(Deserialize)]
struct Secret {
    data: Version,
}

#[derive(Deserialize)]
struct Version {
    data: Option<Members>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Members {
    manifest: Option<String>,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
}

/// What stands there, and the version of the secret that a write has to name.
struct Found {
    manifest: Option<Vec<u8>>,
    version: u64,
}

impl KvStore {
    pub(super) fn new(vault: Arc<Vault>, mount: &str, path: &str, location: Location) -> Self {
        Self { vault, path: format!("{mount}/data/{path}"), location }
    }

    async fn find(&self, limit: usize) -> Result<Found, StoreError> {
        // A string escapes quotes and line ends, of which a manifest is full.
        let answer = self.vault.call(Method::GET, &self.path, None, 2 * limit + ANSWER).await;
        let answer = answer.map_err(|fault| fault.of_location(&self.location))?;
        match answer.status {
            StatusCode::OK => self.found(&answer, limit),
            // Deleted versions answer so, too, and count on.
            StatusCode::NOT_FOUND => {
                let version = answer.parse::<Secret>().map_or(0, |secret| secret.data.metadata.version);
                Ok(Found { manifest: None, version })
            }
            _ => Err(self.explain(&answer, "read")),
        }
    }

    fn found(&self, answer: &Answer, limit: usize) -> Result<Found, StoreError> {
        let foreign = || StoreError::Failed {
            location: self.location.clone(),
            reason: "the secret has no member `manifest`: it is not a keyring, or the engine is version 1 (version 2 is needed)"
                .into(),
        };
        let Version { data, metadata } = answer.parse::<Secret>().map_err(|_| foreign())?.data;
        let manifest = data.and_then(|members| members.manifest).ok_or_else(foreign)?.into_bytes();
        if manifest.len() > limit {
            return Err(StoreError::TooLarge { location: self.location.clone(), limit });
        }
        Ok(Found { manifest: Some(manifest), version: metadata.version })
    }

    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), StoreError> {
        let found = self.find(LONGEST).await?;
        if found.manifest != expected {
            return Err(StoreError::Conflict(self.location.clone()));
        }
        let failed = |reason: String| StoreError::Failed { location: self.location.clone(), reason };
        let manifest = String::from_utf8(new).map_err(|error| failed(error.to_string()))?;
        let body = json!({ "options": { "cas": found.version }, "data": { "manifest": manifest } }).to_string();
        let answer = self.vault.call(Method::POST, &self.path, Some(Zeroizing::new(body.into_bytes())), ANSWER).await;
        let answer = answer.map_err(|fault| fault.of_location(&self.location))?;
        match answer.status {
            status if status.is_success() => Ok(()),
            StatusCode::BAD_REQUEST if answer.errors().contains("check-and-set") => {
                Err(StoreError::Conflict(self.location.clone()))
            }
            _ => Err(self.explain(&answer, if found.version == 0 { "create" } else { "update" })),
        }
    }

    fn explain(&self, answer: &Answer, capability: &str) -> StoreError {
        let fault = answer.fault();
        let fault = match fault.kind {
            KekFault::Denied => {
                let stanza = format!("path \"{}\" {{ capabilities = [\"{capability}\"] }}", self.path);
                Fault::new(fault.kind, format!("the token's policy doesn't allow it; it needs: {stanza}"))
            }
            _ => fault,
        };
        fault.of_location(&self.location)
    }
}

impl ManifestStore for KvStore {
    fn read(&self, limit: usize) -> Pending<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            let found = self.find(limit).await?;
            found.manifest.ok_or_else(|| StoreError::Missing(self.location.clone()))
        })
    }

    fn replace(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Pending<'_, Result<(), StoreError>> {
        Box::pin(self.swap(expected, new))
    }
}
