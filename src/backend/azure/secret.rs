//! `azure-kv:https://VAULT/secrets/NAME`: a secret of Azure Key Vault.

use std::sync::Arc;

use azure_core::time::OffsetDateTime;
use azure_security_keyvault_secrets::{
    SecretClient,
    models::{Secret, SecretClientGetSecretOptions},
};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use zeroize::Zeroizing;

use super::{Fault, Room, Thing, explain, is_word};
use crate::{
    backend::{Answer, Fetched, Held, KekFault, SecretError, SecretFault, SecretProvider, Which},
    model::SecretSource,
};

const SECRET: Thing = Thing {
    name: "secret",
    role: "Key Vault Secrets User",
};

/// A secret. It is read whole every time: nothing that Key Vault has is a cheaper question.
pub(super) struct VaultSecret {
    room: Arc<Room>,
    vault: String,
    name: String,
    source: SecretSource,
}

/// What the list of versions says about one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    version: String,
    created: Option<i64>,
    is_enabled: bool,
}

impl VaultSecret {
    pub(super) fn new(room: Arc<Room>, vault: &str, name: &str, source: SecretSource) -> Self {
        Self {
            room,
            vault: vault.to_owned(),
            name: name.to_owned(),
            source,
        }
    }

    /// Reads a version, or the newest.
    async fn read(&self, version: Option<&str>, limit: usize) -> Result<Fetched, SecretError> {
        let version = version.map(str::to_owned);
        let options = SecretClientGetSecretOptions {
            secret_version: version,
            ..SecretClientGetSecretOptions::default()
        };
        let answer = self
            .client()?
            .get_secret(&self.name, Some(options))
            .await
            .and_then(|answer| answer.into_model());
        let Secret {
            value,
            id,
            attributes,
            ..
        } = answer.map_err(|error| self.failed(explain(&error, &SECRET, "get")))?;
        // The SDK's own copies of the answer are not zeroized.
        let bytes = value.map(|value| Zeroizing::new(value.into_bytes()));
        let version = id.as_deref().and_then(version_in);
        let incomplete = || {
            self.failed(Fault::new(
                KekFault::Unavailable,
                "Azure answered without a value or a version",
            ))
        };
        let (bytes, version) = bytes.zip(version).ok_or_else(incomplete)?;
        if bytes.len() > limit {
            return Err(SecretError::too_long(&self.source, limit));
        }
        let time = |time: Option<OffsetDateTime>| {
            time.and_then(|time| Timestamp::from_second(time.unix_timestamp()).ok())
        };
        let (created_at, expires_at) = attributes.map_or((None, None), |known| {
            (time(known.created), time(known.expires))
        });
        Ok(Fetched {
            bytes,
            version: version.to_owned(),
            created_at,
            expires_at,
            lease: None,
        })
    }

    async fn previous(&self, held: Option<Held<'_>>, limit: usize) -> Result<Fetched, SecretError> {
        let listed = self.list().await?;
        let current = match held {
            Some(held) => Some(held.version.to_owned()),
            None => match self.read(None, limit).await {
                Ok(current) => Some(current.version),
                // It is disabled, and then only the list tells which it is.
                Err(error) if error.fault == SecretFault::NotFound => None,
                Err(error) => return Err(error),
            },
        };
        let none = || {
            SecretError::not_found(
                &self.source,
                "there is no enabled version that was made before the current one",
            )
        };
        let previous = before(current.as_deref(), &listed).ok_or_else(none)?;
        self.read(Some(&previous.version), limit).await
    }

    async fn list(&self) -> Result<Vec<Listed>, SecretError> {
        let failed = |error| self.failed(explain(&error, &SECRET, "list"));
        let pages = self
            .client()?
            .list_secret_properties_versions(&self.name, None)
            .map_err(failed)?;
        let versions = pages.map_ok(|known| {
            let attributes = known.attributes.unwrap_or_default();
            Some(Listed {
                version: version_in(known.id.as_deref()?)?.to_owned(),
                created: attributes.created.map(OffsetDateTime::unix_timestamp),
                is_enabled: attributes.enabled.unwrap_or(true),
            })
        });
        let versions: Vec<Option<Listed>> = versions.try_collect().await.map_err(failed)?;
        Ok(versions.into_iter().flatten().collect())
    }

