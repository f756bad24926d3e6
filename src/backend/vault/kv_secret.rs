//! `vault-kv:MOUNT/PATH` as a source of secrets: both versions of the key-value engine.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{
    Vault,
    engine::Engine,
    history::{History, HistoryResponse, time},
    kv_reader::{Content, KvReader, MAX_OVERHEAD, Metadata},
};
use crate::{
    backend::{
        BackendError, FetchOutcome, FetchedValue, HeldValue, SecretProvider, VersionSelector,
        error::Failure, secret::version_number,
    },
    crypto::to_hex,
    model::SecretSource,
};

/// How many versions to try for the previous one if the policy denies reading the metadata.
const MAX_VERSIONS_TRIED: u64 = 10;

/// A secret. Its value is the JSON object that Vault stores, byte for byte.
pub(super) struct KvSecret {
    reader: KvReader,
    last_read: Mutex<Option<LastRead>>,
    /// Cleared when the policy denies reading the metadata.
    may_read_metadata: AtomicBool,
}

/// The current version as last read.
struct LastRead {
    /// The version as given to the caller.
    version: String,
    engine: Engine,
    metadata: Metadata,
}

impl KvSecret {
    pub(super) fn new(vault: Arc<Vault>, mount: &str, path: &str, source: SecretSource) -> Self {
        Self {
            reader: KvReader::new(vault, mount, path, source),
            last_read: Mutex::default(),
            may_read_metadata: AtomicBool::new(true),
        }
    }

