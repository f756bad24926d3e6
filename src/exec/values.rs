//! A consistent snapshot of the secrets' values.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::bindings::SecretRef;
use crate::{
    client::{Fetched, SidecarError, Socket, fetch_secret},
    crypto::equal_in_constant_time,
    model::SecretName,
};

/// How many times the fields of a secret are read until all have the same version.
const ATTEMPTS: usize = 5;

/// A secret could not be read.
#[derive(Debug, thiserror::Error)]
#[error("secret {secret}: {error}")]
pub struct FetchError {
    secret: SecretName,
    error: SidecarError,
}

impl FetchError {
    /// Whether retrying is pointless until something changes.
    pub(super) fn is_final(&self) -> bool {
        self.error.is_final()
    }

    /// Whether the secret doesn't exist (yet): a file may be mounted later, a path written later.
    pub(super) fn is_missing(&self) -> bool {
        self.error.is_missing()
    }
}

/// The values of all bindings.
pub(super) struct Values(BTreeMap<SecretRef, Zeroizing<Vec<u8>>>);

impl Values {
    /// Fetches the values; all fields of a secret have the same version.
    pub(super) async fn fetch(
        socket: &Socket,
        secrets: &BTreeSet<SecretRef>,
    ) -> Result<Self, FetchError> {
        let mut values = BTreeMap::new();
        let mut by_name: BTreeMap<&SecretName, Vec<&SecretRef>> = BTreeMap::new();
        for secret in secrets {
            by_name.entry(&secret.name).or_default().push(secret);
        }
        for (name, fields) in by_name {
            let read = read(socket, &fields).await.map_err(|error| FetchError {
                secret: name.clone(),
                error,
            })?;
            values.extend(fields.into_iter().cloned().zip(read));
        }
        Ok(Self(values))
    }

    /// Returns the value of a secret that was fetched, as all of the bindings are.
    pub(super) fn get(&self, secret: &SecretRef) -> &[u8] {
        self.0.get(secret).map_or(&[], |value| value)
    }

    /// The secrets whose values differ in `other`.
    pub(super) fn changed(&self, other: &Self) -> BTreeSet<SecretName> {
        let differs =
            |secret: &&SecretRef| !equal_in_constant_time(self.get(secret), other.get(secret));
        self.0
            .keys()
            .filter(differs)
            .map(|secret| secret.name.clone())
            .collect()
    }
}

/// Reads fields of one secret in the same version: a new password is useless with an old user.
async fn read(
    socket: &Socket,
    fields: &[&SecretRef],
) -> Result<Vec<Zeroizing<Vec<u8>>>, SidecarError> {
    for _ in 0..ATTEMPTS {
        let mut read: Vec<Fetched> = Vec::with_capacity(fields.len());
        for secret in fields {
            let field = secret.field.as_deref();
            read.push(fetch_secret(socket, &secret.name, field, secret.conversion).await?);
        }
        if read
            .iter()
            .all(|fetched| fetched.version == read[0].version)
        {
            return Ok(read.into_iter().map(|fetched| fetched.value).collect());
        }
    }
    Err(SidecarError::Unexpected(
        "the secret changes faster than its fields can be read".into(),
    ))
}
