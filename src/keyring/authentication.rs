//! Who vouches for a manifest: the words of its versions, testaments, and operators' signatures,
//! all Ed25519 (RFC 8032). Verifying needs public keys only, and no KEK.

use std::collections::BTreeMap;

use super::{
    Authentication, Base64, Document, Manifest, Rejection, Signature, State, Testament, Version,
    Word,
};
use crate::{
    crypto::{KeyringId, SigningKey, fingerprint, verify_signature},
    model::SignerKey,
};

const WORD_LABEL: &[u8] = b"sidekey manifest v2\0";
const TESTAMENT_LABEL: &[u8] = b"sidekey testament v1\0";
const VERSIONS_LABEL: &[u8] = b"sidekey versions v1";

/// Turns a manifest into a document with the word of every version that is not destroyed, a signed
/// testament for each version that this generation destroys, and the operator's signature if there
/// is a `signer`.
///
/// # Errors
/// The versions whose keys are missing.
pub fn authenticate(
    mut manifest: Manifest,
    keys: &BTreeMap<u32, SigningKey>,
    signer: Option<&SigningKey>,
) -> Result<Document, Vec<u32>> {
    let is_unsigned = |testament: &Testament| testament.signature.0.is_empty();
    let signs = |version: &&Version| match &version.testament {
        Some(testament) => is_unsigned(testament),
        None => version.state != State::Destroyed,
    };
    let missing: Vec<u32> = manifest
        .versions
        .iter()
        .filter(signs)
        .map(|version| version.version)
        .filter(|version| !keys.contains_key(version))
        .collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    let chain = Chain::of(&manifest);
    let id = manifest.id;
    for version in &mut manifest.versions {
        if let Some(testament) = &mut version.testament
            && is_unsigned(testament)
            && let Some(key) = keys.get(&version.version)
            && let Some(message) = testament_message(id, version.version, testament, &chain)
        {
            testament.signature = Base64(key.sign(&message).to_vec());
        }
    }
    Ok(Document::compose(manifest, |manifest, canonical| {
        let message = word_message(canonical);
        let word = |version: &Version| {
            Some(Word {
                version: version.version,
                signature: Base64(keys.get(&version.version)?.sign(&message).to_vec()),
            })
        };
        Authentication {
            words: manifest.live().filter_map(word).collect(),
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

/// Verifies the word of every version that is not destroyed and every testament, under the keys
/// that the manifest itself lists. Whether these keys are trusted is for
/// [`examine`](super::examine) to decide.
///
/// # Errors
/// [`Rejection::Unauthenticated`].
pub fn verify_words(document: &Document) -> Result<(), Rejection> {
    let manifest = document.manifest();
    let words: BTreeMap<u32, &[u8]> = manifest
        .authentication
        .words
        .iter()
        .map(|word| (word.version, word.signature.0.as_slice()))
        .collect();
    let message = word_message(document.canonical());
    let chain = Chain::of(manifest);
    for version in &manifest.versions {
        let number = version.version;
        let is_valid = match &version.testament {
            Some(testament) => testament_message(manifest.id, number, testament, &chain)
                .is_some_and(|message| {
                    verify_signature(&version.key.0, &message, &testament.signature.0)
                }),
            None if version.is_lost() => true,
            None => words
                .get(&number)
                .is_some_and(|word| verify_signature(&version.key.0, &message, word)),
        };
        if !is_valid {
            return Err(Rejection::Unauthenticated(number));
        }
    }
    Ok(())
}

/// Requires a valid signature by one of `trusted`, unless that is empty.
///
/// # Errors
/// [`Rejection::Unsigned`].
pub fn verify_signatures(document: &Document, trusted: &[SignerKey]) -> Result<(), Rejection> {
    if trusted.is_empty() || is_signed_by(document, trusted) {
        Ok(())
    } else {
        Err(Rejection::Unsigned)
    }
}

/// Returns whether one of `signers` has signed a manifest.
pub fn is_signed_by(document: &Document, signers: &[SignerKey]) -> bool {
    let valid = |signature: &Signature| {
        signers.contains(&signature.signer)
            && verify_signature(
                &signature.signer.0,
                document.canonical(),
                &signature.signature.0,
            )
    };
    document
        .manifest()
        .authentication
        .signatures
        .iter()
        .any(valid)
}

fn word_message(canonical: &[u8]) -> Vec<u8> {
    [WORD_LABEL, canonical].concat()
}

/// Returns what a testament's signature covers, or `None` if it names a version that is not listed.
fn testament_message(
    id: KeyringId,
    version: u32,
    testament: &Testament,
    chain: &Chain,
) -> Option<Vec<u8>> {
    let count = u32::try_from(testament.heirs.len()).ok()?;
    let mut message = [
        TESTAMENT_LABEL,
        &id.0,
        &version.to_be_bytes(),
        &testament.generation.to_be_bytes(),
        &testament.newest.to_be_bytes(),
        chain.at(testament.newest)?,
        &count.to_be_bytes(),
    ]
    .concat();
    for heir in &testament.heirs {
        message.extend(heir.to_be_bytes());
    }
    Some(message)
}

/// The hash chain L over the check values and succession keys of all versions: L(0) names the
/// keyring, L(i) commits to versions 1 to i.
pub(super) struct Chain {
    /// The version of the first link; those before it were trimmed.
    first: u32,
    links: Vec<[u8; 32]>,
}

impl Chain {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let start = match &manifest.trimmed {
            Some(trimmed) => trimmed.l.0.clone(),
            None => fingerprint(&[VERSIONS_LABEL, &manifest.id.0].concat()).to_vec(),
        };
        let mut links = Vec::with_capacity(manifest.versions.len() + 1);
        let mut link = [0; 32];
        if start.len() == link.len() {
            link.copy_from_slice(&start);
        }
        links.push(link);
        for version in &manifest.versions {
            link = fingerprint(
                &[
                    &link,
                    &version.version.to_be_bytes()[..],
                    &version.check.0,
                    &version.key.0,
                ]
                .concat(),
            );
            links.push(link);
        }
        Self {
            first: manifest.first_version() - 1,
            links,
        }
    }

    /// Returns L(`version`), or `None` if the manifest doesn't reach it.
    pub(super) fn at(&self, version: u32) -> Option<&[u8; 32]> {
        let index = usize::try_from(version.checked_sub(self.first)?).ok()?;
        self.links.get(index)
    }
}
