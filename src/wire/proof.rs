//! The bodies of `POST /prove` on the ops listener: a question that only a holder of the version's
//! key can answer. They contain no secrets.

use serde::{Deserialize, Serialize};

use super::{in_base64, in_hex};
use crate::model::KeyringName;

/// Asks a sidecar to show that it holds the key of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProofRequest {
    /// The keyring's name.
    pub keyring: KeyringName,
    /// The rollout that asks; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub rollout: [u8; 16],
    /// The version to prove.
    pub version: u32,
    /// Random bytes for this request alone; in base64.
    #[serde(with = "in_base64")]
    pub nonce: [u8; 32],
}

/// The answer to a [`ProofRequest`]. Unknown members are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The process that answers, as in `/status`; 32 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub instance: [u8; 16],
    /// The digest of the manifest that it runs; 64 hexadecimal digits.
    #[serde(with = "in_hex")]
    pub manifest: [u8; 32],
    /// The role of the version for its wave.
    pub role: ProvenRole,
    /// HMAC-SHA-256 by the version's proof key; in base64.
    #[serde(with = "in_base64")]
    pub mac: [u8; 32],
}

/// The role of a version whose key is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProvenRole {
    /// Distributed, but not activated for the wave.
    Pending,
    /// Encrypts and decrypts.
    Primary,
    /// Superseded: decrypts.
    DecryptOnly,
}

impl ProvenRole {
    /// Returns the byte that stands for the role in a proof.
    pub fn code(self) -> u8 {
        match self {
            Self::Pending => 1,
            Self::Primary => 2,
            Self::DecryptOnly => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_has_all_members_and_no_others() {
        let request = json!({
            "keyring": "orders",
            "rollout": "01".repeat(16),
            "version": 2,
            "nonce": "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=",
        });
        let parsed: ProofRequest = serde_json::from_value(request.clone()).expect("valid");
        assert_eq!((parsed.rollout, parsed.nonce), ([1; 16], [3; 32]));
        assert_eq!(serde_json::to_value(&parsed).expect("JSON"), request);
        for (member, value) in [
            ("keyring", json!("")),
            ("rollout", json!("01".repeat(15))),
            ("rollout", json!("0g".repeat(16))),
            ("version", json!(-1)),
            ("nonce", json!("AwMD")),
            ("nonce", json!("!")),
            ("key", json!("AA==")),
        ] {
            let mut other = request.clone();
            other[member] = value;
            serde_json::from_value::<ProofRequest>(other).expect_err(member);
        }
    }

    #[test]
    fn unknown_members_of_a_proof_are_ignored() {
        let proof = json!({
            "instance": "04".repeat(16),
            "manifest": "05".repeat(32),
            "role": "decrypt-only",
            "mac": "BgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgYGBgY=",
            "later": {"members": []},
        });
        let parsed: Proof = serde_json::from_value(proof).expect("valid");
        assert_eq!(parsed.role, ProvenRole::DecryptOnly);
        assert_eq!((parsed.instance, parsed.mac), ([4; 16], [6; 32]));
    }
}
