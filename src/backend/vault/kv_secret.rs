//! `vault-kv:MOUNT/PATH` as a source of secrets: both versions of the key-value engine.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use futures_util::future::BoxFuture;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{
    ANSWER, Answer as Response, Fault, Vault,
    engine::Engine,
    history::{History, Versions, time},
};
use crate::{
    backend::{
        Answer, Fetched, Held, SecretError, SecretProvider, Which,
        secret::{number, value_text},
    },
    crypto::to_hex,
    model::SecretSource,
};

/// What an answer may be longer than its value: metadata, and so much that a value which is too long can be told from something that
/// is no answer. No storage of Vault's takes a value this long.
const AROUND: usize = 4 * ANSWER;

/// How many deleted versions are passed over where we may not ask which they are.
const REACH: u64 = 10;

/// A secret. Its value is the JSON object that Vault keeps, byte for byte.
pub(super) struct KvSecret {
    vault: Arc<Vault>,
    mount: String,
    /// Mount and path.
    path: String,
    source: SecretSource,
    /// What was read last.
    last: Mutex<Option<Last>>,
    /// Whether our policy lets us read metadata, as far as we know.
    may_ask: AtomicBool,
}

/// A current version that was read, under the name that it was given.
struct Last {
    name: String,
    engine: Engine,
    metadata: Metadata,
}

/// Version 2's answer.
#[derive(Deserialize)]
struct Versioned<'a> {
    #[serde(borrow)]
    data: Version<'a>,
}

#[derive(Deserialize)]
struct Version<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    metadata: Metadata,
}

/// Version 1's answer.
#[derive(Deserialize)]
struct Plain<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Metadata {
    version: u64,
    /// A store that was put back to an older state, or a secret that was made anew, counts on from there: a number says nothing alone.
    created_time: String,
    #[serde(default)]
    deletion_time: String,
}

/// What stands at a path.
enum Found {
    Value {
        bytes: Zeroizing<Vec<u8>>,
        /// What version 2 knows about it.
        metadata: Option<Metadata>,
        engine: Engine,
    },
    /// Nothing: it was deleted, if it has a version, or was never there.
    Nothing { version: Option<u64> },
}

impl KvSecret {
    pub(super) fn new(vault: Arc<Vault>, mount: &str, path: &str, source: SecretSource) -> Self {
        let path = format!("{mount}/{path}");
        Self {
            vault,
            mount: format!("{mount}/"),
            path,
            source,
            last: Mutex::default(),
            may_ask: AtomicBool::new(true),
        }
    }

    async fn current(&self, held: Option<Held<'_>>, limit: usize) -> Result<Answer, SecretError> {
        if let Some(held) = held
            && self
                .is_current(held)
                .await
                .map_err(|fault| self.failed(fault))?
        {
            return Ok(Answer::Unchanged);
        }
        let Found::Value {
            bytes,
            metadata,
            engine,
        } = self.read(None, limit).await?
        else {
            *self.last() = None;
            return Err(self.none("there is no such secret, or it was deleted"));
        };
        let fetched = match metadata {
            Some(metadata) => {
                let name = Held::told_apart(held, metadata.version.to_string(), &bytes);
                let fetched = versioned(bytes, name.clone(), &metadata);
                *self.last() = Some(Last {
                    name,
                    engine,
                    metadata,
                });
                fetched
            }
            // Version 1 has no versions: the content decides. Its name is made with a key that nobody has, so that it betrays nothing.
            None => {
                *self.last() = None;
                let version = to_hex(&self.vault.names.name(&bytes));
                Fetched {
                    bytes,
                    version,
                    created_at: None,
                    expires_at: None,
                    lease: None,
                }
            }
        };
        Ok(Answer::current(fetched, held))
    }

