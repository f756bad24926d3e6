//! Data keys wrapped under a KEK that this process holds, and the context that binds the wraps of
//! every backend.

use aws_lc_rs::digest::{SHA256, digest};
use zeroize::Zeroizing;

use super::{
    Dek, KEY_LEN, KeyringId, RandomnessUnavailable, SecretKey, equal_in_constant_time, random,
    xaes::{DerivedKey, NONCE_LEN, TAG_LEN},
};

/// The context that a wrap is bound to: it opens only for this keyring and version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WrapContext {
    /// The keyring's id.
    pub keyring: KeyringId,
    /// The key version.
    pub version: u32,
}

impl WrapContext {
    /// Returns the context as bytes, for a KEK that accepts additional authenticated data.
    pub fn to_bytes(self) -> Vec<u8> {
        [
            b"sidekey wrap v1".as_slice(),
            &self.keyring.0,
            &self.version.to_be_bytes(),
        ]
        .concat()
    }
}

/// Appends the SHA-256 (FIPS 180-4) of the context to a data key, for a KEK without AAD to encrypt.
pub fn bind_dek(dek: &Dek, context: WrapContext) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(
        [
            dek.expose().as_slice(),
            digest(&SHA256, &context.to_bytes()).as_ref(),
        ]
        .concat(),
    )
}

/// Returns the data key in the output of [`bind_dek`], or `None` if its context differs.
pub fn unbind_dek(bound: &[u8], context: WrapContext) -> Option<Dek> {
    let (dek, hash) = bound.split_at_checked(KEY_LEN)?;
    equal_in_constant_time(hash, digest(&SHA256, &context.to_bytes()).as_ref())
        .then(|| Dek::from_slice(dek))?
}

const FORMAT: u8 = 0x01;
const WRAP_LEN: usize = 1 + NONCE_LEN + KEY_LEN + TAG_LEN;

/// Wraps a data key with XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>): format byte 0x01, nonce
/// (24 bytes), encrypted key (32), tag (16).
///
/// # Errors
/// [`RandomnessUnavailable`]
pub fn wrap_dek(
    kek: &SecretKey,
    dek: &Dek,
    context: WrapContext,
) -> Result<Vec<u8>, RandomnessUnavailable> {
    let nonce = random()?;
    let mut wrap = Vec::with_capacity(WRAP_LEN);
    wrap.push(FORMAT);
    wrap.extend_from_slice(&nonce);
    wrap.extend_from_slice(dek.expose());
    let sealed = DerivedKey::new(kek.expose(), &nonce)
        .and_then(|key| key.seal(&nonce, &context.to_bytes(), &mut wrap[1 + NONCE_LEN..]));
    // Key and input have fixed lengths within the algorithm's limits.
    let Ok(tag) = sealed else {
        panic!("XAES-256-GCM seals 32 bytes")
    };
    wrap.extend_from_slice(&tag);
    Ok(wrap)
}

/// Unwraps a data key. Returns `None` if the wrap was made under another KEK, was modified, or has
/// another context.
pub fn unwrap_dek(kek: &SecretKey, wrap: &[u8], context: WrapContext) -> Option<Dek> {
    let wrap: &[u8; WRAP_LEN] = wrap.try_into().ok()?;
    let ([FORMAT], rest) = wrap.split_first_chunk::<1>()? else {
        return None;
    };
    let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
    let mut sealed = Zeroizing::new(sealed.to_vec());
    let dek = DerivedKey::new(kek.expose(), nonce).and_then(|key| {
        key.open(nonce, &context.to_bytes(), &mut sealed)
            .map(|dek| Dek::from_slice(dek))
    });
    dek.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: WrapContext = WrapContext {
        keyring: KeyringId([7; 16]),
        version: 3,
    };

    fn key(byte: u8) -> SecretKey {
        SecretKey::from_slice(&[byte; 32]).expect("32 bytes")
    }

    #[test]
    fn unwraps_under_the_same_kek_and_context_only() {
        let dek = Dek::generate().expect("random");
        let wrap = wrap_dek(&key(1), &dek, CONTEXT).expect("wrap");
        assert_eq!(
            unwrap_dek(&key(1), &wrap, CONTEXT)
                .expect("unwrap")
                .expose(),
            dek.expose()
        );
        assert!(unwrap_dek(&key(2), &wrap, CONTEXT).is_none());
        let (mut other_version, mut other_keyring) = (CONTEXT, CONTEXT);
        other_version.version = 4;
        other_keyring.keyring = KeyringId([8; 16]);
        assert!(unwrap_dek(&key(1), &wrap, other_version).is_none());
        assert!(unwrap_dek(&key(1), &wrap, other_keyring).is_none());
        for at in 0..wrap.len() {
            let mut changed = wrap.clone();
            changed[at] ^= 1;
            assert!(
                unwrap_dek(&key(1), &changed, CONTEXT).is_none(),
                "byte {at}"
            );
        }
        assert!(unwrap_dek(&key(1), &wrap[1..], CONTEXT).is_none());
    }
}
