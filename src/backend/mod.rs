//! The outside systems that hold KEKs, manifests and secrets: one client per system, behind the
//! traits that it serves.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
#[cfg(any(feature = "https-client", feature = "tls"))]
mod client_tls;
mod error;
mod file;
#[cfg(feature = "https-client")]
mod http_client;
#[cfg(feature = "https")]
mod https;
mod kek;
mod last_error;
#[cfg(any(feature = "https-client", feature = "tls"))]
mod listed_certificate;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(any(feature = "aws", feature = "https-client"))]
mod plain_http;
#[cfg(feature = "https-client")]
mod poster;
mod secret;
#[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
mod server_clock;
mod store;
#[cfg(feature = "https-client")]
mod tls_errors;
#[cfg(feature = "vault")]
mod vault;

use std::sync::Arc;

use crate::config;
use crate::model::{KekUri, Location, Malformed, SecretSource};

#[cfg(any(feature = "https-client", feature = "tls"))]
pub use client_tls::{Identity, client_config, trusted_roots};
pub use error::{BackendError, ErrorKind};
pub use file::{CacheFile, FileStore};
pub use kek::Kek;
pub use secret::{FetchOutcome, FetchedValue, HeldValue, Lease, SecretProvider, VersionSelector};
pub use store::{ManifestStore, WatchedRead};

pub(crate) use last_error::{TimedOut, within};
#[cfg(feature = "https-client")]
pub(crate) use poster::Poster;

/// The outside systems that hold KEKs, manifests and secrets.
pub trait Backends: Send + Sync {
    /// Returns the client for a KEK. Contacts nothing.
    ///
    /// # Errors
    /// Fails if this build has no such backend or the rest of the URI is malformed.
    fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, BackendError>;

    /// Returns the client for a manifest's location. Contacts nothing.
    ///
    /// # Errors
    /// Fails if this build has no such backend or its settings are invalid.
    fn store(&self, location: &Location) -> Result<Arc<dyn ManifestStore>, BackendError>;

    /// Returns the client for a secret's source. Contacts nothing.
    ///
    /// # Errors
    /// Fails if this build has no such backend or its settings are invalid.
    fn secret(&self, source: &SecretSource) -> Result<Arc<dyn SecretProvider>, BackendError>;
}

/// Returns the backends compiled into this build, with these settings. Contacts nothing.
pub fn configured(settings: &config::Backends) -> Arc<dyn Backends> {
    Arc::new(ConfiguredBackends::new(settings))
}

/// The schemes of KEKs, and whether this build supports them.
const KEK_SCHEMES: [(&str, bool); 5] = [
    ("aws-kms", cfg!(feature = "aws")),
    ("azure-kv", cfg!(feature = "azure")),
    ("local", cfg!(feature = "local")),
    ("pkcs11", cfg!(feature = "pkcs11")),
    ("vault-transit", cfg!(feature = "vault")),
];

/// The backends compiled into this build. Each has one login, shared by all its users.
struct ConfiguredBackends {
    #[cfg(feature = "local")]
    allow_local_keks: bool,
    #[cfg(feature = "local")]
    local_passphrase: Option<Arc<local::PassphraseFile>>,
    #[cfg(feature = "aws")]
    aws: Arc<aws::Client>,
    #[cfg(feature = "azure")]
    azure: Arc<azure::Client>,
    #[cfg(feature = "pkcs11")]
    pkcs11: Arc<pkcs11::Library>,
    #[cfg(feature = "vault")]
    vault: vault::Client,
    #[cfg(feature = "https")]
    https: https::Client,
}

impl ConfiguredBackends {
    #[allow(unused_variables, reason = "a build may have no backend with settings")]
    fn new(settings: &config::Backends) -> Self {
        Self {
            #[cfg(feature = "local")]
            allow_local_keks: settings.local_keks,
            #[cfg(feature = "local")]
            local_passphrase: settings
                .local
                .passphrase_file
                .as_ref()
                .map(|file| Arc::new(local::PassphraseFile::new(file))),
            #[cfg(feature = "aws")]
            aws: aws::Client::new(settings),
            #[cfg(feature = "azure")]
            azure: azure::Client::new(settings),
            #[cfg(feature = "pkcs11")]
            pkcs11: pkcs11::Library::new(&settings.pkcs11),
            #[cfg(feature = "vault")]
            vault: vault::Client::new(settings),
            #[cfg(feature = "https")]
            https: https::Client::new(settings),
        }
    }
}

