//! `vault-kv:MOUNT/PATH`: a manifest in the key-value engine, version 2. Its check-and-set makes changes safe (I8), its metadata
//! makes polls cheap.

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
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::{
    ANSWER, Answer, Vault,
    history::{History, Versions},
};
use crate::{
    backend::{ManifestStore, StoreError},
    model::Location,
};

/// The longest manifest that is compared with what a change expects.
const LONGEST: usize = 64 << 20;

/// A secret with one member, `manifest`: the document as a string, so that its bytes come back as they were.
pub(super) struct KvStore {
    vault: Arc<Vault>,
    mount: String,
    path: String,
    location: Location,
    /// What was read last.
    last: Mutex<Option<Found>>,
    /// Whether our policy lets us read metadata, as far as we know.
    may_compare: AtomicBool,
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

/// A version of the secret.
#[derive(Deserialize, Clone, PartialEq, Eq)]
struct Metadata {
    version: u64,
    /// A store that was put back to an older state counts on from there, so that a number alone says nothing.
    created_time: String,
}

#[derive(Deserialize)]
struct Written {
    #[expect(dead_code, reason = "only version 2 of the engine gives it")]
    data: Metadata,
}

#[derive(Deserialize)]
struct Mount {
    data: Engine,
}

#[derive(Deserialize)]
struct Engine {
    options: Option<BTreeMap<String, String>>,
}

/// A manifest, and the version of the secret that holds it.
#[derive(Clone)]
struct Found {
    manifest: Bytes,
    metadata: Metadata,
}

/// What stands there, and the version that a write has to name.
struct Standing {
    found: Option<Found>,
    version: u64,
}

impl KvStore {
    pub(super) fn new(vault: Arc<Vault>, mount: &str, path: &str, location: Location) -> Self {
        let (mount, path) = (mount.to_owned(), path.to_owned());
        Self {
            vault,
            mount,
            path,
            location,
            last: Mutex::default(),
            may_compare: AtomicBool::new(true),
        }
    }

    async fn get(&self, limit: usize) -> Result<Bytes, StoreError> {
        let last = self.last().clone();
        if let Some(last) = last
            && last.manifest.len() <= limit
            && self.is_current(&last.metadata).await
        {
            return Ok(last.manifest);
        }
        let found = self.find(limit).await?.found;
        self.last().clone_from(&found);
        found
            .map(|found| found.manifest)
            .ok_or_else(|| StoreError::Missing(self.location.clone()))
    }

    /// Whether this is the newest version still and nobody has deleted it. When in doubt, it is not: then the secret itself is read.
    async fn is_current(&self, known: &Metadata) -> bool {
        if !self.may_compare.load(Ordering::Relaxed) {
            return false;
        }
        let path = format!("{}/metadata/{}", self.mount, self.path);
        let Ok(answer) = self.vault.call(Method::GET, &path, None, ANSWER).await else {
            return false;
        };
        if answer.status == StatusCode::FORBIDDEN {
            // A right that nobody needs; asking for it every time would only cost requests.
            self.may_compare.store(false, Ordering::Relaxed);
            return false;
        }
        let Ok(History {
            data:
                Versions {
                    current_version,
                    versions,
                },
        }) = answer.parse()
        else {
            return false;
        };
        let state = versions.get(&known.version.to_string());
        current_version == known.version
            && state.is_some_and(|state| {
                state.created_time == known.created_time
                    && state.deletion_time.is_empty()
                    && !state.destroyed
            })
    }

    async fn find(&self, limit: usize) -> Result<Standing, StoreError> {
        // A string escapes quotes and line ends, of which a manifest is full.
        let answer = self
            .vault
            .call(Method::GET, &self.data(), None, 2 * limit + ANSWER)
            .await;
        let answer = answer.map_err(|fault| fault.of_location(&self.location))?;
        match answer.status {
            StatusCode::OK => {
                let found = self.found(&answer, limit)?;
                let version = found.metadata.version;
                Ok(Standing {
                    found: Some(found),
                    version,
                })
            }
            // Deleted versions answer so, too, and count on.
            StatusCode::NOT_FOUND => {
                let version = answer
                    .parse::<Secret>()
                    .map_or(0, |secret| secret.data.metadata.version);
                Ok(Standing {
                    found: None,
                    version,
                })
            }
            _ => Err(self.explain(&answer, "read")),
        }
    }

