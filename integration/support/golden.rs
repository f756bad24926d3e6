//! The files in integration/golden.

use std::{collections::BTreeMap, fs, path::PathBuf};

use sidekey::{
    crypto::{Dek, SecretKey, VersionKeys, WrapContext, unwrap_dek},
    keyring::Document,
};

pub fn golden(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("integration/golden")
        .join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub struct Opened {
    pub document: Document,
    pub deks: BTreeMap<u32, Dek>,
}

impl Opened {
    pub fn keys(&self, version: u32) -> VersionKeys {
        VersionKeys::derive(&self.deks[&version]).unwrap()
    }
}

/// The first manifest: a rotation by waves, a disabled, a destroyed and a compromised version, and
/// a signature.
pub fn open() -> Opened {
    let document = Document::parse(golden("keyring-2.json")).unwrap();
    let kek = SecretKey::from_slice(&golden("kek")).unwrap();
    let manifest = document.manifest();
    let mut deks = BTreeMap::new();
    for version in manifest.live() {
        let context = WrapContext {
            keyring: manifest.id,
            version: version.version,
        };
        let dek: Dek =
            unwrap_dek(&kek, &version.wraps[0].ciphertext.0, context).expect("the wrap opens");
        assert!(dek.matches_check(&manifest.id, version.version, &version.check.0));
        assert_eq!(dek.succession_key().public_key()[..], version.key.0);
        deks.insert(version.version, dek);
    }
    Opened { document, deks }
}
