//! `aws-sm:NAME` as a source of secrets: AWS Secrets Manager.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Fault, Room, batch::Value, fault};
use crate::{
    backend::{Answer, Fetched, Held, KekFault, SecretError, SecretProvider, Which},
    model::SecretSource,
};

/// A secret. Its values are read whole every time: nothing that Secrets Manager has is a cheaper question.
pub(super) struct Secret {
    room: Arc<Room>,
    name: String,
    source: SecretSource,
}

impl Secret {
    pub(super) fn new(room: Arc<Room>, name: &str, source: SecretSource) -> Self {
        Self {
            room,
            name: name.to_owned(),
            source,
        }
    }

    async fn read(&self, which: &Which) -> Result<Value, Fault> {
        let desk = self.room.secrets_manager(&self.name).await?;
        let request = desk.client().get_secret_value().secret_id(&self.name);
        let request = match which {
            Which::Current => return desk.current(&self.name).await,
            Which::Previous => request.version_stage("AWSPREVIOUS"),
            Which::Pending => request.version_stage("AWSPENDING"),
            Which::Version(version) => {
                // AWS would call another length a mistake of ours.
                if !(32..=64).contains(&version.len()) {
                    return Err(Fault::new(KekFault::Missing, "there is no such version"));
                }
                request.version_id(version)
            }
        };
        let answer = request.send().await.map_err(|error| fault(&error))?;
        Value::new(answer).ok_or_else(|| {
            Fault::new(
                KekFault::Unavailable,
                "AWS answered without a value or a version",
            )
        })
    }

    fn explain(&self, fault: Fault) -> SecretError {
        let Fault { kind, reason } = fault;
        let advice = if kind == KekFault::Denied && reason.contains("AccessDenied") {
            let resource = if self.name.starts_with("arn:") {
                self.name.as_str()
            } else {
                "THE SECRET'S ARN"
            };
            format!(
                "; the role needs: {{\"Effect\": \"Allow\", \"Action\": \"secretsmanager:GetSecretValue\", \"Resource\": \"{resource}\"}}, \
                 and kms:Decrypt where a key of your own encrypts the secret"
            )
        } else {
            String::new()
        };
        Fault::new(kind, reason + &advice).of_secret(&self.source)
    }
}

impl SecretProvider for Secret {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        held: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        Box::pin(async move {
            let Value {
                bytes,
                version,
                created_at,
            } = self
                .read(which)
                .await
                .map_err(|fault| self.explain(fault))?;
            if bytes.len() > limit {
                return Err(SecretError::too_long(&self.source, limit));
            }
            let fetched = Fetched {
                bytes,
                version,
                created_at,
                expires_at: None,
                lease: None,
            };
            Ok(if *which == Which::Current {
                Answer::current(fetched, held)
            } else {
                Answer::Value(fetched)
            })
        })
    }
}
