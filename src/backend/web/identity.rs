//! Whom to trust and who we are, as files say. Others rewrite them while we run: a certificate that is renewed must not need a restart.

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
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::{sync::Mutex, time::Instant};
use tracing::{info, warn};

use super::Pool;
use crate::backend::lane::Lane;

/// How often the files are looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Whom to trust, and who we are.
#[derive(Debug, Clone, Default)]
pub(in crate::backend) struct Identity {
    /// Certificates (PEM) of the authorities that are trusted, instead of the system's.
    pub(in crate::backend) ca_file: Option<PathBuf>,
    /// Our certificate chain and its key (PEM).
    pub(in crate::backend) client: Option<(PathBuf, PathBuf)>,
}

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
        Self { identity: Arc::new(identity), lane: Lane::new(1), current: Mutex::default() }
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
        let seen = self.lane.run(move || identity.look(former.as_deref())).await;
        match (seen, &mut *current) {
            ((_, None), Some(current)) => current.looked = Instant::now(),
            ((files, Some(Ok(pool))), slot) => {
                if slot.is_some() {
                    info!(files = %self.identity, "certificates were read again");
                }
                *slot = Some(Current { pool, files, looked: Instant::now() });
            }
            ((files, Some(Err(reason))), Some(current)) => {
                warn!("certificates that changed are not taken up, the former ones stay: {reason}");
                (current.files, current.looked) = (files, Instant::now());
            }
            ((_, Some(Err(reason))), None) => return Err(reason),
            ((_, None), None) => unreachable!("without former files there is something new"),
        }
        current.as_ref().map(|current| current.pool.clone()).ok_or_else(|| "no certificates".into())
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files: Vec<String> = self.files().map(|file| file.display().to_string()).collect();
        f.write_str(&files.join(", "))
    }
}

impl Identity {
    fn files(&self) -> impl Iterator<Item = &Path> {
        let pair = self.client.iter().flat_map(|(certificate, key)| [certificate, key]);
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
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS: {error}"))?
            .with_root_certificates(self.roots()?);
        let config = match &self.client {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = certificates(certificate)?;
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| format!("{}: {error}", key.display()))?;
                let pair = || format!("{} and {}", certificate.display(), key.display());
                builder.with_client_auth_cert(chain, private).map_err(|error| format!("{}: {error}", pair()))?
            }
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
        // Idle connections end before the servers' usual limits do.
        Ok(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector))
    }

    fn roots(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match &self.ca_file {
            Some(file) => {
                for certificate in certificates(file)? {
                    roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
                }
            }
            None => {
                // A machine without any still talks to loopback in the clear; TLS then fails with an unknown issuer.
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(roots)
    }
}

fn stamp(file: &Path) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.size()))
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = fs::read(file).map_err(|error| format!("can't read {}: {error}", file.display()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(format!("{}: there is no certificate in this file", file.display())),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}
