//! A connection pool whose certificates are reloaded when their files change, so that a renewed
//! certificate needs no restart.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::{sync::Mutex, time::Instant};
use tracing::{info, warn};

use super::connector::{Connector, Route};
use crate::{
    backend::client_tls::{Identity, client_config},
    files::BlockingPool,
};

pub(super) type Pool = Client<HttpsConnector<Connector>, Full<Bytes>>;

/// The files are checked for changes at most this often.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A pool that is replaced when the files of its identity change.
pub(super) struct ReloadingPool {
    identity: Arc<Identity>,
    route: Route,
    blocking: BlockingPool,
    current: Mutex<Option<Current>>,
}

struct Current {
    pool: Pool,
    files: Vec<FileStamp>,
    checked: Instant,
}

/// Inode, modification time (seconds, nanoseconds) and length; `None` if the file is missing.
type FileStamp = Option<(u64, i64, i64, u64)>;

impl ReloadingPool {
    pub(super) fn new(identity: Identity, route: Route) -> Self {
        Self {
            identity: Arc::new(identity),
            route,
            blocking: BlockingPool::new(1),
            current: Mutex::default(),
        }
    }

    /// Returns the pool for the current files. Changed files that are invalid keep the previous
    /// pool: a certificate and its key are often written one after the other.
    ///
    /// # Errors
    /// The files are invalid and there is no previous pool: a sentence that names the file.
    pub(super) async fn get(&self) -> Result<Pool, String> {
        let mut slot = self.current.lock().await;
        let previous = match &*slot {
            Some(current)
                if !self.identity.has_files() || current.checked.elapsed() < CHECK_INTERVAL =>
            {
                return Ok(current.pool.clone());
            }
            Some(current) => Some(current.files.clone()),
            None => None,
        };
        let (identity, route) = (Arc::clone(&self.identity), self.route.clone());
        let (files, pool) = self
            .blocking
            .run(move || identity.reload(previous.as_deref(), route))
            .await;
        let checked = Instant::now();
        let pool = match (pool, &mut *slot) {
            (None, Some(current)) => {
                current.checked = checked;
                return Ok(current.pool.clone());
            }
            (Some(Err(reason)), Some(current)) => {
                warn!("the changed certificates are invalid; keeping the previous ones: {reason}");
                (current.files, current.checked) = (files, checked);
                return Ok(current.pool.clone());
            }
            (Some(Ok(pool)), Some(_)) => {
                info!(files = %self.identity, "certificates reloaded");
                pool
            }
            (Some(result), None) => result?,
            (None, None) => unreachable!("without a previous pool the files are always read"),
        };
        *slot = Some(Current {
            pool: pool.clone(),
            files,
            checked,
        });
        Ok(pool)
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

    fn has_files(&self) -> bool {
        self.files().next().is_some()
    }

    /// Returns the stamps of the files, and a pool unless the stamps are still `previous`.
    fn reload(
        &self,
        previous: Option<&[FileStamp]>,
        route: Route,
    ) -> (Vec<FileStamp>, Option<Result<Pool, String>>) {
        // Taken before reading, so that a change in between is noticed by the next check.
        let stamps: Vec<FileStamp> = self.files().map(stamp).collect();
        let pool = (previous != Some(&stamps[..])).then(|| self.connect(route));
        (stamps, pool)
    }

    fn connect(&self, route: Route) -> Result<Pool, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(client_config(self)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector::new(route));
        // Without a timer, idle connections would outlive the servers' usual limits.
        Ok(Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .build(connector))
    }
}

fn stamp(file: &Path) -> FileStamp {
    let metadata = fs::metadata(file).ok()?;
    Some((
        metadata.ino(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.size(),
    ))
}