    async fn previous(&self, held: Option<Held<'_>>, limit: usize) -> Result<Answer, SecretError> {
        let none = || {
            self.none(
                "there is no version before the current one, or version 1 of the engine keeps none",
            )
        };
        let held = held.and_then(|held| held.number());
        let older: Vec<u64> = match self.history().await.map_err(|fault| self.failed(fault))? {
            Some(Versions {
                current_version,
                versions,
            }) => {
                let newest = held.map_or(current_version, |held| held.min(current_version));
                let numbers = versions
                    .iter()
                    .filter(|(_, state)| state.is_there())
                    .filter_map(|(version, _)| number(version));
                let mut older: Vec<u64> = numbers.filter(|version| *version < newest).collect();
                older.sort_unstable_by(|a, b| b.cmp(a));
                older
            }
            None => {
                let newest = match held {
                    Some(held) => held,
                    None => match self.read(None, limit).await? {
                        Found::Value {
                            metadata: Some(Metadata { version, .. }),
                            ..
                        }
                        | Found::Nothing {
                            version: Some(version),
                        } => version,
                        _ => return Err(none()),
                    },
                };
                (newest.saturating_sub(REACH).max(1)..newest)
                    .rev()
                    .collect()
            }
        };
        for version in older {
            if let Some(fetched) = self.version(version, limit).await? {
                return Ok(Answer::Value(fetched));
            }
        }
        Err(none())
    }

    /// A version, unless it was deleted or never was.
    async fn version(&self, version: u64, limit: usize) -> Result<Option<Fetched>, SecretError> {
        match self.read(Some(version), limit).await? {
            Found::Value {
                bytes,
                metadata: Some(metadata),
                ..
            } => Ok(Some(versioned(
                bytes,
                metadata.version.to_string(),
                &metadata,
            ))),
            _ => Ok(None),
        }
    }

    /// Whether what is held is the newest version still and nobody has deleted it. When in doubt, it is not: then the secret itself
    /// is read.
    async fn is_current(&self, held: Held<'_>) -> Result<bool, Fault> {
        let known = {
            let last = self.last();
            let known = last.as_ref().filter(|last| last.name == held.version);
            known.map(|last| {
                (
                    last.engine.clone(),
                    last.metadata.version,
                    last.metadata.created_time.clone(),
                )
            })
        };
        let Some((engine, version, created_time)) = known else {
            return Ok(false);
        };
        let Some(Versions {
            current_version,
            versions,
        }) = self.history_in(&engine).await?
        else {
            return Ok(false);
        };
        let state = versions.get(&version.to_string());
        let is_same =
            state.is_some_and(|state| state.created_time == created_time && state.is_there());
        Ok(current_version == version && is_same)
    }

    async fn history(&self) -> Result<Option<Versions>, Fault> {
        match self.vault.engine(&self.path).await? {
            Some(engine) => self.history_in(&engine).await,
            None => Ok(None),
        }
    }

