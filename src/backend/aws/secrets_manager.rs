//! `aws-sm:NAME` as a location: a manifest in a secret of AWS Secrets Manager.

use std::sync::Arc;

use aws_sdk_secretsmanager::error::ProvideErrorMetadata;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use jiff::Timestamp;

use super::{Client, errors::explain, region_of};
use crate::{
    backend::{BackendError, ErrorKind, ManifestStore, error::Failure},
    crypto::{fingerprint, to_hex},
    model::Location,
};

/// The size limit of a secret, in bytes.
const MAX_SECRET: usize = 65_536;

/// A secret whose text is the manifest. Secrets Manager has no cheaper request to detect a change,
/// so each poll reads all of it.
pub(super) struct SecretStore {
    client: Arc<Client>,
    name: String,
    location: Location,
}

/// The current value, and the id of its version.
struct SecretVersion {
    bytes: Bytes,
    id: String,
}

impl SecretStore {
    pub(super) fn new(client: Arc<Client>, name: &str, location: Location) -> Self {
        Self {
            client,
            name: name.to_owned(),
            location,
        }
    }

    async fn secrets_manager(&self) -> Result<aws_sdk_secretsmanager::Client, BackendError> {
        let loader = self
            .client
            .secrets_manager(&self.name)
            .await
            .map_err(|failure| failure.on(&self.location))?;
        Ok(loader.client().clone())
    }

    async fn get(&self) -> Result<Option<SecretVersion>, BackendError> {
        let response = self
            .secrets_manager()
            .await?
            .get_secret_value()
            .secret_id(&self.name)
            .send()
            .await;
        match response {
            Ok(response) => {
                let text = response.secret_string.ok_or_else(|| {
                    self.misconfigured("the secret is binary, not text: it is not a keyring")
                })?;
                Ok(Some(SecretVersion {
                    bytes: text.into(),
                    id: response.version_id.unwrap_or_default(),
                }))
            }
            Err(error) => {
                let failure = explain(&error);
                if failure.kind == ErrorKind::NotFound {
                    return Ok(None);
                }
                Err(self.error(failure, "secretsmanager:GetSecretValue"))
            }
        }
    }

    /// Secrets Manager has no compare-and-swap, but rejects different content under a version id
    /// that exists. The id of a new version is derived from its predecessor, so of two changes
    /// with the same predecessor the second one is rejected. If an operator restores older content,
    /// that is a version with its own id, and has other successors.
    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), BackendError> {
        if new.len() > MAX_SECRET {
            return Err(self.misconfigured(format!(
                "the manifest is longer than the {MAX_SECRET} bytes of a secret; use S3"
            )));
        }
        let text = String::from_utf8(new).map_err(|error| self.misconfigured(error.to_string()))?;
        match expected {
            None => self.create(text).await,
            Some(expected) => {
                let found = self
                    .get()
                    .await?
                    .filter(|found| found.bytes == expected)
                    .ok_or_else(|| BackendError::conflict(&self.location))?;
                self.put(text, successor_id(Some(&found))).await
            }
        }
    }

    /// Stores the first value of a secret: of a new one, or of one that was created without a
    /// value (for example by Terraform, together with its policy).
    async fn create(&self, text: String) -> Result<(), BackendError> {
        // Only AWS can create a secret with a given ARN.
        if region_of(&self.name, "secretsmanager").is_none() {
            let created = self
                .secrets_manager()
                .await?
                .create_secret()
                .name(&self.name)
                .secret_string(&text)
                .send()
                .await;
            match created {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some("ResourceExistsException") => {}
                Err(error) => {
                    return Err(self.error(explain(&error), "secretsmanager:CreateSecret"));
                }
            }
        }
        if self.get().await?.is_some() {
            return Err(BackendError::conflict(&self.location));
        }
        self.put(text, successor_id(None)).await
    }

    async fn put(&self, text: String, version: String) -> Result<(), BackendError> {
        let request = self
            .secrets_manager()
            .await?
            .put_secret_value()
            .secret_id(&self.name)
            .secret_string(text)
            .client_request_token(version);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ResourceExistsException") => {
                Err(BackendError::conflict(&self.location))
            }
            Err(error) => Err(self.error(explain(&error), "secretsmanager:PutSecretValue")),
        }
    }

    /// Explains a failed operation that requires `permission`.
    fn error(&self, mut failure: Failure, permission: &str) -> BackendError {
        if failure.message.contains("AccessDenied") {
            failure.message += &format!("; the role needs {permission} on this secret");
        }
        failure.on(&self.location)
    }

    fn misconfigured(&self, message: impl Into<String>) -> BackendError {
        BackendError::new(ErrorKind::Misconfigured, &self.location, message)
    }
}

/// Returns the id of the only version that may follow: 64 characters, of the 32 to 64 that Secrets
/// Manager requires.
fn successor_id(predecessor: Option<&SecretVersion>) -> String {
    let (id, bytes) = predecessor.map_or(("", &[][..]), |version| (&version.id, &version.bytes));
    to_hex(&fingerprint(&[id.as_bytes(), &[0], bytes].concat()))
}

impl ManifestStore for SecretStore {
    fn capacity(&self) -> Option<usize> {
        Some(MAX_SECRET)
    }

    fn server_time(&self) -> Option<Timestamp> {
        self.client.clock.now()
    }

    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, BackendError>> {
        Box::pin(async move {
            let found = self
                .get()
                .await?
                .ok_or_else(|| BackendError::no_manifest(&self.location))?;
            if found.bytes.len() > limit {
                return Err(BackendError::manifest_too_large(&self.location, limit));
            }
            Ok(found.bytes)
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), BackendError>> {
        Box::pin(self.swap(expected, new))
    }
}
