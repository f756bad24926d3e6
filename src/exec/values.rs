//! A consistent snapshot of the secrets' values.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::bindings::{Part, SecretRef};
use crate::{
    client::{Fetched, SidecarError, Socket, fetch_secret},
    crypto::equal_in_constant_time,
    model::SecretName,
    secrets::{Field, NoField},
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
pub(super) struct Values(BTreeMap<SecretRef, Parts>);

/// A value, or a value for each field. Values are compared in constant time, names aren't secret.
enum Parts {
    One(Zeroizing<Vec<u8>>),
    Fields(BTreeMap<String, Zeroizing<Vec<u8>>>),
}

impl Parts {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::One(ours), Self::One(theirs)) => equal_in_constant_time(ours, theirs),
            (Self::Fields(ours), Self::Fields(theirs)) => {
                ours.keys().eq(theirs.keys())
                    && ours
                        .values()
                        .zip(theirs.values())
                        .all(|(ours, theirs)| equal_in_constant_time(ours, theirs))
            }
            (Self::One(_), Self::Fields(_)) | (Self::Fields(_), Self::One(_)) => false,
        }
    }
}

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
        for (name, parts) in by_name {
            let read = read(socket, &parts).await.map_err(|error| FetchError {
                secret: name.clone(),
                error,
            })?;
            values.extend(parts.into_iter().cloned().zip(read));
        }
        Ok(Self(values))
    }

    /// Returns the value of a secret that was fetched, as all of the bindings are.
    pub(super) fn get(&self, secret: &SecretRef) -> &[u8] {
        match self.0.get(secret) {
            Some(Parts::One(value)) => value,
            Some(Parts::Fields(_)) | None => &[],
        }
    }

    /// Returns every field of a secret whose fields were fetched.
    pub(super) fn fields(&self, secret: &SecretRef) -> impl Iterator<Item = (&str, &[u8])> {
        let fields = match self.0.get(secret) {
            Some(Parts::Fields(fields)) => Some(fields),
            Some(Parts::One(_)) | None => None,
        };
        fields
            .into_iter()
            .flatten()
            .map(|(name, value)| (name.as_str(), value.as_slice()))
    }

    /// The secrets whose values differ in `other`.
    pub(super) fn changed(&self, other: &Self) -> BTreeSet<SecretName> {
        let differs = |(secret, ours): &(&SecretRef, &Parts)| {
            other
                .0
                .get(secret)
                .is_none_or(|theirs| !ours.is_same(theirs))
        };
        self.0
            .iter()
            .filter(differs)
            .map(|(secret, _)| secret.name.clone())
            .collect()
    }
}

/// Reads parts of one secret in the same version: a new password is useless with an old user.
async fn read(socket: &Socket, parts: &[&SecretRef]) -> Result<Vec<Parts>, SidecarError> {
    for _ in 0..ATTEMPTS {
        let mut read: Vec<Fetched> = Vec::with_capacity(parts.len());
        for secret in parts {
            let field = match &secret.part {
                Part::Field(field) => Some(field.as_str()),
                Part::Whole | Part::EveryField => None,
            };
            read.push(fetch_secret(socket, &secret.name, field, secret.conversion).await?);
        }
        if read
            .iter()
            .all(|fetched| fetched.version == read[0].version)
        {
            let read = read.into_iter().map(|fetched| fetched.value);
            return parts
                .iter()
                .zip(read)
                .map(|(secret, value)| match secret.part {
                    Part::Whole | Part::Field(_) => Ok(Parts::One(value)),
                    Part::EveryField => every_field(&value),
                })
                .collect();
        }
    }
    Err(SidecarError::Unexpected(
        "the secret changes faster than its fields can be read".into(),
    ))
}

fn every_field(value: &[u8]) -> Result<Parts, SidecarError> {
    let failed = |why: NoField, field: &str| {
        SidecarError::Unexpected(format!("its value {}", why.explain(field)))
    };
    let fields = Field::all(value).map_err(|why| failed(why, ""))?;
    let decoded = fields.into_iter().map(|(name, field)| {
        let value = field.decode().map_err(|why| failed(why, &name))?;
        Ok((name, value))
    });
    Ok(Parts::Fields(decoded.collect::<Result<_, SidecarError>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Values {
        let secret = SecretRef {
            name: "db".parse().expect("name"),
            part: Part::EveryField,
            conversion: Default::default(),
        };
        let parts = every_field(text.as_bytes()).expect("an object");
        Values(BTreeMap::from([(secret, parts)]))
    }

    #[test]
    fn a_field_that_comes_goes_or_changes_is_a_change() {
        let before = values(r#"{"user":"ann","port":1}"#);
        let is_changed = |text: &str| !before.changed(&values(text)).is_empty();
        assert!(!is_changed(r#"{"port":1, "user":"\u0061nn"}"#));
        for text in [
            r#"{"user":"bob","port":1}"#,
            r#"{"user":"ann"}"#,
            r#"{"user":"ann","port":1,"tls":true}"#,
            r#"{"user":"ann","host":1}"#,
        ] {
            assert!(is_changed(text), "{text}");
        }
        assert!(every_field(b"text").is_err());
    }
}
