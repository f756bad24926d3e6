//! The content of a backup, as JSON (docs/format.md): the manifest and the data keys.
//!
//! Plaintext data keys are in these buffers, which are zeroized.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::{
    crypto::{Dek, KEY_LEN, SigningKey},
    keyring::{Document, verify_words},
};

const FORMAT: &str = "sidekey-backup/1";

/// The verified content of a backup: every key matches its commitments in the manifest, and every
/// word verifies.
pub(super) struct Content {
    pub(super) document: Document,
    pub(super) deks: BTreeMap<u32, Dek>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload<'a> {
    format: &'a str,
    made_at: Timestamp,
    #[serde(borrow)]
    keys: Vec<Key<'a>>,
    #[serde(borrow)]
    manifest: &'a RawValue,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Key<'a> {
    version: u32,
    key: &'a str,
}

/// Serializes a backup.
///
/// # Errors
/// The manifest is not JSON, which a parsed one always is.
pub(super) fn write(
    document: &Document,
    deks: &BTreeMap<u32, Dek>,
    now: Timestamp,
) -> Result<Zeroizing<Vec<u8>>, String> {
    let manifest: &RawValue =
        serde_json::from_slice(document.bytes()).map_err(|error| error.to_string())?;
    let encoded: Vec<(u32, Zeroizing<String>)> = deks
        .iter()
        .map(|(version, dek)| (*version, Zeroizing::new(STANDARD.encode(dek.expose()))))
        .collect();
    let keys = encoded
        .iter()
        .map(|(version, key)| Key {
            version: *version,
            key,
        })
        .collect();
    let payload = Payload {
        format: FORMAT,
        made_at: now,
        keys,
        manifest,
    };
    // Large enough that the buffer is never reallocated and leaves no copy.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        document.bytes().len() + 128 * (deks.len() + 4),
    ));
    serde_json::to_writer(&mut *bytes, &payload).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Parses and verifies a backup.
///
/// # Errors
/// The reason, without key material.
pub(super) fn read(bytes: &[u8]) -> Result<Content, String> {
    // serde's own message may quote a value.
    let payload: Payload<'_> = serde_json::from_slice(bytes).map_err(|error| {
        format!(
            "not a backup of a keyring (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    if payload.format != FORMAT {
        return Err(format!("unsupported format; this build reads {FORMAT:?}"));
    }
    let document =
        Document::parse(payload.manifest.get().to_owned()).map_err(|error| error.to_string())?;
    let manifest = document.manifest();
    let mut deks = BTreeMap::new();
    for Key { version, key } in payload.keys {
        let mut bytes = Zeroizing::new([0; KEY_LEN + 3]);
        let dek = match STANDARD.decode_slice(key, &mut *bytes) {
            Ok(length) => Dek::from_slice(&bytes[..length]),
            Err(_) => None,
        };
        let dek = dek.ok_or_else(|| {
            format!("the key of version {version} is not {KEY_LEN} bytes in base64")
        })?;
        let is_listed = manifest
            .version(version)
            .is_some_and(|listed| listed.commits_to(&manifest.id, &dek));
        if !is_listed {
            return Err(format!(
                "the key of version {version} doesn't match the manifest"
            ));
        }
        deks.insert(version, dek);
    }
    if let Some(missing) = manifest
        .live()
        .find(|version| !deks.contains_key(&version.version))
    {
        return Err(format!("the key of version {} is missing", missing.version));
    }
    verify_words(&document).map_err(|error| error.to_string())?;
    Ok(Content { document, deks })
}

/// Derives the succession keys of data keys.
pub(super) fn succession_keys(deks: &BTreeMap<u32, Dek>) -> BTreeMap<u32, SigningKey> {
    deks.iter()
        .map(|(version, dek)| (*version, dek.succession_key()))
        .collect()
}
