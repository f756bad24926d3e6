//! What is stored under a format can be read for ever: every golden file still opens. Files are added here, never changed.

use std::{collections::BTreeMap, fs, path::PathBuf};

use sidekey::{
    crypto::{Dek, Header, KeyringId, Opener, SecretKey, VersionKeys, WrapContext, from_text, unwrap_dek},
    keyring::{self, Document, State},
};

pub fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("integration/golden").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub struct Opened {
    pub document: Document,
    pub keys: BTreeMap<u32, VersionKeys>,
}

/// The first manifest: a rotation by waves, a disabled version, a destroyed one, a compromised one, a signature.
pub fn open() -> Opened {
    let document = Document::parse(&golden("keyring-1.json")).unwrap();
    let kek = SecretKey::from_slice(&golden("kek")).unwrap();
    let manifest = document.manifest();
    let mut keys = BTreeMap::new();
    for version in manifest.live() {
        let context = WrapContext { keyring: manifest.id, version: version.version };
        let dek: Dek = unwrap_dek(&kek, &version.wraps[0].ciphertext.0, context).expect("the wrap opens");
        assert!(dek.matches_check(&manifest.id, version.version, &version.check.0));
        keys.insert(version.version, VersionKeys::derive(&dek).unwrap());
    }
    Opened { document, keys }
}

#[test]
fn the_manifest_is_authentic() {
    let Opened { document, keys } = open();
    let signer = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=".parse().unwrap();
    keyring::verify(&document, &keys, &[signer]).unwrap();
    assert_eq!(document.canonical(), golden("keyring-1.canonical.json"), "RFC 8785 gives the same bytes for ever");
    let states: Vec<State> = document.manifest().versions.iter().map(|version| version.state).collect();
    assert_eq!(states, [State::Destroyed, State::Disabled, State::Enabled, State::Enabled]);
}

#[test]
fn every_message_decrypts() {
    let Opened { document, keys } = open();
    let id: KeyringId = document.manifest().id;
    let text = String::from_utf8(golden("message-1.txt")).unwrap();
    let messages = [
        ("message-1.bin", golden("message-1.bin"), &b""[..], 2, &b"the first message"[..]),
        ("message-1-aad.bin", golden("message-1-aad.bin"), b"row 7", 3, b"bound to its row"),
        ("message-1-empty.bin", golden("message-1-empty.bin"), b"", 4, b""),
        ("message-1.txt", from_text(text.trim_end()).unwrap(), b"", 4, b"as text"),
        ("stream-1.bin", golden("stream-1.bin"), b"dump.sql", 3, &[b's'; (64 << 10) + 7]),
        ("stream-1-empty.bin", golden("stream-1-empty.bin"), b"", 4, b""),
    ];
    for (name, mut message, aad, version, plaintext) in messages {
        let header = Header::parse(&message, &id).unwrap();
        assert_eq!(header.version, version, "{name}");
        let opened = Opener::default().open(&keys[&version], &id, &header, aad, &mut message);
        assert_eq!(opened.unwrap(), plaintext, "{name}");
    }
}
