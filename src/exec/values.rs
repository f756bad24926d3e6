//! What the secrets are at one time.

use std::collections::{BTreeMap, BTreeSet};

use zeroize::Zeroizing;

use super::bindings::Piece;
use crate::{
    client::{Fetched, SidecarError, Socket, fetch_secret},
    crypto::equal_in_constant_time,
    model::SecretName,
};

/// How often a secret is read again that changes while its fields are read.
const ATTEMPTS: usize = 5;

/// Why a secret is not to be had.
#[derive(Debug, thiserror::Error)]
#[error("secret {secret}: {error}")]
pub struct FetchError {
    secret: SecretName,
    error: SidecarError,
}

impl FetchError {
    /// Whether waiting won't help.
    pub(super) fn is_final(&self) -> bool {
        self.error.is_final()
    }

    /// Whether there is no such secret, which may come: a file that is mounted, a path that somebody is about to write.
    pub(super) fn is_missing(&self) -> bool {
        self.error.is_missing()
    }
}

/// The values of everything that the program gets.
pub(super) struct Values(BTreeMap<Piece, Zeroizing<Vec<u8>>>);

impl Values {
    /// Reads them, all fields of one secret in one version.
    pub(super) async fn fetch(
        socket: &Socket,
        pieces: &BTreeSet<Piece>,
    ) -> Result<Self, FetchError> {
        let mut values = BTreeMap::new();
        let mut secrets: BTreeMap<&SecretName, Vec<&Piece>> = BTreeMap::new();
        for piece in pieces {
            secrets.entry(&piece.secret).or_default().push(piece);
        }
        for (secret, pieces) in secrets {
            let read = read(socket, &pieces).await.map_err(|error| FetchError {
                secret: secret.clone(),
                error,
            })?;
            values.extend(pieces.into_iter().cloned().zip(read));
        }
        Ok(Self(values))
    }

    /// A value that was fetched; every piece of the bindings was.
    pub(super) fn of(&self, piece: &Piece) -> &[u8] {
        self.0.get(piece).map_or(&[], |value| value)
    }

    /// The secrets whose values are others there.
    pub(super) fn changed(&self, other: &Self) -> BTreeSet<SecretName> {
        let differs = |piece: &&Piece| !equal_in_constant_time(self.of(piece), other.of(piece));
        self.0
            .keys()
            .filter(differs)
            .map(|piece| piece.secret.clone())
            .collect()
    }
}

/// The values of one secret's pieces, all of the same version: a new password with an old user would open nothing.
async fn read(socket: &Socket, pieces: &[&Piece]) -> Result<Vec<Zeroizing<Vec<u8>>>, SidecarError> {
    for _ in 0..ATTEMPTS {
        let mut read: Vec<Fetched> = Vec::with_capacity(pieces.len());
        for piece in pieces {
            read.push(fetch_secret(socket, &piece.secret, piece.field.as_deref()).await?);
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