    /// All that is known about the versions; nothing if there are none or we may not ask.
    async fn history_in(&self, engine: &Engine) -> Result<Option<Versions>, Fault> {
        let Some(inside) = engine.inside(&self.path).filter(|_| engine.is_versioned) else {
            return Ok(None);
        };
        if !self.may_ask.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let path = format!("{}metadata/{inside}", engine.mount);
        let answer = self.vault.call(Method::GET, &path, None, AROUND).await?;
        match answer.status {
            StatusCode::FORBIDDEN => {
                // A right that nobody needs; asking for it every time would only cost requests.
                self.may_ask.store(false, Ordering::Relaxed);
                Ok(None)
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Ok(answer
                .ok()?
                .parse::<History>()
                .ok()
                .map(|history| history.data)),
        }
    }

    /// Reads a version, or the newest.
    async fn read(&self, version: Option<u64>, limit: usize) -> Result<Found, SecretError> {
        let engine = self
            .vault
            .engine(&self.path)
            .await
            .map_err(|fault| self.failed(fault))?;
        let Some(engine) = engine else {
            return self.read_anyhow(version, limit).await;
        };
        let found = self.read_in(&engine, version, limit).await?;
        if !matches!(found, Found::Nothing { version: None }) {
            return Ok(found);
        }
        // So it looks, too, when the engine is not what it was.
        self.vault.unlearn(&engine).await;
        match self
            .vault
            .engine(&self.path)
            .await
            .map_err(|fault| self.failed(fault))?
        {
            Some(other) if other != engine => self.read_in(&other, version, limit).await,
            _ => Ok(found),
        }
    }

    /// Where we may not ask what engine this is, reading tells.
    async fn read_anyhow(&self, version: Option<u64>, limit: usize) -> Result<Found, SecretError> {
        let engine = |is_versioned| Engine {
            mount: self.mount.clone(),
            is_versioned,
        };
        let first = self.read_in(&engine(true), version, limit).await;
        if let Ok(Found::Value { engine, .. }) = &first {
            self.vault.learn(engine).await;
            return first;
        }
        if let Ok(Found::Nothing { version: Some(_) }) = &first {
            return first;
        }
        match self.read_in(&engine(false), version, limit).await {
            Ok(found @ Found::Value { .. }) => {
                self.vault.learn(&engine(false)).await;
                Ok(found)
            }
            _ => first,
        }
    }

    async fn read_in(
        &self,
        engine: &Engine,
        version: Option<u64>,
        limit: usize,
    ) -> Result<Found, SecretError> {
        let Some(inside) = engine.inside(&self.path) else {
            return Ok(Found::Nothing { version: None });
        };
        let path = if engine.is_versioned {
            format!("{}data/{inside}", engine.mount)
        } else {
            self.path.clone()
        };
        let asked = match version {
            None => path.clone(),
            Some(version) if engine.is_versioned => format!("{path}?version={version}"),
            Some(_) => return Ok(Found::Nothing { version: None }),
        };
        let answer = self
            .vault
            .call(Method::GET, &asked, None, limit.saturating_add(AROUND))
            .await;
        let answer = answer.map_err(|fault| self.failed(fault))?;
        let (value, metadata) = match answer.status {
            StatusCode::OK if engine.is_versioned => {
                let Versioned {
                    data: Version { data, metadata },
                } = self.parse(&answer)?;
                (data, Some(metadata))
            }
            StatusCode::OK => (self.parse::<Plain<'_>>(&answer)?.data, None),
            // Deleted versions answer so, too, and say which they are.
            StatusCode::NOT_FOUND => {
                let versioned = serde_json::from_slice::<Versioned<'_>>(&answer.body)
                    .ok()
                    .filter(|_| engine.is_versioned);
                return Ok(Found::Nothing {
                    version: versioned.map(|versioned| versioned.data.metadata.version),
                });
            }
            _ => return Err(self.failed(answer.fault_of(&path, "read"))),
        };
        let Some(value) = value else {
            return Ok(Found::Nothing {
                version: metadata.map(|metadata| metadata.version),
            });
        };
        let bytes =
            value_text(value, limit).ok_or_else(|| SecretError::too_long(&self.source, limit))?;
        Ok(Found::Value {
            bytes,
            metadata,
            engine: engine.clone(),
        })
    }

    fn parse<'a, T: Deserialize<'a>>(&self, answer: &'a Response) -> Result<T, SecretError> {
        answer.parse_borrowed().map_err(|fault| self.failed(fault))
    }

    fn last(&self) -> MutexGuard<'_, Option<Last>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn none(&self, what: &str) -> SecretError {
        SecretError::not_found(&self.source, what)
    }

    fn failed(&self, fault: Fault) -> SecretError {
        fault.of_secret(&self.source)
    }
}

fn versioned(bytes: Zeroizing<Vec<u8>>, version: String, metadata: &Metadata) -> Fetched {
    let (created_at, expires_at) = (time(&metadata.created_time), time(&metadata.deletion_time));
    Fetched {
        bytes,
        version,
        created_at,
        expires_at,
        lease: None,
    }
}

impl SecretProvider for KvSecret {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        held: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        Box::pin(async move {
            let none = || self.none("there is no such version, or it was deleted");
            match which {
                Which::Current => self.current(held, limit).await,
                Which::Previous => self.previous(held, limit).await,
                Which::Pending => {
                    Err(self.none("Vault introduces no version before it is the current one"))
                }
                Which::Version(version) => {
                    let version = number(version).ok_or_else(none)?;
                    self.version(version, limit)
                        .await?
                        .map(Answer::Value)
                        .ok_or_else(none)
                }
            }
        })
    }
}