    fn found(&self, answer: &Answer, limit: usize) -> Result<Found, StoreError> {
        let foreign = || {
            self.failed(
                "the secret has no member `manifest`: it is not a keyring, or the engine is version 1 (version 2 is needed)",
            )
        };
        let Version { data, metadata } = answer.parse::<Secret>().map_err(|_| foreign())?.data;
        let manifest = data
            .and_then(|members| members.manifest)
            .ok_or_else(foreign)?
            .into_bytes();
        if manifest.len() > limit {
            return Err(StoreError::TooLarge {
                location: self.location.clone(),
                limit,
            });
        }
        let manifest = manifest.into();
        Ok(Found { manifest, metadata })
    }

    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), StoreError> {
        let Standing { found, version } = self.find(LONGEST).await?;
        if found.as_ref().map(|found| &*found.manifest) != expected.as_deref() {
            return Err(StoreError::Conflict(self.location.clone()));
        }
        if version == 0 {
            self.demand_version_2().await?;
        }
        let manifest = String::from_utf8(new).map_err(|error| self.failed(error.to_string()))?;
        let body =
            json!({ "options": { "cas": version }, "data": { "manifest": manifest } }).to_string();
        let answer = self
            .vault
            .call(
                Method::POST,
                &self.data(),
                Some(Zeroizing::new(body.into_bytes())),
                ANSWER,
            )
            .await;
        let answer = answer.map_err(|fault| fault.of_location(&self.location))?;
        match answer.status {
            status if status.is_success() => answer.parse::<Written>().map(drop).map_err(|_| {
                let what = "something was written, but not by version 2 of the key-value engine: changes are not safe there";
                self.failed(format!("{what}; delete it: vault delete {}", self.data()))
            }),
            StatusCode::BAD_REQUEST if answer.errors().contains("check-and-set") => {
                Err(StoreError::Conflict(self.location.clone()))
            }
            _ => Err(self.explain(&answer, if version == 0 { "create" } else { "update" })),
        }
    }

    /// Version 1 of the engine, and others, take a first write without a word, and with it leave every later one unprotected.
    async fn demand_version_2(&self) -> Result<(), StoreError> {
        // Where Vault's own command looks; whoever has any right in the mount may.
        let answer = self
            .vault
            .call(
                Method::GET,
                &format!("sys/internal/ui/mounts/{}", self.mount),
                None,
                ANSWER,
            )
            .await;
        let answer = answer.map_err(|fault| fault.of_location(&self.location))?;
        // Without an answer, that to the write tells.
        let Ok(Mount {
            data: Engine { options },
        }) = answer.parse()
        else {
            return Ok(());
        };
        if options
            .is_some_and(|options| options.get("version").is_some_and(|version| version == "2"))
        {
            return Ok(());
        }
        let mount = &self.mount;
        let how = format!(
            "vault kv enable-versioning {mount}/, or: vault secrets enable -path={mount} -version=2 kv"
        );
        Err(self.failed(format!(
            "{mount}/ is not a key-value engine of version 2, which safe changes need: {how}"
        )))
    }

    fn data(&self) -> String {
        format!("{}/data/{}", self.mount, self.path)
    }

    fn last(&self) -> MutexGuard<'_, Option<Found>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failed(&self, reason: impl Into<String>) -> StoreError {
        StoreError::Failed {
            location: self.location.clone(),
            reason: reason.into(),
        }
    }

    fn explain(&self, answer: &Answer, capability: &str) -> StoreError {
        answer
            .fault_of(&self.data(), capability)
            .of_location(&self.location)
    }
}

impl ManifestStore for KvStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        Box::pin(self.get(limit))
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.swap(expected, new))
    }
}