impl Backends for ConfiguredBackends {
    fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, BackendError> {
        match uri.scheme() {
            #[cfg(feature = "aws")]
            "aws-kms" => self.aws.kek(uri),
            #[cfg(feature = "local")]
            "local" => {
                if !self.allow_local_keks {
                    tracing::warn!(
                        kek = %uri,
                        "a KEK in a local file is for development: anyone who can read the file \
                         can unwrap every key; to silence this warning, set \
                         backends.local_keks = true"
                    );
                }
                let passphrase = self.local_passphrase.clone();
                Ok(Arc::new(
                    local::LocalKek::new(uri.rest()).with_passphrase(passphrase),
                ))
            }
            #[cfg(feature = "azure")]
            "azure-kv" => self.azure.kek(uri),
            #[cfg(feature = "pkcs11")]
            "pkcs11" => self.pkcs11.kek(uri),
            #[cfg(feature = "vault")]
            "vault-transit" => self.vault.kek(uri),
            scheme => {
                let supported: Vec<&str> = KEK_SCHEMES
                    .into_iter()
                    .filter_map(|(name, is_supported)| is_supported.then_some(name))
                    .collect();
                let message = format!(
                    "this build has no backend `{scheme}`; it has: {}",
                    supported.join(", ")
                );
                Err(BackendError::new(ErrorKind::Misconfigured, uri, message))
            }
        }
    }

    fn store(&self, location: &Location) -> Result<Arc<dyn ManifestStore>, BackendError> {
        match location {
            Location::File(path) => Ok(Arc::new(FileStore::new(path))),
            #[cfg(feature = "aws")]
            Location::AwsSm(name) => Ok(self.aws.manifest_secret(location, name)),
            #[cfg(feature = "aws")]
            Location::S3 { bucket, key } => Ok(self.aws.object(location, bucket, key)),
            #[cfg(feature = "vault")]
            Location::VaultKv { mount, path } => self.vault.store(location, mount, path),
            #[cfg(feature = "https")]
            Location::Web(url) => self.https.store(location, url),
            #[allow(unreachable_patterns, reason = "for builds without some backends")]
            location => {
                let message = "this build has no backend for this kind of location";
                Err(BackendError::new(
                    ErrorKind::Misconfigured,
                    location,
                    message,
                ))
            }
        }
    }

    fn secret(&self, source: &SecretSource) -> Result<Arc<dyn SecretProvider>, BackendError> {
        match source {
            SecretSource::File(path) => Ok(Arc::new(file::FileSecret::new(path))),
            #[cfg(feature = "vault")]
            SecretSource::VaultKv { mount, path } => self.vault.secret(source, mount, path),
            #[cfg(feature = "vault")]
            SecretSource::VaultLease(path) => self.vault.leased(source, path),
            #[cfg(feature = "aws")]
            SecretSource::AwsSm(name) => Ok(self.aws.secret(source, name)),
            #[cfg(feature = "aws")]
            SecretSource::AwsSsm(name) => Ok(self.aws.parameter(source, name)),
            #[cfg(feature = "azure")]
            SecretSource::AzureKv { vault, name } => Ok(self.azure.secret(source, vault, name)),
            #[allow(unreachable_patterns, reason = "for builds without some backends")]
            source => {
                let message = "this build has no backend for this kind of source";
                Err(BackendError::new(ErrorKind::Misconfigured, source, message))
            }
        }
    }
}

/// Returns the KEK's URI with an absolute path, so that it has the same meaning in every folder.
///
/// # Errors
/// Fails if the working folder was removed.
pub fn absolute_kek(uri: &KekUri) -> Result<KekUri, BackendError> {
    if uri.scheme() != "local" {
        return Ok(uri.clone());
    }
    let failed = |reason: String| BackendError::new(ErrorKind::Misconfigured, uri, reason);
    let path = std::path::absolute(uri.rest()).map_err(|error| failed(error.to_string()))?;
    format!("local:{}", path.display())
        .parse()
        .map_err(|error: Malformed| failed(error.to_string()))
}
