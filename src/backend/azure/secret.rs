//! `azure-kv:https://VAULT/secrets/NAME`: a secret in Azure Key Vault.

use std::sync::Arc;

use azure_core::time::OffsetDateTime;
use azure_security_keyvault_secrets::{
    SecretClient,
    models::{Secret, SecretClientGetSecretOptions},
};
use futures_util::{TryStreamExt, future::BoxFuture};
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{
    Client,
    errors::{ObjectType, explain},
    is_word,
};
use crate::{
    backend::{
        BackendError, ErrorKind, FetchOutcome, FetchedValue, HeldValue, SecretProvider,
        VersionSelector, error::Failure,
    },
    model::SecretSource,
};

const SECRET: ObjectType = ObjectType {
    name: "secret",
    role: "Key Vault Secrets User",
};

/// A secret. Key Vault has no cheaper request to detect a change, so each poll reads the value.
pub(super) struct VaultSecret {
    client: Arc<Client>,
    vault: String,
    name: String,
    source: SecretSource,
}

/// A version's entry in the list of versions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ListedVersion {
    version: String,
    /// In seconds since the epoch.
    created: Option<i64>,
    is_enabled: bool,
}

impl VaultSecret {
    pub(super) fn new(client: Arc<Client>, vault: &str, name: &str, source: SecretSource) -> Self {
        Self {
            client,
            vault: vault.to_owned(),
            name: name.to_owned(),
            source,
        }
    }

    /// Reads a version, or the newest one.
    async fn read(
        &self,
        version: Option<&str>,
        limit: usize,
    ) -> Result<FetchedValue, BackendError> {
        let options = SecretClientGetSecretOptions {
            secret_version: version.map(str::to_owned),
            ..SecretClientGetSecretOptions::default()
        };
        let response = self
            .client()?
            .get_secret(&self.name, Some(options))
            .await
            .and_then(|response| response.into_model());
        let Secret {
            value,
            id,
            attributes,
            ..
        } = response.map_err(|error| self.error(explain(&error, &SECRET, "get")))?;
        // The SDK does not zeroize its own copies of the response.
        let bytes = value.map(|value| Zeroizing::new(value.into_bytes()));
        let version = id.as_deref().and_then(version_in);
        let (bytes, version) = bytes.zip(version).ok_or_else(|| {
            let message = "Azure's response has no value or no version";
            self.error(Failure::new(ErrorKind::Unavailable, message))
        })?;
        if bytes.len() > limit {
            return Err(BackendError::secret_too_large(&self.source, limit));
        }
        let time = |time: Option<OffsetDateTime>| {
            time.and_then(|time| Timestamp::from_second(time.unix_timestamp()).ok())
        };
        let (created_at, expires_at) = attributes.map_or((None, None), |attributes| {
            (time(attributes.created), time(attributes.expires))
        });
        Ok(FetchedValue {
            bytes,
            version: version.to_owned(),
            created_at,
            expires_at,
            lease: None,
        })
    }

