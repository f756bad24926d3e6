//! `aws-sm:NAME` as a source of secrets: AWS Secrets Manager.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Client, arn_or, batch::SecretValue, errors::explain};
use crate::{
    backend::{
        BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue, SecretProvider,
        VersionSelector, error::Failure,
    },
    model::SecretSource,
};

/// A secret. Secrets Manager has no cheaper request to detect a change, so each poll reads the
/// value.
pub(super) struct Secret {
    client: Arc<Client>,
    name: String,
    source: SecretSource,
}

impl Secret {
    pub(super) fn new(client: Arc<Client>, name: &str, source: SecretSource) -> Self {
        Self {
            client,
            name: name.to_owned(),
            source,
        }
    }

    async fn read(&self, version: &VersionSelector) -> Result<SecretValue, Failure> {
        let loader = self.client.secrets_manager(&self.name).await?;
        let request = loader.client().get_secret_value().secret_id(&self.name);
        let request = match version {
            VersionSelector::Current => return loader.current(&self.name).await,
            VersionSelector::Previous => request.version_stage("AWSPREVIOUS"),
            VersionSelector::Pending => request.version_stage("AWSPENDING"),
            VersionSelector::Version(version) => {
                // AWS rejects an id of another length as an invalid request.
                if !(32..=64).contains(&version.len()) {
                    let message = "there is no such version";
                    return Err(Failure::new(ErrorKind::NotFound, message));
                }
                request.version_id(version)
            }
        };
        let response = request.send().await.map_err(|error| explain(&error))?;
        SecretValue::new(response)
    }

    fn with_advice(&self, mut failure: Failure) -> Failure {
        if failure.kind == ErrorKind::Denied && failure.message.contains("AccessDenied") {
            let resource = arn_or(&self.name, "THE SECRET'S ARN");
            failure.message += &format!(
                "; the role needs: {{\"Effect\": \"Allow\", \"Action\": \
                 \"secretsmanager:GetSecretValue\", \"Resource\": \"{resource}\"}}, and \
                 kms:Decrypt if a customer managed key encrypts the secret"
            );
        }
        failure
    }
}

impl SecretProvider for Secret {
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            let value = self
                .read(version)
                .await
                .map_err(|failure| self.with_advice(failure).on(&self.source))?;
            if value.bytes.len() > limit {
                return Err(BackendError::secret_too_large(&self.source, limit));
            }
            let fetched = FetchedValue {
                bytes: value.bytes,
                version: value.version,
                created_at: value.created_at,
                expires_at: None,
                lease: None,
            };
            Ok(if *version == VersionSelector::Current {
                FetchOutcome::current(fetched, held)
            } else {
                FetchOutcome::Value(fetched)
            })
        })
    }
}
