//! `aws-ssm:NAME`: a parameter of AWS Systems Manager, of any type.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use zeroize::Zeroizing;

use super::{Fault, Room, fault, timestamp};
use crate::{
    backend::{
        Answer, Fetched, Held, KekFault, SecretError, SecretProvider, Which, secret::number,
    },
    model::SecretSource,
};

/// A parameter, whose versions are counted from 1.
pub(super) struct Parameter {
    room: Arc<Room>,
    name: String,
    source: SecretSource,
}

impl Parameter {
    pub(super) fn new(room: Arc<Room>, name: &str, source: SecretSource) -> Self {
        Self {
            room,
            name: name.to_owned(),
            source,
        }
    }

    /// Reads a version, or the current one.
    async fn read(&self, version: Option<u64>, limit: usize) -> Result<Fetched, SecretError> {
        let client = self
            .room
            .systems_manager(&self.name)
            .await
            .map_err(|fault| self.explain(fault))?;
        let name = version.map_or_else(
            || self.name.clone(),
            |version| format!("{}:{version}", self.name),
        );
        let answer = client
            .get_parameter()
            .name(name)
            .with_decryption(true)
            .send()
            .await;
        let answer = answer.map_err(|error| self.explain(fault(&error)))?;
        let incomplete = || {
            self.explain(Fault::new(
                KekFault::Unavailable,
                "AWS answered without a value",
            ))
        };
        let parameter = answer.parameter.ok_or_else(incomplete)?;
        // The SDK's own copies of the answer are not zeroized.
        let bytes = Zeroizing::new(parameter.value.ok_or_else(incomplete)?.into_bytes());
        if bytes.len() > limit {
            return Err(SecretError::too_long(&self.source, limit));
        }
        let (version, created_at) = (
            parameter.version.to_string(),
            timestamp(parameter.last_modified_date),
        );
        Ok(Fetched {
            bytes,
            version,
            created_at,
            expires_at: None,
            lease: None,
        })
    }

    async fn current(&self, held: Option<Held<'_>>, limit: usize) -> Result<Answer, SecretError> {
        let mut fetched = self.read(None, limit).await?;
        // One that is deleted and made anew counts from 1 again.
        fetched.version = Held::told_apart(held, fetched.version, &fetched.bytes);
        Ok(Answer::current(fetched, held))
    }

    async fn previous(&self, held: Option<Held<'_>>, limit: usize) -> Result<Fetched, SecretError> {
        let current = match held.and_then(|held| held.number()) {
            Some(number) => Some(number),
            None => number(&self.read(None, limit).await?.version),
        };
        match current {
            Some(current) if current > 1 => self.read(Some(current - 1), limit).await,
            _ => Err(SecretError::not_found(
                &self.source,
                "there is no version before the current one",
            )),
        }
    }

    fn explain(&self, fault: Fault) -> SecretError {
        let Fault { kind, reason } = fault;
        let advice = if kind == KekFault::Denied && reason.contains("AccessDenied") {
            let resource = if self.name.starts_with("arn:") {
                self.name.as_str()
            } else {
                "THE PARAMETER'S ARN"
            };
            format!(
                "; the role needs: {{\"Effect\": \"Allow\", \"Action\": \"ssm:GetParameter\", \"Resource\": \"{resource}\"}}, and kms:Decrypt \
                 where a key of your own encrypts the parameter"
            )
        } else {
            String::new()
        };
        Fault::new(kind, reason + &advice).of_secret(&self.source)
    }
}

impl SecretProvider for Parameter {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        held: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        Box::pin(async move {
            let none = |what| SecretError::not_found(&self.source, what);
            match which {
                Which::Current => self.current(held, limit).await,
                Which::Previous => self.previous(held, limit).await.map(Answer::Value),
                Which::Pending => Err(none(
                    "a parameter has no version that is only being introduced",
                )),
                Which::Version(version) => {
                    let version =
                        number(version).ok_or_else(|| none("there is no such version"))?;
                    self.read(Some(version), limit).await.map(Answer::Value)
                }
            }
        })
    }
}