    async fn previous(
        &self,
        held: Option<HeldValue<'_>>,
        limit: usize,
    ) -> Result<FetchedValue, BackendError> {
        let versions = self.list().await?;
        let current = match held {
            Some(held) => Some(held.version.to_owned()),
            None => match self.read(None, limit).await {
                Ok(current) => Some(current.version),
                // The current version is disabled, so only the list shows which one it is.
                Err(error) if error.kind == ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
        };
        let previous = version_before(current.as_deref(), &versions).ok_or_else(|| {
            let message = "there is no enabled version before the current one";
            BackendError::not_found(&self.source, message)
        })?;
        self.read(Some(&previous.version), limit).await
    }

    async fn list(&self) -> Result<Vec<ListedVersion>, BackendError> {
        let failed = |error| self.error(explain(&error, &SECRET, "list"));
        let pages = self
            .client()?
            .list_secret_properties_versions(&self.name, None)
            .map_err(failed)?;
        let versions = pages.map_ok(|properties| {
            let attributes = properties.attributes.unwrap_or_default();
            Some(ListedVersion {
                version: version_in(properties.id.as_deref()?)?.to_owned(),
                created: attributes.created.map(OffsetDateTime::unix_timestamp),
                is_enabled: attributes.enabled.unwrap_or(true),
            })
        });
        let versions: Vec<Option<ListedVersion>> = versions.try_collect().await.map_err(failed)?;
        Ok(versions.into_iter().flatten().collect())
    }

    fn client(&self) -> Result<Arc<SecretClient>, BackendError> {
        self.client
            .secret_client(&self.vault)
            .map_err(|failure| self.error(failure))
    }

    fn error(&self, mut failure: Failure) -> BackendError {
        // To callers, a disabled value does not exist.
        if failure.kind == ErrorKind::Disabled {
            failure.kind = ErrorKind::NotFound;
        }
        failure.on(&self.source)
    }
}

/// Returns the version at the end of a secret's identifier.
fn version_in(id: &str) -> Option<&str> {
    id.rsplit_once('/')
        .map(|(_, version)| version)
        .filter(|version| is_word(version))
}

/// Returns the newest enabled version created before `current`, or before the newest one if
/// `current` is unknown. Azure's times are whole seconds, so versions of the same second count.
fn version_before<'v>(
    current: Option<&str>,
    versions: &'v [ListedVersion],
) -> Option<&'v ListedVersion> {
    let current = current
        .and_then(|current| versions.iter().find(|listed| listed.version == current))
        .or_else(|| versions.iter().max_by_key(|listed| listed.created))?;
    versions
        .iter()
        .filter(|listed| listed.version != current.version && listed.created <= current.created)
        .filter(|listed| listed.is_enabled)
        .max_by_key(|listed| listed.created)
}

impl SecretProvider for VaultSecret {
    fn fetch<'a>(
        &'a self,
        version: &'a VersionSelector,
        held: Option<HeldValue<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<FetchOutcome, BackendError>> {
        Box::pin(async move {
            let not_found = |message| BackendError::not_found(&self.source, message);
            let fetched = match version {
                VersionSelector::Current => {
                    let fetched = self.read(None, limit).await?;
                    return Ok(FetchOutcome::current(fetched, held));
                }
                VersionSelector::Previous => self.previous(held, limit).await?,
                VersionSelector::Pending => {
                    return Err(not_found("Key Vault has no pending versions"));
                }
                // Anything but a word would address another path.
                VersionSelector::Version(version) if !is_word(version) || version == "versions" => {
                    return Err(not_found("there is no such version"));
                }
                VersionSelector::Version(version) => self.read(Some(version), limit).await?,
            };
            Ok(FetchOutcome::Value(fetched))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(version: &str, created: i64, is_enabled: bool) -> ListedVersion {
        ListedVersion {
            version: version.into(),
            created: Some(created),
            is_enabled,
        }
    }

    #[test]
    fn the_previous_version_is_the_newest_enabled_one_created_before() {
        // Unordered, as Azure guarantees no order.
        let all = [
            listed("c", 30, true),
            listed("a", 10, true),
            listed("b", 20, false),
            listed("d", 40, false),
        ];
        let before = |current| version_before(current, &all).map(|listed| listed.version.as_str());
        assert_eq!(before(Some("c")), Some("a"), "b is disabled");
        assert_eq!(before(Some("a")), None);
        assert_eq!(before(None), Some("c"), "d is the newest, though disabled");
        assert_eq!(before(Some("gone")), Some("c"));
        assert_eq!(version_before(None, &[]), None);
    }

    #[test]
    fn a_version_of_the_same_second_counts_as_previous() {
        let all = [listed("b", 10, true), listed("a", 10, true)];
        assert_eq!(
            version_before(Some("b"), &all).map(|listed| listed.version.as_str()),
            Some("a")
        );
    }

    #[test]
    fn the_version_is_the_end_of_the_identifier() {
        assert_eq!(
            version_in("https://v.vault.azure.net/secrets/db/0123abcd"),
            Some("0123abcd")
        );
        assert_eq!(version_in("https://v.vault.azure.net/secrets/db/"), None);
        assert_eq!(version_in(""), None);
    }
}
