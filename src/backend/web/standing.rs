//! Connections under an identity that files say. Others rewrite them while we run: a certificate that is renewed must not need a restart.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{sync::Mutex, time::Instant};
use tracing::{info, warn};

use super::Pool;
use crate::backend::{
    client_tls::{Identity, client_config},
    lane::Lane,
};

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// An identity, and the connections that were made under it. A changed one gets connections of its own.
pub(super) struct Standing {
    identity: Arc<Identity>,
    lane: Lane,
    current: Mutex<Option<Current>>,
}

struct Current {
    pool: Pool,
    files: Vec<Stamp>,
    looked: Instant,
}

/// What changes when a file is written or another one takes its place; `None` if there is none.
type Stamp = Option<(u64, i64, i64, u64)>;

impl Standing {
    pub(super) fn new(identity: Identity) -> Self {
        Self {
            identity: Arc::new(identity),
            lane: Lane::new(1),
            current: Mutex::default(),
        }
    }

    /// The connections under the identity as its files stand now. One that changed and is wrong is not taken: a pair is often written
    /// one file after the other.
    ///
    /// # Errors
    /// What is wrong with a file, named, if there was no good one yet.
    pub(super) async fn pool(&self) -> Result<Pool, String> {
        let mut current = self.current.lock().await;
        if let Some(current) = &*current
            && (self.identity.files().next().is_none() || current.looked.elapsed() < LOOK_EVERY)
        {
            return Ok(current.pool.clone());
        }
        let former = current.as_ref().map(|current| current.files.clone());
        let identity = Arc::clone(&self.identity);
        let seen = self
            .lane
            .run(move || identity.look(former.as_deref()))
            .await;
        match (seen, &mut *current) {
            ((_, None), Some(current)) => current.looked = Instant::now(),
            ((files, Some(Ok(pool))), slot) => {
                if slot.is_some() {
                    info!(files = %self.identity, "certificates were read again");
                }
                *slot = Some(Current {
                    pool,
                    files,
                    looked: Instant::now(),
                });
            }
            ((files, Some(Err(reason))), Some(current)) => {
                warn!("certificates that changed are not taken up, the former ones stay: {reason}");
                (current.files, current.looked) = (files, Instant::now());
            }
            ((_, Some(Err(reason))), None) => return Err(reason),
            ((_, None), None) => unreachable!("without former files there is something new"),
        }
        current
            .as_ref()
            .map(|current| current.pool.clone())
            .ok_or_else(|| "no certificates".into())
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<String> = self
            .files()
            .map(|file| file.display().to_string())
            .collect();
        f.write_str(&files.join(", "))
    }
}

impl Identity {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = self
            .client
            .iter()
            .flat_map(|(certificate, key)| [certificate, key]);
        self.ca_file.iter().chain(pair).map(PathBuf::as_path)
    }

    /// The files' stamps and, unless they are the `former` ones, what the files give.
    fn look(&self, former: Option<&[Stamp]>) -> (Vec<Stamp>, Option<Result<Pool, String>>) {
        // Before reading: a change in between is seen the next time.
        let stamps: Vec<Stamp> = self.files().map(stamp).collect();
        let fresh = (former != Some(&stamps[..])).then(|| self.connect());
        (stamps, fresh)
    }

    fn connect(&self) -> Result<Pool, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(self)?)
            .https_or_http()
            .enable_http1()
            .build();
        // Idle connections end before the servers' usual limits do.
        Ok(Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector))
    }
}

fn stamp(file: &Path) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.size(),
    ))
}
