//! Which engine a secret is in, found out as Vault's own command does it, and remembered.

use std::{collections::BTreeMap, sync::Arc};

use hyper::{Method, StatusCode};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{ANSWER, Fault, Vault};

/// A key-value engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Engine {
    /// Where it is mounted, with the slash at its end.
    pub(super) mount: String,
    /// Whether it keeps versions: version 2 of the engine. What is neither version is read as version 1, which means: as it is.
    pub(super) is_versioned: bool,
}

/// Those that were met. The lock is held while one caller asks, so that many secrets of one engine cost one question.
#[derive(Default)]
pub(super) struct Engines(Mutex<Vec<Engine>>);

#[derive(Deserialize)]
struct Answered {
    data: Mount,
}

#[derive(Deserialize)]
struct Mount {
    path: String,
    options: Option<BTreeMap<String, String>>,
}

impl Engine {
    /// What of a secret's path is within the engine.
    pub(super) fn inside<'s>(&self, secret: &'s str) -> Option<&'s str> {
        secret.strip_prefix(&self.mount)
    }
}

impl Vault {
    /// The engine that a secret is in; none if we may not ask. No engine is mounted within another.
    pub(super) async fn engine(self: &Arc<Self>, secret: &str) -> Result<Option<Engine>, Fault> {
        let mut engines = self.engines.0.lock().await;
        if let Some(engine) = engines
            .iter()
            .find(|engine| engine.inside(secret).is_some())
        {
            return Ok(Some(engine.clone()));
        }
        // Whoever has any right in the mount may ask this.
        let answer = self
            .call(
                Method::GET,
                &format!("sys/internal/ui/mounts/{secret}"),
                None,
                ANSWER,
            )
            .await?;
        // A server, or a proxy before it, that doesn't know the question.
        if matches!(answer.status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND) {
            return Ok(None);
        }
        let Answered {
            data: Mount { path, options },
        } = answer.ok()?.parse()?;
        let is_versioned = options
            .is_some_and(|options| options.get("version").is_some_and(|version| version == "2"));
        let engine = Engine {
            mount: path,
            is_versioned,
        };
        if engine.inside(secret).is_none() {
            return Ok(None);
        }
        engines.push(engine.clone());
        Ok(Some(engine))
    }

    /// Remembers what reading showed.
    pub(super) async fn learn(&self, engine: &Engine) {
        let mut engines = self.engines.0.lock().await;
        engines.retain(|known| known.mount != engine.mount);
        engines.push(engine.clone());
    }

    /// Forgets an engine that may have been replaced or made another version.
    pub(super) async fn unlearn(&self, engine: &Engine) {
        self.engines.0.lock().await.retain(|known| known != engine);
    }
}
