//! Reading secrets from either version of the key-value engine.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::{MAX_RESPONSE, Response, Vault, engine::Engine, static_role::StaticCredentials};
use crate::{
    backend::{BackendError, error::Failure, secret::value_text},
    model::SecretSource,
};

/// The limit for a response without its value: metadata, and enough that a value over the limit is
/// recognized as such. No storage of Vault's accepts a value of this size.
pub(super) const MAX_OVERHEAD: usize = 4 * MAX_RESPONSE;

/// Reads the content of one path.
pub(super) struct KvReader {
    pub(super) vault: Arc<Vault>,
    mount: String,
    /// The mount and the path within it.
    pub(super) path: String,
    pub(super) source: SecretSource,
}

/// A response of version 2.
#[derive(Deserialize)]
struct VersionedResponse<'a> {
    #[serde(borrow)]
    data: SecretVersion<'a>,
}

#[derive(Deserialize)]
struct SecretVersion<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    metadata: Metadata,
}

/// A response of version 1.
#[derive(Deserialize)]
struct PlainResponse<'a> {
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) version: u64,
    /// A storage that was restored to an older state, or a secret that was created again, reuses
    /// version numbers, so the number alone does not identify a version.
    pub(super) created_time: String,
    #[serde(default)]
    pub(super) deletion_time: String,
}

/// The content of a path.
pub(super) enum Content {
    Value {
        bytes: Zeroizing<Vec<u8>>,
        /// Only in version 2.
        metadata: Option<Metadata>,
        engine: Engine,
    },
    /// The credentials of a static role, in an engine of another kind.
    Static(StaticCredentials),
    /// No value: deleted if there is a version, or else never written.
    Nothing { version: Option<u64> },
}

impl KvReader {
    pub(super) fn new(vault: Arc<Vault>, mount: &str, path: &str, source: SecretSource) -> Self {
        Self {
            vault,
            mount: format!("{mount}/"),
            path: format!("{mount}/{path}"),
            source,
        }
    }

    /// Reads a version, or the newest one.
    pub(super) async fn read(
        &self,
        version: Option<u64>,
        limit: usize,
    ) -> Result<Content, BackendError> {
        let Some(engine) = self.engine().await? else {
            return self.read_from_unknown_engine(version, limit).await;
        };
        let content = self.read_in(&engine, version, limit).await?;
        if !matches!(content, Content::Nothing { version: None }) {
            return Ok(content);
        }
        // Also the response if the engine has changed since it was cached.
        self.vault.evict_engine(&engine).await;
        match self.engine().await? {
            Some(other) if other != engine => self.read_in(&other, version, limit).await,
            _ => Ok(content),
        }
    }

    async fn engine(&self) -> Result<Option<Engine>, BackendError> {
        self.vault
            .engine(&self.path)
            .await
            .map_err(|failure| self.error(failure))
    }

    /// If the policy denies looking up the engine, its version is detected by reading.
    async fn read_from_unknown_engine(
        &self,
        version: Option<u64>,
        limit: usize,
    ) -> Result<Content, BackendError> {
        let engine = |is_versioned| Engine {
            mount: self.mount.clone(),
            is_versioned,
        };
        let versioned = self.read_in(&engine(true), version, limit).await;
        if let Ok(Content::Value { engine, .. }) = &versioned {
            self.vault.cache_engine(engine).await;
            return versioned;
        }
        if let Ok(Content::Nothing { version: Some(_) }) = &versioned {
            return versioned;
        }
        match self.read_in(&engine(false), version, limit).await {
            Ok(content @ (Content::Value { .. } | Content::Static(_))) => {
                self.vault.cache_engine(&engine(false)).await;
                Ok(content)
            }
            _ => versioned,
        }
    }

    async fn read_in(
        &self,
        engine: &Engine,
        version: Option<u64>,
        limit: usize,
    ) -> Result<Content, BackendError> {
        let Some(relative) = engine.relative(&self.path) else {
            return Ok(Content::Nothing { version: None });
        };
        let path = if engine.is_versioned {
            format!("{}data/{relative}", engine.mount)
        } else {
            self.path.clone()
        };
        let path_and_query = match version {
            None => path.clone(),
            Some(version) if engine.is_versioned => format!("{path}?version={version}"),
            Some(_) => return Ok(Content::Nothing { version: None }),
        };
        let limit_with_overhead = limit.saturating_add(MAX_OVERHEAD);
        let response = self
            .vault
            .call(Method::GET, &path_and_query, None, limit_with_overhead)
            .await
            .map_err(|failure| self.error(failure))?;
        let (value, metadata) = match response.status {
            StatusCode::OK if engine.is_versioned => {
                let SecretVersion { data, metadata } =
                    self.parse::<VersionedResponse<'_>>(&response)?.data;
                (data, Some(metadata))
            }
            StatusCode::OK => (self.parse::<PlainResponse<'_>>(&response)?.data, None),
            // Also the response for a deleted version, which contains its number.
            StatusCode::NOT_FOUND => {
                let deleted = serde_json::from_slice::<VersionedResponse<'_>>(&response.body)
                    .ok()
                    .filter(|_| engine.is_versioned);
                return Ok(Content::Nothing {
                    version: deleted.map(|response| response.data.metadata.version),
                });
            }
            _ => return Err(self.error(response.failure_at(&path, "read"))),
        };
        let Some(value) = value else {
            return Ok(Content::Nothing {
                version: metadata.map(|metadata| metadata.version),
            });
        };
        let too_large = || BackendError::secret_too_large(&self.source, limit);
        if metadata.is_none()
            && let Some(credentials) = StaticCredentials::of(value)
        {
            if credentials.len() > limit {
                return Err(too_large());
            }
            return Ok(Content::Static(credentials));
        }
        let bytes = value_text(value, limit).ok_or_else(too_large)?;
        Ok(Content::Value {
            bytes,
            metadata,
            engine: engine.clone(),
        })
    }

    fn parse<'a, T: Deserialize<'a>>(&self, response: &'a Response) -> Result<T, BackendError> {
        response
            .parse_borrowed()
            .map_err(|failure| self.error(failure))
    }

    /// What to try if there is nothing at a path that was copied from a request.
    pub(super) fn hint(&self) -> String {
        let copied = ["data", "metadata"].into_iter().find_map(|part| {
            let (mount, rest) = self.path.split_once(&format!("/{part}/"))?;
            Some((part, mount, rest))
        });
        copied.map_or_else(String::new, |(part, mount, rest)| {
            format!(
                "; `{part}/` is part of the request URL and is added automatically: is it \
                 vault-kv:{mount}/{rest}?"
            )
        })
    }

    pub(super) fn error(&self, failure: Failure) -> BackendError {
        failure.on(&self.source)
    }
}