    async fn current(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FetchOutcome, BackendError> {
        if let Some(held) = held
            && self
                .is_current(held)
                .await
                .map_err(|failure| self.reader.error(failure))?
        {
            return Ok(FetchOutcome::Unchanged);
        }
        let content = self.reader.read(None, limit).await?;
        let (bytes, metadata, engine) = match content {
            Content::Value {
                bytes,
                metadata,
                engine,
            } => (bytes, metadata, engine),
            Content::Static(credentials) => {
                *self.last_read() = None;
                let fetched = credentials.into_value(held, Timestamp::now());
                return Ok(FetchOutcome::current(fetched, held));
            }
            Content::Nothing { .. } => {
                *self.last_read() = None;
                let hint = self.reader.hint();
                let message = format!("there is no such secret, or it was deleted{hint}");
                return Err(self.not_found(&message));
            }
        };
        let (fetched, last_read) = match metadata {
            Some(metadata) => {
                let number = metadata.version.to_string();
                let version = HeldValue::distinct_version(held, number, &bytes);
                let last_read = LastRead {
                    version: version.clone(),
                    engine,
                    metadata,
                };
                (
                    with_metadata(bytes, version, &last_read.metadata),
                    Some(last_read),
                )
            }
            None => (self.unversioned(bytes), None),
        };
        *self.last_read() = last_read;
        Ok(FetchOutcome::current(fetched, held))
    }

    /// Version 1 has no versions, so the version is derived from the value: with a random key, so
    /// that it reveals nothing about the value.
    fn unversioned(&self, bytes: Zeroizing<Vec<u8>>) -> FetchedValue {
        let version = to_hex(&self.reader.vault.version_key.mac(&[&bytes])[..16]);
        FetchedValue {
            bytes,
            version,
            created_at: None,
            expires_at: None,
            lease: None,
        }
    }

    async fn previous(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FetchedValue, BackendError> {
        let held = held.and_then(|held| held.number());
        let history = self
            .history()
            .await
            .map_err(|failure| self.reader.error(failure))?;
        let candidates = match history {
            Some(history) => versions_before(held, &history),
            None => {
                let newest = match held {
                    Some(held) => held,
                    None => self.newest_number(limit).await?,
                };
                let oldest = newest.saturating_sub(MAX_VERSIONS_TRIED).max(1);
                (oldest..newest).rev().collect()
            }
        };
        for version in candidates {
            if let Some(fetched) = self.version(version, limit).await? {
                return Ok(fetched);
            }
        }
        Err(self.no_previous_version())
    }

    async fn newest_number(&self, limit: usize) -> Result<u64, BackendError> {
        match self.reader.read(None, limit).await? {
            Content::Value {
                metadata: Some(Metadata { version, .. }),
                ..
            }
            | Content::Nothing {
                version: Some(version),
            } => Ok(version),
            _ => Err(self.no_previous_version()),
        }
    }

    /// Reads a version; `None` if it was deleted or never existed.
    async fn version(
        &self,
        version: u64,
        limit: usize,
    ) -> Result<Option<FetchedValue>, BackendError> {
        match self.reader.read(Some(version), limit).await? {
            Content::Value {
                bytes,
                metadata: Some(metadata),
                ..
            } => {
                let version = metadata.version.to_string();
                Ok(Some(with_metadata(bytes, version, &metadata)))
            }
            _ => Ok(None),
        }
    }

    /// Whether the held value is still the newest version and not deleted. `false` if in doubt:
    /// then the secret itself is read.
    async fn is_current(&self, held: HeldValue<'_>) -> Result<bool, Failure> {
        let known = {
            let last_read = self.last_read();
            last_read
                .as_ref()
                .filter(|last_read| last_read.version == held.version)
                .map(|last_read| {
                    (
                        last_read.engine.clone(),
                        last_read.metadata.version,
                        last_read.metadata.created_time.clone(),
                    )
                })
        };
        let Some((engine, version, created_time)) = known else {
            return Ok(false);
        };
        let Some(history) = self.history_in(&engine).await? else {
            return Ok(false);
        };
        let state = history.versions.get(&version.to_string());
        let is_same =
            state.is_some_and(|state| state.created_time == created_time && state.is_readable());
        Ok(history.current_version == version && is_same)
    }

    async fn history(&self) -> Result<Option<History>, Failure> {
        match self.reader.vault.engine(&self.reader.path).await? {
            Some(engine) => self.history_in(&engine).await,
            None => Ok(None),
        }
    }

    /// Returns the metadata of all versions; `None` if there is none or the policy denies it.
    async fn history_in(&self, engine: &Engine) -> Result<Option<History>, Failure> {
        let Some(path) = engine
            .relative(&self.reader.path)
            .filter(|_| engine.is_versioned)
        else {
            return Ok(None);
        };
        if !self.may_read_metadata.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let path = format!("{}metadata/{path}", engine.mount);
        let response = self
            .reader
            .vault
            .call(Method::GET, &path, None, MAX_OVERHEAD)
            .await?;
        match response.status {
            StatusCode::FORBIDDEN => {
                // The permission is optional. Asking again would only cost requests.
                self.may_read_metadata.store(false, Ordering::Relaxed);
                Ok(None)
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => {
                let history = response.ok()?.parse::<HistoryResponse>();
                Ok(history.ok().map(|history| history.data))
            }
        }
    }

    fn last_read(&self) -> MutexGuard<'_, Option<LastRead>> {
        self.last_read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn not_found(&self, message: &str) -> BackendError {
        BackendError::not_found(&self.reader.source, message)
    }

    fn no_previous_version(&self) -> BackendError {
        self.not_found(
            "there is no version before the current one (version 1 of the engine keeps none)",
        )
    }
}

/// Returns the readable versions before the current one, newest first.
fn versions_before(held: Option<u64>, history: &History) -> Vec<u64> {
    let current = history.current_version;
    let newest = held.map_or(current, |held| held.min(current));
    let mut versions: Vec<u64> = history
        .versions
        .iter()
        .filter(|(_, state)| state.is_readable())
        .filter_map(|(version, _)| version_number(version))
        .filter(|version| *version < newest)
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions
}

fn with_metadata(bytes: Zeroizing<Vec<u8>>, version: String, metadata: &Metadata) -> FetchedValue {
    FetchedValue {
        bytes,
        version,
        created_at: time(&metadata.created_time),
        expires_at: time(&metadata.deletion_time),
        lease: None,
    }
}

impl SecretProvider for KvSecret {
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            let fetched = match version {
                VersionSelector::Current => return self.current(held, limit).await,
                VersionSelector::Previous => self.previous(held, limit).await?,
                VersionSelector::Pending => {
                    return Err(self.not_found("Vault has no pending versions"));
                }
                VersionSelector::Version(version) => {
                    let gone = || self.not_found("there is no such version, or it was deleted");
                    let number = version_number(version).ok_or_else(gone)?;
                    self.version(number, limit).await?.ok_or_else(gone)?
                }
            };
            Ok(FetchOutcome::Value(fetched))
        })
    }
}
