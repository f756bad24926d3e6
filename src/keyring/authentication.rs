//! MACs (HMAC-SHA-256, RFC 2104) and signatures (Ed25519, RFC 8032) over manifests.

use std::collections::BTreeMap;

use super::{Authentication, Base64, Document, Mac, Manifest, Rejection, Signature};
use crate::{
    crypto::{SigningKey, VersionKeys, verify_signature},
    model::SignerKey,
};

/// Turns a manifest into a document with a MAC by every version that is not destroyed, and with the
/// operator's signature if there is a `signer`.
///
/// # Errors
/// The versions whose keys are missing.
pub fn authenticate(
    manifest: Manifest,
    keys: &BTreeMap<u32, VersionKeys>,
    signer: Option<&SigningKey>,
) -> Result<Document, Vec<u32>> {
    let missing: Vec<u32> = manifest
        .live()
        .map(|version| version.version)
        .filter(|version| !keys.contains_key(version))
        .collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    Ok(Document::compose(manifest, |manifest, canonical| {
        Authentication {
            macs: manifest
                .live()
                .filter_map(|version| {
                    let keys = keys.get(&version.version)?;
                    Some(Mac {
                        version: version.version,
                        mac: Base64(keys.manifest_mac(canonical).to_vec()),
                    })
                })
                .collect(),
            signatures: signer
                .map(|signer| Signature {
                    signer: SignerKey(signer.public_key()),
                    signature: Base64(signer.sign(canonical).to_vec()),
                })
                .into_iter()
                .collect(),
        }
    }))
}

/// Verifies a manifest as a sidecar does: every version in `keys` that isn't destroyed has a valid
/// MAC, there is at least one, and one of `trusted` has signed it unless `trusted` is empty.
///
/// # Errors
/// [`Rejection::Unauthenticated`], [`Rejection::NothingUnwrapped`] or [`Rejection::Unsigned`].
pub fn verify(
    document: &Document,
    keys: &BTreeMap<u32, VersionKeys>,
    trusted: &[SignerKey],
) -> Result<(), Rejection> {
    verify_macs(
        document,
        keys.iter().map(|(version, keys)| (*version, keys)),
    )?;
    verify_signatures(document, trusted)
}

/// Requires a valid MAC by every version in `keys` that isn't destroyed, and by at least one.
pub(super) fn verify_macs<'a>(
    document: &Document,
    keys: impl Iterator<Item = (u32, &'a VersionKeys)>,
) -> Result<(), Rejection> {
    let macs: BTreeMap<u32, &[u8]> = document
        .manifest()
        .authentication
        .macs
        .iter()
        .map(|mac| (mac.version, mac.mac.0.as_slice()))
        .collect();
    let mut verified = 0;
    for (version, keys) in keys {
        // Parsing ensures that only destroyed versions have no MAC.
        let Some(mac) = macs.get(&version) else {
            continue;
        };
        if !keys.verifies_manifest(document.canonical(), mac) {
            return Err(Rejection::Unauthenticated(version));
        }
        verified += 1;
    }
    if verified == 0 {
        Err(Rejection::NothingUnwrapped("no key is held".into()))
    } else {
        Ok(())
    }
}

/// Requires a valid signature by one of `trusted`, unless that is empty.
pub(super) fn verify_signatures(
    document: &Document,
    trusted: &[SignerKey],
) -> Result<(), Rejection> {
    let valid = |signature: &Signature| {
        trusted.contains(&signature.signer)
            && verify_signature(
                &signature.signer.0,
                document.canonical(),
                &signature.signature.0,
            )
    };
    if trusted.is_empty()
        || document
            .manifest()
            .authentication
            .signatures
            .iter()
            .any(valid)
    {
        Ok(())
    } else {
        Err(Rejection::Unsigned)
    }
}
