//! Proofs that a sidecar holds the key of a version: a MAC by a subkey of its own over what was
//! asked and what answers. docs/format.md specifies every byte.

use super::{KEY_LEN, KeyringId, MAC_LEN, mac::MacKey};
use crate::wire::proof::{Proof, ProofRequest, ProvenRole};

/// Separates this statement from any other under the same key.
const DOMAIN: &[u8; 16] = b"sidekey proof v1";

/// The key of a version's proofs. The library zeroizes it on drop.
pub struct ProofKey(MacKey);

impl ProofKey {
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Self {
        let Some(key) = MacKey::from_slice(key) else {
            unreachable!("a subkey has {KEY_LEN} bytes")
        };
        Self(key)
    }

    /// Answers `request` for the process `instance`, which runs the manifest with the digest
    /// `manifest`, under which the version has `role`.
    pub fn prove(
        &self,
        keyring: KeyringId,
        request: &ProofRequest,
        instance: [u8; 16],
        manifest: [u8; 32],
        role: ProvenRole,
    ) -> Proof {
        let mut proof = Proof {
            instance,
            manifest,
            role,
            mac: [0; MAC_LEN],
        };
        proof.mac = self.0.mac(&statement(keyring, request, &proof).parts());
        proof
    }

    /// Returns whether `proof` answers `request` for the keyring with this id, in constant time.
    pub fn verify(&self, keyring: KeyringId, request: &ProofRequest, proof: &Proof) -> bool {
        let statement = statement(keyring, request, proof);
        self.0.verify(&statement.parts(), &proof.mac)
    }
}

/// The fields that the MAC covers. Each has a fixed length, so no two statements share their bytes.
struct Statement<'p> {
    keyring: KeyringId,
    request: &'p ProofRequest,
    version: [u8; 4],
    proof: &'p Proof,
    role: [u8; 1],
}

fn statement<'p>(keyring: KeyringId, request: &'p ProofRequest, proof: &'p Proof) -> Statement<'p> {
    Statement {
        keyring,
        request,
        version: request.version.to_be_bytes(),
        proof,
        role: [proof.role.code()],
    }
}

impl Statement<'_> {
    fn parts(&self) -> [&[u8]; 8] {
        [
            DOMAIN,
            &self.keyring.0,
            &self.request.rollout,
            &self.version,
            &self.request.nonce,
            &self.proof.instance,
            &self.proof.manifest,
            &self.role,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Dek, VersionKeys, to_hex};

    const ID: KeyringId = KeyringId([7; 16]);

    fn request() -> ProofRequest {
        ProofRequest {
            keyring: "orders".parse().expect("a name"),
            rollout: [1; 16],
            version: 2,
            nonce: [3; 32],
        }
    }

    fn dek() -> Dek {
        Dek::from_slice(&[9; 32]).expect("32 bytes")
    }

    fn proof() -> Proof {
        let role = ProvenRole::Pending;
        dek()
            .proof_key()
            .prove(ID, &request(), [4; 16], [5; 32], role)
    }

    #[test]
    fn a_sidecar_and_the_signer_derive_the_same_key() {
        let keys = VersionKeys::derive(&dek()).expect("memory");
        let (request, role) = (request(), ProvenRole::Pending);
        let answer = keys.proof_key().prove(ID, &request, [4; 16], [5; 32], role);
        assert_eq!(answer, proof());
        assert!(dek().proof_key().verify(ID, &request, &answer));
    }

    #[test]
    fn a_change_of_any_field_is_noticed() {
        let (key, proof) = (dek().proof_key(), proof());
        let is_valid = |id, request: ProofRequest, proof: Proof| key.verify(id, &request, &proof);
        assert!(is_valid(ID, request(), proof.clone()));
        assert!(!is_valid(KeyringId([8; 16]), request(), proof.clone()));
        let asked: [fn(&mut ProofRequest); 3] = [
            |request| request.rollout[0] ^= 1,
            |request| request.version ^= 1,
            |request| request.nonce[31] ^= 1,
        ];
        for change in asked {
            let mut other = request();
            change(&mut other);
            assert!(!is_valid(ID, other, proof.clone()));
        }
        let answered: [fn(&mut Proof); 4] = [
            |proof| proof.instance[15] ^= 1,
            |proof| proof.manifest[0] ^= 1,
            |proof| proof.role = ProvenRole::Primary,
            |proof| proof.mac[0] ^= 1,
        ];
        for change in answered {
            let mut other = proof.clone();
            change(&mut other);
            assert!(!is_valid(ID, request(), other));
        }
        let other = Dek::from_slice(&[8; 32]).expect("32 bytes").proof_key();
        assert!(!other.verify(ID, &request(), &proof));
    }

    /// docs/format.md lists these values.
    #[test]
    fn the_bytes_are_as_specified() {
        let statement = statement(ID, &request(), &proof()).parts().concat();
        assert_eq!(statement.len(), 133);
        let expected = [
            &b"sidekey proof v1"[..],
            &[7; 16],
            &[1; 16],
            &[0, 0, 0, 2],
            &[3; 32],
            &[4; 16],
            &[5; 32],
            &[1],
        ];
        assert_eq!(statement, expected.concat());
        assert_eq!(to_hex(&proof().mac), GOLDEN);
    }

    const GOLDEN: &str = "a9a14b594ac0d6e37ae907ebf84f06d3440a518c252d25d3809e48cdeb5a3682";
}
