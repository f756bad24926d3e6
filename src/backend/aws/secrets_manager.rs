//! `aws-sm:NAME`: a manifest in a secret of AWS Secrets Manager.

use std::sync::Arc;

use aws_sdk_secretsmanager::{Client, error::ProvideErrorMetadata};
use tokio::sync::OnceCell;

use super::{Fault, Room, fault};
use crate::{
    backend::{KekFault, ManifestStore, Pending, StoreError},
    config::Location,
    crypto::fingerprint,
};

/// What a secret holds at most, in bytes.
const LONGEST: usize = 65_536;

/// A secret whose text is the manifest. It is read whole every time: nothing that Secrets Manager has is a cheaper question.
pub(super) struct SecretStore {
    room: Arc<Room>,
    name: String,
    location: Location,
    client: OnceCell<Client>,
}

impl SecretStore {
    pub(super) fn new(room: Arc<Room>, name: &str, location: Location) -> Self {
        Self { room, name: name.to_owned(), location, client: OnceCell::new() }
    }

    async fn client(&self) -> Result<&Client, StoreError> {
        let make = async || Ok(Client::new(self.room.sdk().await?));
        self.client.get_or_try_init(make).await.map_err(|fault: Fault| fault.of_location(&self.location))
    }

    async fn get(&self) -> Result<Option<Secret>, StoreError> {
        match self.client().await?.get_secret_value().secret_id(&self.name).send().await {
            Ok(answer) => {
                let reason = "the secret holds bytes, not text: it is no keyring".into();
                let text = answer.secret_string.ok_or(StoreError::Failed { location: self.location.clone(), reason })?;
                Ok(Some(Secret { bytes: text.into_bytes(), version: answer.version_id.unwrap_or_default() }))
            }
            Err(error) => match fault(&error) {
                Fault { kind: KekFault::Missing, .. } => Ok(None),
                other => Err(self.explain(other, "secretsmanager:GetSecretValue")),
            },
        }
    }

    /// Secrets Manager has no compare-and-swap, but it refuses another content under a version's id that it knows. The id is made of
    /// the version that the change follows: of two changes that follow the same one, the second is refused. Older content that an
    /// operator puts back is a version of its own, with other successors.
    async fn swap(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Result<(), StoreError> {
        let failed = |reason: String| StoreError::Failed { location: self.location.clone(), reason };
        if new.len() > LONGEST {
            return Err(failed(format!("the manifest is longer than the {LONGEST} bytes that a secret holds; use S3")));
        }
        let text = String::from_utf8(new).map_err(|error| failed(error.to_string()))?;
        let client = self.client().await?;
        let (result, right) = match expected {
            None => {
                let made = client.create_secret().name(&self.name).secret_string(text).send().await;
                (made.map(drop).map_err(|error| (error.code().unwrap_or_default().to_owned(), fault(&error))), "CreateSecret")
            }
            Some(expected) => {
                let found = self.get().await?.filter(|found| found.bytes == expected);
                let found = found.ok_or_else(|| StoreError::Conflict(self.location.clone()))?;
                let request = client.put_secret_value().secret_id(&self.name).secret_string(text);
                let put = request.client_request_token(successor_id(&found)).send().await;
                (put.map(drop).map_err(|error| (error.code().unwrap_or_default().to_owned(), fault(&error))), "PutSecretValue")
            }
        };
        result.map_err(|(code, fault)| match code.as_str() {
            "ResourceExistsException" => StoreError::Conflict(self.location.clone()),
            _ => self.explain(fault, &format!("secretsmanager:{right}")),
        })
    }

    fn explain(&self, fault: Fault, right: &str) -> StoreError {
        let Fault { kind, reason } = fault;
        let advice =
            if reason.contains("AccessDenied") { format!("; the role needs {right} on this secret") } else { String::new() };
        Fault::new(kind, reason + &advice).of_location(&self.location)
    }
}

/// What stands in a secret now, and the id of that version.
struct Secret {
    bytes: Vec<u8>,
    version: String,
}

/// The id of the one version that may follow: 32 to 64 characters, as Secrets Manager wants them.
fn successor_id(predecessor: &Secret) -> String {
    fingerprint(&[predecessor.version.as_bytes(), &[0], &predecessor.bytes].concat())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

impl ManifestStore for SecretStore {
    fn read(&self, limit: usize) -> Pending<'_, Result<Vec<u8>, StoreError>> {
        Box::pin(async move {
            let Secret { bytes, .. } = self.get().await?.ok_or_else(|| StoreError::Missing(self.location.clone()))?;
            if bytes.len() > limit {
                return Err(StoreError::TooLarge { location: self.location.clone(), limit });
            }
            Ok(bytes)
        })
    }

    fn replace(&self, expected: Option<Vec<u8>>, new: Vec<u8>) -> Pending<'_, Result<(), StoreError>> {
        Box::pin(self.swap(expected, new))
    }
}
