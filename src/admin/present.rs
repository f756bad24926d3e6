//! The content of a location that may need repair: a manifest, nothing, or a damaged manifest.

use bytes::Bytes;

use super::{access::Admin, error::AdminError};
use crate::{
    backend::ErrorKind,
    keyring::{Document, is_of_another_format},
};

/// What a repair finds and replaces.
pub(super) struct Present {
    /// The exact bytes, for the compare-and-swap; None if the location is empty.
    pub(super) bytes: Option<Bytes>,
    pub(super) document: Option<Document>,
    /// Why the content is not a valid manifest.
    pub(super) damage: Option<String>,
}

impl Admin {
    /// Reads the location.
    ///
    /// # Errors
    /// The store failed; or [`AdminError::Manifest`] for a manifest of another format version,
    /// which is not damaged.
    pub(super) async fn present(&self) -> Result<Present, AdminError> {
        let bytes = match self.read_bytes().await {
            Ok(bytes) => bytes,
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Ok(Present {
                    bytes: None,
                    document: None,
                    damage: None,
                });
            }
            Err(error) => return Err(error.into()),
        };
        match Document::parse(bytes.clone()) {
            Ok(document) => Ok(Present {
                bytes: Some(bytes),
                document: Some(document),
                damage: None,
            }),
            Err(error) if is_of_another_format(&bytes) => Err(AdminError::Manifest {
                location: self.location().clone(),
                error,
            }),
            Err(error) => Ok(Present {
                bytes: Some(bytes),
                document: None,
                damage: Some(error.to_string()),
            }),
        }
    }
}