    fn client(&self) -> Result<Arc<SecretClient>, SecretError> {
        self.room
            .secrets_of(&self.vault)
            .map_err(|fault| self.failed(fault))
    }

    fn failed(&self, fault: Fault) -> SecretError {
        // To whoever asks, a value that its owner disabled isn't there.
        let kind = if fault.kind == KekFault::Disabled {
            KekFault::Missing
        } else {
            fault.kind
        };
        Fault { kind, ..fault }.of_secret(&self.source)
    }
}

/// The version in a secret's identifier.
fn version_in(id: &str) -> Option<&str> {
    id.rsplit_once('/')
        .map(|(_, version)| version)
        .filter(|version| is_word(version))
}

/// The newest enabled version that was made before `current`, or before the newest of all. Azure's times are whole seconds, so that one of
/// the same second counts as before.
fn before<'l>(current: Option<&str>, listed: &'l [Listed]) -> Option<&'l Listed> {
    let named = current.and_then(|current| listed.iter().find(|listed| listed.version == current));
    let current = named.or_else(|| listed.iter().max_by_key(|listed| listed.created))?;
    let older = listed
        .iter()
        .filter(|listed| listed.version != current.version && listed.created <= current.created);
    older
        .filter(|listed| listed.is_enabled)
        .max_by_key(|listed| listed.created)
}

impl SecretProvider for VaultSecret {
    fn fetch<'a>(
        &'a self,
        which: &'a Which,
        held: Option<Held<'a>>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Answer, SecretError>> {
        Box::pin(async move {
            let none = |what| SecretError::not_found(&self.source, what);
            match which {
                Which::Current => Ok(Answer::current(self.read(None, limit).await?, held)),
                Which::Previous => self.previous(held, limit).await.map(Answer::Value),
                Which::Pending => Err(none(
                    "Key Vault introduces no version before it is the current one",
                )),
                // What isn't a word would be another path.
                Which::Version(version) if !is_word(version) || version == "versions" => {
                    Err(none("there is no such version"))
                }
                Which::Version(version) => self.read(Some(version), limit).await.map(Answer::Value),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(version: &str, created: i64, is_enabled: bool) -> Listed {
        Listed {
            version: version.into(),
            created: Some(created),
            is_enabled,
        }
    }

    #[test]
    fn the_previous_version_is_the_newest_enabled_one_made_before() {
        // In no order: Azure promises none.
        let all = [
            listed("c", 30, true),
            listed("a", 10, true),
            listed("b", 20, false),
            listed("d", 40, false),
        ];
        let before = |current| before(current, &all).map(|listed| listed.version.as_str());
        assert_eq!(before(Some("c")), Some("a"), "b is disabled");
        assert_eq!(before(Some("a")), None);
        assert_eq!(before(None), Some("c"), "d is the newest, though disabled");
        assert_eq!(before(Some("gone")), Some("c"));
        assert_eq!(super::before(None, &[]), None);
    }

    #[test]
    fn two_versions_of_one_second_follow_each_other() {
        let all = [listed("b", 10, true), listed("a", 10, true)];
        assert_eq!(
            before(Some("b"), &all).map(|listed| listed.version.as_str()),
            Some("a")
        );
    }

    #[test]
    fn a_version_is_the_end_of_an_identifier() {
        assert_eq!(
            version_in("https://v.vault.azure.net/secrets/db/0123abcd"),
            Some("0123abcd")
        );
        assert_eq!(version_in("https://v.vault.azure.net/secrets/db/"), None);
        assert_eq!(version_in(""), None);
    }
}
