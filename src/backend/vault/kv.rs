//! `vault-kv:MOUNT/PATH` as a location: a manifest in the key-value engine, version 2. Its
//! check-and-set makes changes safe (I8), and its metadata makes polls cheap.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{MAX_RESPONSE, Response, Vault, history::HistoryResponse};
use crate::{
    backend::{BackendError, ErrorKind, ManifestStore, error::Failure},
    model::Location,
};

/// The largest entry that Vault's integrated storage keeps by default (`max_entry_size`), in bytes.
const MAX_ENTRY: usize = 1 << 20;
/// The limit for a manifest that a change replaces, in bytes.
const MAX_REPLACED: usize = 64 << 20;

/// A secret with one member, `manifest`: the document as a string, which preserves its bytes.
pub(super) struct KvStore {
    vault: Arc<Vault>,
    mount: String,
    path: String,
    location: Location,
    cached: Mutex<Option<StoredManifest>>,
    /// Cleared when the policy denies reading the metadata.
    may_read_metadata: AtomicBool,
}

#[derive(Deserialize)]
struct SecretResponse {
    data: SecretVersion,
}

#[derive(Deserialize)]
struct SecretVersion {
    data: Option<Members>,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Members {
    manifest: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq)]
struct Metadata {
    version: u64,
    /// A storage that was restored to an older state reuses version numbers, so the number alone
    /// does not identify a version.
    created_time: String,
}

#[derive(Deserialize)]
struct WriteResponse {
    #[expect(
        dead_code,
        reason = "present only in responses of version 2 of the engine"
    )]
    data: Metadata,
}

#[derive(Deserialize)]
struct MountResponse {
    data: Mount,
}

#[derive(Deserialize)]
struct Mount {
    options: Option<BTreeMap<String, String>>,
}

/// A manifest, and the version of the secret that contains it.
#[derive(Clone)]
struct StoredManifest {
    manifest: Bytes,
    metadata: Metadata,
}

/// The current manifest, and the version that a check-and-set must name.
struct CurrentState {
    stored: Option<StoredManifest>,
    version: u64,
}

impl KvStore {
    pub(super) fn new(vault: Arc<Vault>, mount: &str, path: &str, location: Location) -> Self {
        Self {
            vault,
            mount: mount.to_owned(),
            path: path.to_owned(),
            location,
            cached: Mutex::default(),
            may_read_metadata: AtomicBool::new(true),
        }
    }

    async fn get(&self, limit: usize) -> Result<Bytes, BackendError> {
        let cached = self.cached().clone();
        if let Some(cached) = cached
            && cached.manifest.len() <= limit
            && self.is_current(&cached.metadata).await
        {
            return Ok(cached.manifest);
        }
        let stored = self.read(limit).await?.stored;
        self.cached().clone_from(&stored);
        stored
            .map(|stored| stored.manifest)
            .ok_or_else(|| self.no_manifest())
    }

    fn no_manifest(&self) -> BackendError {
        match self.path.split_once('/') {
            Some((part @ ("data" | "metadata"), rest)) => {
                let mount = &self.mount;
                let message = format!(
                    "there is no manifest; `{part}/` is part of the request URL and is added \
                     automatically: is it vault-kv:{mount}/{rest}?"
                );
                BackendError::new(ErrorKind::NotFound, &self.location, message)
            }
            _ => BackendError::no_manifest(&self.location),
        }
    }

    /// Whether this is still the newest version and not deleted. `false` if in doubt: then the
    /// secret itself is read.
    async fn is_current(&self, known: &Metadata) -> bool {
        if !self.may_read_metadata.load(Ordering::Relaxed) {
            return false;
        }
        let path = format!("{}/metadata/{}", self.mount, self.path);
        let response = self
            .vault
            .call(Method::GET, &path, None, MAX_RESPONSE)
            .await;
        let Ok(response) = response else {
            return false;
        };
        if response.status == StatusCode::FORBIDDEN {
            // The permission is optional. Asking again would only cost requests.
            self.may_read_metadata.store(false, Ordering::Relaxed);
            return false;
        }
        let Ok(HistoryResponse { data: history }) = response.parse() else {
            return false;
        };
        let state = history.versions.get(&known.version.to_string());
        history.current_version == known.version
            && state.is_some_and(|state| {
                state.created_time == known.created_time
                    && state.deletion_time.is_empty()
                    && !state.destroyed
            })
    }

