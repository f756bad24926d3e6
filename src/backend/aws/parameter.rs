//! `aws-ssm:NAME`: a parameter of AWS Systems Manager, of any type.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Client, arn_or, errors::explain, timestamp};
use crate::{
    backend::{
        BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue, SecretProvider,
        VersionSelector, error::Failure, secret::version_number,
    },
    model::SecretSource,
};

/// A parameter. AWS numbers its versions from 1.
pub(super) struct Parameter {
    client: Arc<Client>,
    name: String,
    source: SecretSource,
}

impl Parameter {
    pub(super) fn new(client: Arc<Client>, name: &str, source: SecretSource) -> Self {
        Self {
            client,
            name: name.to_owned(),
            source,
        }
    }

    /// Reads a version, or the current one.
    async fn read(&self, version: Option<u64>, limit: usize) -> Result<FetchedValue, BackendError> {
        let client = self
            .client
            .systems_manager(&self.name)
            .await
            .map_err(|failure| failure.on(&self.source))?;
        let name = version.map_or_else(
            || self.name.clone(),
            |version| format!("{}:{version}", self.name),
        );
        let response = client
            .get_parameter()
            .name(name)
            .with_decryption(true)
            .send()
            .await
            .map_err(|error| self.with_advice(explain(&error)).on(&self.source))?;
        let incomplete = || {
            let message = "AWS's response has no value";
            BackendError::new(ErrorKind::Unavailable, &self.source, message)
        };
        let parameter = response.parameter.ok_or_else(incomplete)?;
        // The SDK does not zeroize its own copies of the response.
        let bytes = Zeroizing::new(parameter.value.ok_or_else(incomplete)?.into_bytes());
        if bytes.len() > limit {
            return Err(BackendError::secret_too_large(&self.source, limit));
        }
        Ok(FetchedValue {
            bytes,
            version: parameter.version.to_string(),
            created_at: timestamp(parameter.last_modified_date),
            expires_at: None,
            lease: None,
        })
    }

    async fn current(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FetchOutcome, BackendError> {
        let mut fetched = self.read(None, limit).await?;
        // A parameter that was deleted and created again counts from 1 again.
        fetched.version = HeldValue::distinct_version(held, fetched.version, &fetched.bytes);
        Ok(FetchOutcome::current(fetched, held))
    }

    async fn previous(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FetchedValue, BackendError> {
        let current = match held.and_then(|held| held.number()) {
            Some(number) => Some(number),
            None => version_number(&self.read(None, limit).await?.version),
        };
        match current {
            Some(current) if current > 1 => self.read(Some(current - 1), limit).await,
            _ => Err(self.not_found("there is no version before the current one")),
        }
    }

    fn not_found(&self, message: &str) -> BackendError {
        BackendError::not_found(&self.source, message)
    }

    fn with_advice(&self, mut failure: Failure) -> Failure {
        if failure.kind == ErrorKind::Denied && failure.message.contains("AccessDenied") {
            let resource = arn_or(&self.name, "THE PARAMETER'S ARN");
            failure.message += &format!(
                "; the role needs: {{\"Effect\": \"Allow\", \"Action\": \"ssm:GetParameter\", \
                 \"Resource\": \"{resource}\"}}, and kms:Decrypt if a customer managed key \
                 encrypts the parameter"
            );
        }
        failure
    }
}

impl SecretProvider for Parameter {
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            let fetched = match version {
                VersionSelector::Current => return self.current(held, limit).await,
                VersionSelector::Previous => self.previous(held, limit).await?,
                VersionSelector::Pending => {
                    return Err(self.not_found("parameters have no pending versions"));
                }
                VersionSelector::Version(version) => {
                    let version = version_number(version)
                        .ok_or_else(|| self.not_found("there is no such version"))?;
                    self.read(Some(version), limit).await?
                }
            };
            Ok(FetchOutcome::Value(fetched))
        })
    }
}
