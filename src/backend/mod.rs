//! The outside systems that hold KEKs and manifests: one room for each, behind the traits that it serves.

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
#[cfg(any(feature = "https-client", feature = "tls"))]
mod client_tls;
#[cfg(any(feature = "aws", feature = "azure", feature = "vault"))]
mod fault;
mod file;
mod heard;
#[cfg(feature = "https")]
mod https;
mod kek;
mod lane;
#[cfg(feature = "local")]
pub mod local;
#[cfg(feature = "pkcs11")]
mod pkcs11;
#[cfg(any(feature = "aws", feature = "https-client"))]
mod plain_http;
mod secret;
mod store;
#[cfg(feature = "vault")]
mod vault;
#[cfg(feature = "https-client")]
mod web;

use std::sync::Arc;

use crate::config;
use crate::model::{KekUri, Location, Malformed, SecretSource};

#[cfg(any(feature = "https-client", feature = "tls"))]
pub use client_tls::{Identity, client_config, trusted_roots};
pub use file::{FileStore, LocalCopy};
pub use kek::{Kek, KekError, KekFault};
pub use secret::{Answer, Fetched, Held, Lease, SecretError, SecretFault, SecretProvider, Which};
pub use store::{Changed, ManifestStore, StoreError, WatchGuard, Watched};

pub(crate) use heard::{Late, within};
pub(crate) use lane::aside;

/// The outside systems that hold KEKs, manifests and secrets.
pub trait Backends: Send + Sync {
    /// Returns the client for a KEK. Contacts nothing.
    ///
    /// # Errors
    /// Fails if this build has no such backend or the rest of the URI is malformed.
    fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError>;

    /// Returns the client for a manifest's location. Contacts nothing.
    ///
    /// # Errors
    /// Fails if this build has no such backend or its settings are invalid.
    fn store(&self, location: &Location) -> Result<Arc<dyn ManifestStore>, StoreError>;

    /// Returns the client for a secret's source. Contacts nothing.
    ///
    /// # Errors
    /// Fails if this build has no such backend or its settings are invalid.
    fn secret(&self, source: &SecretSource) -> Result<Arc<dyn SecretProvider>, SecretError>;
}

/// Returns the backends compiled into this build, with these settings. Contacts nothing.
pub fn configured(settings: &config::Backends) -> Arc<dyn Backends> {
    Arc::new(ConfiguredBackends::new(settings))
}

/// The backends compiled into this build. Each has one login, shared by all its clients.
struct ConfiguredBackends {
    #[cfg(feature = "local")]
    are_local_keks_meant: bool,
    #[cfg(feature = "local")]
    local_passphrase: Option<Arc<local::PassphraseFile>>,
    #[cfg(feature = "aws")]
    aws: Arc<aws::Room>,
    #[cfg(feature = "azure")]
    azure: Arc<azure::Room>,
    #[cfg(feature = "pkcs11")]
    pkcs11: Arc<pkcs11::Library>,
    #[cfg(feature = "vault")]
    vault: vault::Room,
    #[cfg(feature = "https")]
    https: https::Room,
}

impl ConfiguredBackends {
    #[allow(unused_variables, reason = "a build may have no outside system")]
    fn new(settings: &config::Backends) -> Self {
        Self {
            #[cfg(feature = "local")]
            are_local_keks_meant: settings.local_keks,
            #[cfg(feature = "local")]
            local_passphrase: settings
                .local
                .passphrase_file
                .as_ref()
                .map(|file| Arc::new(local::PassphraseFile::new(file))),
            #[cfg(feature = "aws")]
            aws: aws::Room::new(settings),
            #[cfg(feature = "azure")]
            azure: azure::Room::new(settings),
            #[cfg(feature = "pkcs11")]
            pkcs11: pkcs11::Library::new(&settings.pkcs11),
            #[cfg(feature = "vault")]
            vault: vault::Room::new(settings),
            #[cfg(feature = "https")]
            https: https::Room::new(settings),
        }
    }
}

impl Backends for ConfiguredBackends {
    fn kek(&self, uri: &KekUri) -> Result<Arc<dyn Kek>, KekError> {
        match uri.scheme() {
            #[cfg(feature = "aws")]
            "aws-kms" => self.aws.kek(uri),
            #[cfg(feature = "local")]
            "local" => {
                if !self.are_local_keks_meant {
                    tracing::warn!(kek = %uri, "a KEK in a file is for development: who reads the file opens every key; if it is meant, set backends.local_keks = true");
                }
                Ok(Arc::new(
                    local::LocalKek::new(uri.rest()).with_passphrase(self.local_passphrase.clone()),
                ))
            }
            #[cfg(feature = "azure")]
            "azure-kv" => self.azure.kek(uri),
            #[cfg(feature = "pkcs11")]
            "pkcs11" => self.pkcs11.kek(uri),
            #[cfg(feature = "vault")]
            "vault-transit" => self.vault.kek(uri),
            scheme => {
                let known = [
                    ("aws-kms", cfg!(feature = "aws")),
                    ("azure-kv", cfg!(feature = "azure")),
                    ("local", cfg!(feature = "local")),
                    ("pkcs11", cfg!(feature = "pkcs11")),
                    ("vault-transit", cfg!(feature = "vault")),
                ];
                let known: Vec<&str> = known
                    .into_iter()
                    .filter_map(|(name, is_built)| is_built.then_some(name))
                    .collect();
                let message = format!(
                    "{uri}: this build has no backend `{scheme}`; it has: {}",
                    known.join(", ")
                );
                Err(KekError::new(KekFault::Misconfigured, message))
            }
        }
    }

    fn store(&self, location: &Location) -> Result<Arc<dyn ManifestStore>, StoreError> {
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
            #[allow(unreachable_patterns, reason = "unless a backend is left out")]
            elsewhere => Err(StoreError::Failed {
                location: elsewhere.clone(),
                reason: "this build has no backend for such a location".into(),
            }),
        }
    }

    fn secret(&self, source: &SecretSource) -> Result<Arc<dyn SecretProvider>, SecretError> {
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
            #[allow(unreachable_patterns, reason = "unless a backend is left out")]
            elsewhere => {
                let message = format!("{elsewhere}: this build has no backend for such a source");
                Err(SecretError::new(SecretFault::Misconfigured, message))
            }
        }
    }
}

/// The same KEK, named so that the name means it from every folder.
///
/// # Errors
/// The working folder is gone.
pub fn anchored(uri: &KekUri) -> Result<KekUri, KekError> {
    if uri.scheme() != "local" {
        return Ok(uri.clone());
    }
    let failed =
        |reason: String| KekError::new(KekFault::Misconfigured, format!("{uri}: {reason}"));
    let path = std::path::absolute(uri.rest()).map_err(|error| failed(error.to_string()))?;
    format!("local:{}", path.display())
        .parse()
        .map_err(|error: Malformed| failed(error.to_string()))
}
