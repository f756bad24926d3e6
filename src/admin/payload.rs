//! What a backup holds, as JSON (docs/format.md): the manifest and the data keys.
//!
//! Plain data keys are in these buffers, which are zeroized.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use crate::{
    crypto::{Dek, KEY_LEN, VersionKeys},
    keyring::{self, Document},
};

const FORMAT: &str = "sidekey-backup/1";

/// A backup's content, checked: every key is the one that the manifest commits to, and vouches for
/// it by its MAC.
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

/// Writes a backup's content down.
///
/// # Errors
/// What is wrong with the manifest as JSON, which a parsed one never is.
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
    // Large enough from the start, so that the buffer never moves and leaves no copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        document.bytes().len() + 128 * (deks.len() + 4),
    ));
    serde_json::to_writer(&mut *bytes, &payload).map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// Reads and checks it.
///
/// # Errors
/// What is wrong with it. Never says anything of a key.
pub(super) fn read(bytes: &[u8]) -> Result<Content, String> {
    // serde's own words may quote a value.
    let payload: Payload<'_> = serde_json::from_slice(bytes).map_err(|error| {
        format!(
            "it is not a backup of a keyring (line {}, column {})",
            error.line(),
            error.column()
        )
    })?;
    if payload.format != FORMAT {
        return Err(format!(
            "its format is not {FORMAT:?}, which this build reads"
        ));
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
            format!("its key of version {version} is not {KEY_LEN} bytes in base64")
        })?;
        let check = manifest.version(version).map(|version| &version.check.0);
        if !check.is_some_and(|check| dek.matches_check(&manifest.id, version, check)) {
            return Err(format!(
                "its key of version {version} is not the one that its manifest commits to"
            ));
        }
        deks.insert(version, dek);
    }
    if let Some(missing) = manifest
        .live()
        .find(|version| !deks.contains_key(&version.version))
    {
        return Err(format!("it lacks the key of version {}", missing.version));
    }
    let keys = derive(&deks)?;
    keyring::verify(&document, &keys, &[]).map_err(|error| error.to_string())?;
    Ok(Content { document, deks })
}

/// The subkeys of data keys.
pub(super) fn derive(deks: &BTreeMap<u32, Dek>) -> Result<BTreeMap<u32, VersionKeys>, String> {
    let derive = |(version, dek): (&u32, &Dek)| {
        VersionKeys::derive(dek)
            .map(|keys| (*version, keys))
            .map_err(|error| format!("no memory for keys: {error}"))
    };
    deks.iter().map(derive).collect()
}
