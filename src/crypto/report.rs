//! The MAC over the counts that a sidecar reports of a keyring: by a subkey of its own, so that only
//! a holder of the version can have counted. docs/format.md specifies every byte.

use super::{KEY_LEN, MAC_LEN, mac::MacKey};
use crate::wire::hub::{KeyringUsage, VersionUsage};

/// Separates this statement from any other under the same key.
const DOMAIN: &[u8; 17] = b"sidekey report v1";
/// The bytes before the versions: domain, keyring, instance, sequence, final, generation and count.
const HEAD_LEN: usize = DOMAIN.len() + 16 + 16 + 8 + 1 + 8 + 4;
/// The bytes of one version.
const VERSION_LEN: usize = 4 + 4 * 8;

/// The key of a version's reports. The library zeroizes it on drop.
pub struct ReportKey(MacKey);

impl ReportKey {
    pub(super) fn new(key: &[u8; KEY_LEN]) -> Self {
        let Some(key) = MacKey::from_slice(key) else {
            unreachable!("a subkey has {KEY_LEN} bytes")
        };
        Self(key)
    }

    /// Returns the MAC of `usage` in the report `sequence` of the process `instance`. What `usage`
    /// says of a MAC doesn't count.
    pub fn mac(
        &self,
        instance: [u8; 16],
        sequence: u64,
        is_final: bool,
        usage: &KeyringUsage,
    ) -> [u8; MAC_LEN] {
        self.0
            .mac(&[&statement(instance, sequence, is_final, usage)])
    }

    /// Returns whether `usage` has the MAC of the report `sequence` of the process `instance`, in
    /// constant time.
    pub fn verify(
        &self,
        instance: [u8; 16],
        sequence: u64,
        is_final: bool,
        usage: &KeyringUsage,
    ) -> bool {
        let statement = statement(instance, sequence, is_final, usage);
        usage
            .mac
            .is_some_and(|mac| self.0.verify(&[&statement], &mac))
    }
}

/// The bytes that the MAC covers. All fields but the last have a fixed length, and the number of
/// versions precedes them, so no two statements share their bytes.
fn statement(instance: [u8; 16], sequence: u64, is_final: bool, usage: &KeyringUsage) -> Vec<u8> {
    let count = u32::try_from(usage.versions.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEAD_LEN + usage.versions.len() * VERSION_LEN);
    bytes.extend_from_slice(DOMAIN);
    bytes.extend_from_slice(&usage.id);
    bytes.extend_from_slice(&instance);
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.push(u8::from(is_final));
    bytes.extend_from_slice(&usage.generation.to_be_bytes());
    bytes.extend_from_slice(&count.to_be_bytes());
    for version in &usage.versions {
        bytes.extend_from_slice(&version.version.to_be_bytes());
        let VersionUsage {
            encrypted,
            decrypted,
            refused,
            open,
            ..
        } = *version;
        for uses in [encrypted, decrypted, refused, open] {
            bytes.extend_from_slice(&uses.to_be_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{Dek, VersionKeys, to_hex};

    const INSTANCE: [u8; 16] = [4; 16];

    fn dek() -> Dek {
        Dek::from_slice(&[9; 32]).expect("32 bytes")
    }

    fn version(version: u32) -> VersionUsage {
        VersionUsage {
            version,
            encrypted: 2,
            decrypted: 3,
            refused: 4,
            open: 5,
        }
    }

    fn usage() -> KeyringUsage {
        let mut usage = KeyringUsage {
            name: "orders".parse().expect("a name"),
            id: [7; 16],
            generation: 6,
            versions: vec![version(1), version(2)],
            mac_version: Some(2),
            mac: None,
        };
        usage.mac = Some(dek().report_key().mac(INSTANCE, 5, false, &usage));
        usage
    }

    #[test]
    fn a_sidecar_and_the_signer_derive_the_same_key() {
        let keys = VersionKeys::derive(&dek()).expect("memory");
        let mac = keys.report_key().mac(INSTANCE, 5, false, &usage());
        assert_eq!(Some(mac), usage().mac);
        assert!(dek().report_key().verify(INSTANCE, 5, false, &usage()));
    }

    #[test]
    fn a_change_of_any_field_is_noticed() {
        let key = dek().report_key();
        assert!(key.verify(INSTANCE, 5, false, &usage()));
        assert!(!key.verify([5; 16], 5, false, &usage()));
        assert!(!key.verify(INSTANCE, 6, false, &usage()));
        assert!(!key.verify(INSTANCE, 5, true, &usage()));
        let changes: [fn(&mut KeyringUsage); 11] = [
            |usage| usage.id[0] ^= 1,
            |usage| usage.generation ^= 1,
            |usage| usage.versions[0].version ^= 1,
            |usage| usage.versions[0].encrypted ^= 1,
            |usage| usage.versions[1].decrypted ^= 1,
            |usage| usage.versions[1].refused ^= 1,
            |usage| usage.versions[1].open ^= 1,
            |usage| usage.versions.truncate(1),
            |usage| usage.versions.push(version(3)),
            |usage| usage.mac = usage.mac.map(|mac| mac.map(|byte| byte ^ 1)),
            |usage| usage.mac = None,
        ];
        for change in changes {
            let mut other = usage();
            change(&mut other);
            assert!(!key.verify(INSTANCE, 5, false, &other));
        }
        let other = Dek::from_slice(&[8; 32]).expect("32 bytes").report_key();
        assert!(!other.verify(INSTANCE, 5, false, &usage()));
    }

    /// docs/format.md lists these values.
    #[test]
    fn the_bytes_are_as_specified() {
        let statement = statement(INSTANCE, 5, true, &usage());
        let number = |number: u64| number.to_be_bytes();
        let expected = [
            &b"sidekey report v1"[..],
            &[7; 16],
            &INSTANCE,
            &number(5),
            &[1],
            &number(6),
            &[0, 0, 0, 2],
            &[0, 0, 0, 1],
            &number(2),
            &number(3),
            &number(4),
            &number(5),
            &[0, 0, 0, 2],
            &number(2),
            &number(3),
            &number(4),
            &number(5),
        ];
        assert_eq!(statement, expected.concat());
        assert_eq!(statement.len(), HEAD_LEN + 2 * VERSION_LEN);
        assert_eq!(statement.len(), 142);
        let mac = dek().report_key().mac(INSTANCE, 5, true, &usage());
        assert_eq!(to_hex(&mac), GOLDEN);
    }

    const GOLDEN: &str = "8b84c8c74fbce3758b2853cae67aae67accde08202e54b8a6e7753721d2e1e4b";
}
