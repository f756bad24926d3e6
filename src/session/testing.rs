//! Keyrings that are built in memory.

use std::{collections::BTreeMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};

use crate::{
    clock::Clock,
    crypto::{Dek, KeyringId, VersionKeys},
    keyring::{
        Activation, Document, KeyTable, Manifest, NewVersion, NotUnwrapped, Policy, State,
        Succession, WaveSelector, authenticate, init, rotate,
    },
    model::Wave,
    refresh::testing::ManualKeyring,
};

pub(crate) const AAD: &[u8] = b"aad";
pub(crate) const ID: KeyringId = KeyringId([7; 16]);

pub(crate) fn start() -> Timestamp {
    Timestamp::from_second(1_800_000_000).expect("in range")
}

pub(crate) fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

pub(crate) fn wave(name: &str) -> Wave {
    name.parse().expect("wave")
}

pub(crate) fn dek(version: u32) -> Dek {
    Dek::from_slice(&[version as u8; 32]).expect("32 bytes")
}

pub(crate) fn keys(version: u32) -> VersionKeys {
    VersionKeys::derive(&dek(version)).expect("memory")
}

/// A manifest with `versions` enabled versions, of which the first is primary everywhere.
pub(crate) fn manifest(versions: u32) -> Manifest {
    let new = |version| NewVersion {
        wraps: Vec::new(),
        check: dek(version).check_value(&ID, version),
        key: dek(version).succession_key().public_key(),
    };
    let name = "demo".parse().expect("name");
    let first = init(name, ID, Policy::default(), new(1), start());
    (2..=versions).fold(first, |manifest, version| {
        rotate(&document(manifest), new(version), start())
    })
}

fn document(manifest: Manifest) -> Document {
    let keys = manifest
        .live()
        .map(|version| (version.version, dek(version.version).succession_key()))
        .collect();
    authenticate(manifest, &keys, None).expect("keys")
}

pub(crate) fn activate(manifest: &mut Manifest, version: u32, wave: WaveSelector, at: Timestamp) {
    manifest.activations.push(Activation {
        version,
        wave,
        at,
        generation: None,
    });
}

/// The table of a manifest. Versions in `not_unwrapped` have no keys.
pub(crate) fn table(manifest: Manifest, name: &str, not_unwrapped: &[u32]) -> KeyTable {
    let unwrapped = manifest
        .versions
        .iter()
        .filter(|version| version.state == State::Enabled)
        .map(|version| match version.version {
            number if not_unwrapped.contains(&number) => {
                (number, Err(NotUnwrapped::because("no KEK")))
            }
            number => (number, Ok(keys(number))),
        })
        .collect();
    let document = Arc::new(document(manifest));
    KeyTable::build(
        None,
        document,
        Succession::Newer,
        &unwrapped,
        &BTreeMap::new(),
        wave(name),
        start(),
    )
    .expect("table")
}

pub(crate) fn empty_keyring(name: &str) -> ManualKeyring {
    let (clock, _) = Clock::manual(start());
    ManualKeyring::new("demo", &wave(name), &clock)
}

/// A keyring for wave `standard`, confirmed at [`start`].
pub(crate) fn keyring_with(table: KeyTable) -> ManualKeyring {
    let keyring = empty_keyring("standard");
    keyring.activate(table, start());
    keyring
}
