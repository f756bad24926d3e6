//! The key-value engine that contains a secret, detected as Vault's own CLI does, and cached.

use std::{collections::BTreeMap, sync::Arc};

use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{MAX_RESPONSE, Vault};
use crate::backend::error::Failure;

/// A key-value engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    /// The mount path, with a trailing slash.
    pub(super) mount: String,
    /// Whether this is version 2 of the engine. Any other engine is read like version 1: the
    /// response as it is.
    pub(super) is_versioned: bool,
}

/// The engines seen so far. Locked during a lookup, so that concurrent requests share it.
#[derive(Default)]
pub(super) struct Engines(Mutex<Vec<Engine>>);

#[derive(Deserialize)]
struct MountResponse {
    data: Mount,
}

#[derive(Deserialize)]
struct Mount {
    path: String,
    options: Option<BTreeMap<String, String>>,
}

impl Engine {
    /// Returns the secret's path within the engine.
    pub(super) fn relative<'s>(&self, secret: &'s str) -> Option<&'s str> {
        secret.strip_prefix(&self.mount)
    }
}

impl Vault {
    /// Returns the engine that contains a secret, or `None` if the lookup is denied. Engines are
    /// never nested.
    pub(super) async fn engine(self: &Arc<Self>, secret: &str) -> Result<Option<Engine>, Failure> {
        let mut engines = self.engines.0.lock().await;
        if let Some(engine) = engines
            .iter()
            .find(|engine| engine.relative(secret).is_some())
        {
            return Ok(Some(engine.clone()));
        }
        // Any permission within the mount permits this request.
        let response = self
            .call(
                Method::GET,
                &format!("sys/internal/ui/mounts/{secret}"),
                None,
                MAX_RESPONSE,
            )
            .await?;
        // NOT_FOUND: the server, or a proxy in front of it, does not support the request.
        if matches!(
            response.status,
            StatusCode::FORBIDDEN | StatusCode::NOT_FOUND
        ) {
            return Ok(None);
        }
        let Mount { path, options } = response.ok()?.parse::<MountResponse>()?.data;
        let is_versioned = options
            .is_some_and(|options| options.get("version").is_some_and(|version| version == "2"));
        let engine = Engine {
            mount: path,
            is_versioned,
        };
        if engine.relative(secret).is_none() {
            return Ok(None);
        }
        engines.push(engine.clone());
        Ok(Some(engine))
    }

    /// Caches an engine whose version was detected by reading from it.
    pub(super) async fn cache_engine(&self, engine: &Engine) {
        let mut engines = self.engines.0.lock().await;
        engines.retain(|known| known.mount != engine.mount);
        engines.push(engine.clone());
    }

    /// Drops an engine from the cache, because it may have been replaced or upgraded.
    pub(super) async fn evict_engine(&self, engine: &Engine) {
        self.engines.0.lock().await.retain(|known| known != engine);
    }
}
