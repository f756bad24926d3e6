//! `aws-sm:NAME`: a manifest in a secret of AWS Secrets Manager.

use std::sync::Arc;

use aws_sdk_secretsmanager::{Client, error::ProvideErrorMetadata};
use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::{Fault, Room, fault, region_of};
use crate::{
    backend::{KekFault, ManifestStore, StoreError},
    crypto::{fingerprint, to_hex},
    model::Location,
};

/// What a secret holds at most, in bytes.
const LONGEST: usize = 65_536;

/// A secret whose text is the manifest. It is read whole every time: nothing that Secrets Manager has is a cheaper question.
pub(super) struct SecretStore {
    room: Arc<Room>,
    name: String,
    location: Location,
}

impl SecretStore {
    pub(super) fn new(room: Arc<Room>, name: &str, location: Location) -> Self {
        Self {
            room,
            name: name.to_owned(),
            location,
        }
    }

    async fn client(&self) -> Result<Client, StoreError> {
        let desk = self
            .room
            .secrets_manager(&self.name)
            .await
            .map_err(|fault| fault.of_location(&self.location))?;
        Ok(desk.client().clone())
    }

    async fn get(&self) -> Result<Option<Secret>, StoreError> {
        match self
            .client()
            .await?
            .get_secret_value()
            .secret_id(&self.name)
            .send()
            .await
        {
            Ok(answer) => {
                let reason = "the secret holds bytes, not text: it is no keyring".into();
                let text = answer.secret_string.ok_or(StoreError::Failed {
                    location: self.location.clone(),
                    reason,
                })?;
                Ok(Some(Secret {
                    bytes: text.into(),
                    version: answer.version_id.unwrap_or_default(),
                }))
            }
            Err(error) => match fault(&error) {
                Fault {
                    kind: KekFault::Missing,
                    ..
                } => Ok(None),
                other => Err(self.explain(other, "secretsmanager:GetSecretValue")),
            },
        }
    }

    /// Secrets Manager has no compare-and-swap, but it refuses another content under a version's id that it knows. The id is made of
    /// the version that the change follows: of two changes that follow the same one, the second is refused. Older content that an
    /// operator puts back is a version of its own, with other successors.
    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), StoreError> {
        let failed = |reason: String| StoreError::Failed {
            location: self.location.clone(),
            reason,
        };
        if new.len() > LONGEST {
            return Err(failed(format!(
                "the manifest is longer than the {LONGEST} bytes that a secret holds; use S3"
            )));
        }
        let text = String::from_utf8(new).map_err(|error| failed(error.to_string()))?;
        let conflict = || StoreError::Conflict(self.location.clone());
        match expected {
            None => self.create(text).await,
            Some(expected) => {
                let found = self
                    .get()
                    .await?
                    .filter(|found| found.bytes == expected)
                    .ok_or_else(conflict)?;
                self.put(text, successor_id(Some(&found))).await
            }
        }
    }

    /// The first value of a secret: of a new one, or of one that was made without (by Terraform, say, with its policy).
    async fn create(&self, text: String) -> Result<(), StoreError> {
        // A secret that an ARN names is there, or nobody can make it.
        if region_of(&self.name, "secretsmanager").is_none() {
            let made = self
                .client()
                .await?
                .create_secret()
                .name(&self.name)
                .secret_string(&text)
                .send()
                .await;
            match made {
                Ok(_) => return Ok(()),
                Err(error) if error.code() == Some("ResourceExistsException") => {}
                Err(error) => {
                    return Err(self.explain(fault(&error), "secretsmanager:CreateSecret"));
                }
            }
        }
        if self.get().await?.is_some() {
            return Err(StoreError::Conflict(self.location.clone()));
        }
        self.put(text, successor_id(None)).await
    }

    async fn put(&self, text: String, version: String) -> Result<(), StoreError> {
        let request = self
            .client()
            .await?
            .put_secret_value()
            .secret_id(&self.name)
            .secret_string(text);
        match request.client_request_token(version).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("ResourceExistsException") => {
                Err(StoreError::Conflict(self.location.clone()))
            }
            Err(error) => Err(self.explain(fault(&error), "secretsmanager:PutSecretValue")),
        }
    }

    fn explain(&self, fault: Fault, right: &str) -> StoreError {
        let Fault { kind, reason } = fault;
        let advice = if reason.contains("AccessDenied") {
            format!("; the role needs {right} on this secret")
        } else {
            String::new()
        };
        Fault::new(kind, reason + &advice).of_location(&self.location)
    }
}

/// What stands in a secret now, and the id of that version.
struct Secret {
    bytes: Bytes,
    version: String,
}

/// The id of the one version that may follow: 32 to 64 characters, as Secrets Manager wants them.
fn successor_id(predecessor: Option<&Secret>) -> String {
    let (version, bytes) =
        predecessor.map_or(("", &[][..]), |secret| (&secret.version, &secret.bytes));
    to_hex(&fingerprint(&[version.as_bytes(), &[0], bytes].concat()))
}

impl ManifestStore for SecretStore {
    fn read(&self, limit: usize) -> BoxFuture<'_, Result<Bytes, StoreError>> {
        Box::pin(async move {
            let Secret { bytes, .. } = self
                .get()
                .await?
                .ok_or_else(|| StoreError::Missing(self.location.clone()))?;
            if bytes.len() > limit {
                return Err(StoreError::TooLarge {
                    location: self.location.clone(),
                    limit,
                });
            }
            Ok(bytes)
        })
    }

    fn replace(
        &self,
        expected: Option<Vec<u8>>,
        new: Vec<u8>,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.swap(expected, new))
    }
}