    async fn read(&self, limit: usize) -> Result<CurrentState, BackendError> {
        // JSON escapes the manifest's quotes and line breaks, which can nearly double its size.
        let response = self
            .vault
            .call(
                Method::GET,
                &self.data_path(),
                None,
                2 * limit + MAX_RESPONSE,
            )
            .await
            .map_err(|failure| failure.on(&self.location))?;
        match response.status {
            StatusCode::OK => {
                let stored = self.parse(&response, limit)?;
                let version = stored.metadata.version;
                Ok(CurrentState {
                    stored: Some(stored),
                    version,
                })
            }
            // Also the response for a deleted version, which still counts.
            StatusCode::NOT_FOUND => {
                let version = response
                    .parse::<SecretResponse>()
                    .map_or(0, |secret| secret.data.metadata.version);
                Ok(CurrentState {
                    stored: None,
                    version,
                })
            }
            _ => Err(self.error(response.failure_at(&self.data_path(), "read"))),
        }
    }

    fn parse(&self, response: &Response, limit: usize) -> Result<StoredManifest, BackendError> {
        let foreign = || {
            self.misconfigured(
                "the secret has no member `manifest`: it is not a keyring, or the engine is \
                 version 1 (version 2 is required)",
            )
        };
        let secret = response.parse::<SecretResponse>().map_err(|_| foreign())?;
        let SecretVersion { data, metadata } = secret.data;
        let manifest = data
            .and_then(|members| members.manifest)
            .ok_or_else(foreign)?
            .into_bytes();
        if manifest.len() > limit {
            return Err(BackendError::manifest_too_large(&self.location, limit));
        }
        Ok(StoredManifest {
            manifest: manifest.into(),
            metadata,
        })
    }

    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), BackendError> {
        let CurrentState { stored, version } = self.read(MAX_REPLACED).await?;
        if stored.as_ref().map(|stored| &*stored.manifest) != expected.as_deref() {
            return Err(BackendError::conflict(&self.location));
        }
        if version == 0 {
            self.require_version_2().await?;
        }
        let manifest =
            String::from_utf8(new).map_err(|error| self.misconfigured(error.to_string()))?;
        let body =
            json!({ "options": { "cas": version }, "data": { "manifest": manifest } }).to_string();
        let response = self
            .vault
            .call(
                Method::POST,
                &self.data_path(),
                Some(Zeroizing::new(body.into_bytes())),
                MAX_RESPONSE,
            )
            .await
            .map_err(|failure| failure.on(&self.location))?;
        if response.status.is_success() {
            return response.parse::<WriteResponse>().map(drop).map_err(|_| {
                self.misconfigured(format!(
                    "the manifest was written, but not by version 2 of the key-value engine, so \
                     changes are not safe; delete it: vault delete {}",
                    self.data_path()
                ))
            });
        }
        let is_bad_request = response.status == StatusCode::BAD_REQUEST;
        if is_bad_request && response.errors().contains("check-and-set") {
            return Err(BackendError::conflict(&self.location));
        }
        let capability = if version == 0 { "create" } else { "update" };
        Err(self.error(response.failure_at(&self.data_path(), capability)))
    }

    /// Fails if the mount is not version 2 of the engine. Version 1 and other engines accept the
    /// first write silently, and later writes without check-and-set.
    async fn require_version_2(&self) -> Result<(), BackendError> {
        // The request of Vault's own CLI; any permission within the mount permits it.
        let response = self
            .vault
            .call(
                Method::GET,
                &format!("sys/internal/ui/mounts/{}", self.mount),
                None,
                MAX_RESPONSE,
            )
            .await
            .map_err(|failure| failure.on(&self.location))?;
        // If the lookup fails, the response to the write shows the version.
        let Ok(MountResponse {
            data: Mount { options },
        }) = response.parse()
        else {
            return Ok(());
        };
        if options
            .is_some_and(|options| options.get("version").is_some_and(|version| version == "2"))
        {
            return Ok(());
        }
        let mount = &self.mount;
        Err(self.misconfigured(format!(
            "{mount}/ is not a key-value engine of version 2, which safe changes require; run: \
             vault kv enable-versioning {mount}/, or: \
             vault secrets enable -path={mount} -version=2 kv"
        )))
    }

    fn data_path(&self) -> String {
        format!("{}/data/{}", self.mount, self.path)
    }

    fn cached(&self) -> MutexGuard<'_, Option<StoredManifest>> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn misconfigured(&self, message: impl Into<String>) -> BackendError {
        BackendError::new(ErrorKind::Misconfigured, &self.location, message)
    }

    fn error(&self, mut failure: Failure) -> BackendError {
        // A missing mount is not a missing manifest.
        if failure.kind == ErrorKind::NotFound {
            failure.kind = ErrorKind::Misconfigured;
        }
        failure.on(&self.location)
    }
}

impl ManifestStore for KvStore {
    fn capacity(&self) -> Option<usize> {
        Some(MAX_ENTRY)
    }

    fn server_time(&self) -> Option<Timestamp> {
        self.vault.clock.now()
    }

    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        Box::pin(self.get(limit))
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.swap(expected, new))
    }
}
