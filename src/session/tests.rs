//! Sessions on keyrings that are built in memory.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;

use super::{
    ItemProcessor, Session, SessionError,
    error::UnavailableReason,
    message_buffer,
    testing::{
        AAD, ID, activate, after, empty_keyring, keyring_with, keys, manifest, start, table, wave,
    },
};
use crate::{
    crypto::{CiphertextError, PREFIX_LEN, Sealer},
    keyring::{Policy, State, WaveSelector},
    model::Operation,
    refresh::{Keyring, testing::ManualKeyring},
};

fn session(keyring: &ManualKeyring, now: Timestamp) -> Session<&Keyring> {
    Session::new(&*keyring.keyring, now).expect("loaded")
}

fn encrypting_version(keyring: &ManualKeyring, now: Timestamp) -> Result<u32, SessionError> {
    session(keyring, now)
        .encryptor()
        .map(|encryptor| encryptor.version())
}

/// A message under a version, whether or not the keyring has it.
fn message(version: u32) -> Vec<u8> {
    let mut message = message_buffer(4);
    message.extend_from_slice(b"text");
    let mut sealer = Sealer::new(&keys(version), ID, version).expect("random");
    sealer.seal(AAD, &mut message, 0);
    message
}

async fn decrypt(session: &mut Session<&Keyring>, version: u32) -> Result<u32, SessionError> {
    let mut message = message(version);
    let (plaintext, version) = session.decrypt(AAD, &mut message).await?;
    assert_eq!(plaintext, b"text");
    Ok(version)
}

fn lease_seconds() -> i64 {
    i64::try_from(Policy::default().encrypt_lease.0.as_secs()).expect("in range")
}

#[test]
fn a_keyring_that_is_not_loaded_has_no_sessions() {
    let keyring = empty_keyring("standard");
    let error = Session::new(&*keyring.keyring, start()).err();
    assert_eq!(error, Some(SessionError::NotLoaded));
    assert!(SessionError::NotLoaded.retry_after().is_some());
}

#[test]
fn the_primary_of_the_wave_encrypts() {
    for (name, expected) in [("standard", 1), ("canary", 2)] {
        let mut manifest = manifest(2);
        activate(&mut manifest, 2, WaveSelector::One(wave("canary")), start());
        let keyring = empty_keyring(name);
        keyring.activate(table(manifest, name, &[]), start());
        assert_eq!(encrypting_version(&keyring, start()), Ok(expected));
    }
}

#[test]
fn a_scheduled_takeover_happens_at_its_time() {
    let mut manifest = manifest(2);
    activate(&mut manifest, 2, WaveSelector::Every, after(3600));
    let keyring = keyring_with(table(manifest, "standard", &[]));
    assert_eq!(encrypting_version(&keyring, after(3599)), Ok(1));
    assert_eq!(encrypting_version(&keyring, after(3600)), Ok(2));
}

#[test]
fn a_wave_without_an_activation_has_no_primary() {
    let mut manifest = manifest(1);
    manifest.activations[0].wave = WaveSelector::One(wave("canary"));
    let keyring = keyring_with(table(manifest, "standard", &[]));
    let expected = SessionError::NoPrimary {
        wave: wave("standard"),
    };
    assert_eq!(encrypting_version(&keyring, start()), Err(expected));
}

#[test]
fn the_former_primary_stands_in_while_the_primary_is_not_unwrapped() {
    let mut manifest = manifest(2);
    activate(&mut manifest, 2, WaveSelector::Every, start());
    let keyring = keyring_with(table(manifest, "standard", &[2]));
    assert_eq!(encrypting_version(&keyring, start()), Ok(1));
}

#[test]
fn a_compromised_version_does_not_stand_in() {
    let mut manifest = manifest(2);
    activate(&mut manifest, 2, WaveSelector::Every, start());
    manifest.versions[0].compromised = true;
    let keyring = keyring_with(table(manifest, "standard", &[2]));
    let expected = SessionError::VersionUnavailable {
        version: 2,
        reason: UnavailableReason::NotUnwrapped,
    };
    assert_eq!(encrypting_version(&keyring, start()), Err(expected));
}

#[tokio::test]
async fn an_expired_lease_stops_encrypting_but_not_decrypting() {
    let keyring = keyring_with(table(manifest(1), "standard", &[]));
    let end = after(lease_seconds());
    assert_eq!(
        encrypting_version(&keyring, after(lease_seconds() - 1)),
        Ok(1)
    );
    let expected = SessionError::LeaseExpired { at: end };
    assert_eq!(expected.retry_after(), Some(Duration::from_secs(60)));
    assert_eq!(encrypting_version(&keyring, end), Err(expected));
    assert_eq!(decrypt(&mut session(&keyring, end), 1).await, Ok(1));
}

#[tokio::test]
async fn a_version_without_keys_is_reported_by_its_state() {
    let mut manifest = manifest(4);
    manifest.versions[1].state = State::Disabled;
    manifest.versions[2].state = State::Destroyed;
    let keyring = keyring_with(table(manifest, "standard", &[4]));
    let mut session = session(&keyring, start());
    for (version, expected) in [
        (2, SessionError::VersionDisabled { version: 2 }),
        (3, SessionError::VersionDestroyed { version: 3 }),
        (
            4,
            SessionError::VersionUnavailable {
                version: 4,
                reason: UnavailableReason::NotUnwrapped,
            },
        ),
    ] {
        assert_eq!(expected.version(), Some(version));
        assert_eq!(decrypt(&mut session, version).await, Err(expected));
    }
    assert_eq!(decrypt(&mut session, 1).await, Ok(1));
}

#[tokio::test]
async fn what_is_no_message_of_the_keyring_causes_no_refresh() {
    let mut keyring = keyring_with(table(manifest(1), "standard", &[]));
    let active = Arc::clone(&keyring.keyring);
    let mut session = Session::new(&*active, start()).expect("loaded");
    let mut foreign = message(9);
    foreign[1] ^= 1;
    let error = session.decrypt(AAD, &mut foreign).await.err();
    assert_eq!(error, Some(CiphertextError::WrongKeyring.into()));
    let error = session.decrypt(AAD, &mut [1; 10]).await.err();
    assert!(matches!(error, Some(SessionError::Message(_))), "{error:?}");
    assert!(!keyring.has_requests());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_version_is_decrypted_after_a_refresh() {
    let mut keyring = keyring_with(table(manifest(1), "standard", &[]));
    let active = Arc::clone(&keyring.keyring);
    let mut session = Session::new(&*active, start()).expect("loaded");
    let (version, requested) = tokio::join!(
        decrypt(&mut session, 2),
        keyring.answer(|keyring| {
            keyring.activate(table(manifest(2), "standard", &[]), start());
        })
    );
    assert_eq!((version, requested), (Ok(2), 2));
}

#[tokio::test(start_paused = true)]
async fn one_request_refreshes_once_for_all_unknown_versions() {
    let mut keyring = keyring_with(table(manifest(1), "standard", &[]));
    let active = Arc::clone(&keyring.keyring);
    let mut session = Session::new(&*active, start()).expect("loaded");
    let unknown = |version| {
        Err(SessionError::VersionUnavailable {
            version,
            reason: UnavailableReason::Unknown,
        })
    };
    let (result, _) = tokio::join!(decrypt(&mut session, 8), keyring.answer(|_| {}));
    assert_eq!(result, unknown(8));
    assert_eq!(decrypt(&mut session, 9).await, unknown(9));
    assert!(!keyring.has_requests(), "the session has refreshed already");

    let mut other = Session::new(&*active, start()).expect("loaded");
    assert_eq!(decrypt(&mut other, 8).await, unknown(8));
    assert!(!keyring.has_requests(), "the miss is remembered");
    let (result, requested) = tokio::join!(decrypt(&mut other, 9), keyring.answer(|_| {}));
    assert_eq!((result, requested), (unknown(9), 9));
}

#[tokio::test]
async fn a_version_that_was_unwrapped_meanwhile_is_taken_from_the_active_snapshot() {
    let mut keyring = keyring_with(table(manifest(2), "standard", &[2]));
    let active = Arc::clone(&keyring.keyring);
    let mut session = Session::new(&*active, start()).expect("loaded");
    keyring.activate(table(manifest(2), "standard", &[]), start());
    assert_eq!(decrypt(&mut session, 2).await, Ok(2));
    assert!(!keyring.has_requests());
}

#[tokio::test]
async fn items_are_processed_in_place() {
    let mut manifest = manifest(2);
    activate(&mut manifest, 2, WaveSelector::Every, start());
    let keyring = keyring_with(table(manifest, "standard", &[]));
    let processor = |operation| {
        let session = Session::new(Arc::clone(&keyring.keyring), start()).expect("loaded");
        ItemProcessor::new(operation, session).expect("encrypts")
    };
    let mut buffer = b"before".to_vec();
    buffer.extend_from_slice(&message(1));
    let mut rewrap = processor(Operation::Rewrap);
    assert_eq!(rewrap.encrypting_version(), Some(2));
    assert_eq!(rewrap.process(AAD, &mut buffer, 6).await, Ok(2));
    let mut decrypt = processor(Operation::Decrypt);
    assert_eq!(decrypt.encrypting_version(), None);
    assert_eq!(decrypt.process(AAD, &mut buffer, 6).await, Ok(2));
    assert_eq!(&buffer[..6], b"before");
    assert_eq!(&buffer[6 + PREFIX_LEN..], b"text");
    let mut encrypt = processor(Operation::Encrypt);
    assert_eq!(encrypt.process(AAD, &mut buffer, 6).await, Ok(2));
    assert_eq!(decrypt.process(AAD, &mut buffer, 6).await, Ok(2));
    assert_eq!(&buffer[6 + PREFIX_LEN..], b"text");
}

#[test]
fn a_batch_keeps_its_version_until_the_lease_it_began_with_ends() {
    let keyring = keyring_with(table(manifest(2), "standard", &[]));
    let session = Session::new(Arc::clone(&keyring.keyring), start()).expect("loaded");
    let mut processor = ItemProcessor::new(Operation::Encrypt, session).expect("encrypts");
    let mut rotated = manifest(2);
    activate(&mut rotated, 2, WaveSelector::Every, start());
    keyring.activate(table(rotated, "standard", &[]), after(60));
    assert_eq!(processor.advance(after(lease_seconds() - 1)), Ok(()));
    let end = after(lease_seconds());
    let expected = SessionError::LeaseExpired { at: end };
    assert_eq!(processor.advance(end), Err(expected));
}

#[test]
fn a_confirmed_manifest_extends_the_lease_of_a_stream_in_progress() {
    let keyring = keyring_with(table(manifest(1), "standard", &[]));
    let session = Session::new(Arc::clone(&keyring.keyring), start()).expect("loaded");
    let (mut encryptor, _) = session.stream_encryptor(AAD).expect("encrypts");
    keyring.activate(table(manifest(1), "standard", &[]), after(60));
    let mut chunk = b"last".to_vec();
    let now = after(lease_seconds() + 59);
    assert_eq!(encryptor.encrypt(now, true, &mut chunk, 0), Ok(()));
}

#[test]
fn a_stream_ends_when_its_version_is_disabled() {
    let keyring = keyring_with(table(manifest(2), "standard", &[]));
    let session = Session::new(Arc::clone(&keyring.keyring), start()).expect("loaded");
    let (mut encryptor, _) = session.stream_encryptor(AAD).expect("encrypts");
    let mut disabled = manifest(2);
    activate(&mut disabled, 2, WaveSelector::Every, start());
    disabled.versions[0].state = State::Disabled;
    keyring.activate(table(disabled, "standard", &[]), after(1));
    let expected = SessionError::VersionDisabled { version: 1 };
    let mut chunk = b"last".to_vec();
    assert_eq!(
        encryptor.encrypt(after(1), true, &mut chunk, 0),
        Err(expected)
    );
}

/// The keyring's counts of version 2, and when it was last used.
fn usage(keyring: &ManualKeyring) -> ([u64; 2], Option<Timestamp>) {
    let snapshot = keyring.keyring.snapshot().clone().expect("loaded");
    let usage = snapshot.usage(2).expect("version 2");
    let uses = usage.uses();
    ([uses.encrypted, uses.decrypted], usage.last_used())
}

/// A keyring whose primary is version 2.
fn rotated_keyring() -> ManualKeyring {
    let mut manifest = manifest(2);
    activate(&mut manifest, 2, WaveSelector::Every, start());
    keyring_with(table(manifest, "standard", &[]))
}

#[tokio::test]
async fn every_message_counts_as_a_use_of_its_version_at_its_time() {
    let keyring = rotated_keyring();
    assert_eq!(usage(&keyring), ([0, 0], None));
    assert_eq!(decrypt(&mut session(&keyring, after(1)), 2).await, Ok(2));
    assert_eq!(usage(&keyring), ([0, 1], Some(after(1))));
    let session = session(&keyring, after(2));
    let mut processor = ItemProcessor::new(Operation::Rewrap, session).expect("encrypts");
    assert_eq!(processor.operation(), Operation::Rewrap);
    processor
        .process(AAD, &mut message(1), 0)
        .await
        .expect("ok");
    assert_eq!(usage(&keyring), ([1, 1], Some(after(2))));
    processor.advance(after(3)).expect("the lease lasts");
    processor
        .process(AAD, &mut message(2), 0)
        .await
        .expect("ok");
    assert_eq!(usage(&keyring), ([2, 2], Some(after(3))));
}

#[tokio::test]
async fn a_stream_counts_once_and_is_in_use_until_its_last_chunk() {
    let keyring = rotated_keyring();
    let session = || Session::new(Arc::clone(&keyring.keyring), after(1)).expect("loaded");
    let (mut encryptor, prefix) = session().stream_encryptor(AAD).expect("encrypts");
    assert_eq!(encryptor.version(), 2);
    assert_eq!(usage(&keyring), ([1, 0], Some(after(1))));
    let mut chunk = b"last".to_vec();
    assert_eq!(encryptor.encrypt(after(2), true, &mut chunk, 0), Ok(()));
    assert_eq!(usage(&keyring), ([1, 0], Some(after(2))));

    let decryptor = session().stream_decryptor(AAD, &prefix).await;
    let mut decryptor = decryptor.expect("version 2 is unwrapped");
    assert_eq!(decryptor.version(), 2);
    assert_eq!(usage(&keyring), ([1, 1], Some(after(2))));
    let length = decryptor.decrypt(after(3), true, &mut chunk);
    assert_eq!(length, Ok(4));
    assert_eq!(&chunk[..4], b"last");
    assert_eq!(usage(&keyring), ([1, 1], Some(after(3))));
}

#[tokio::test]
async fn streams_hold_their_version_until_they_end() {
    let keyring = rotated_keyring();
    let open = || {
        let snapshot = keyring.keyring.snapshot().clone().expect("loaded");
        snapshot.usage(2).expect("version 2").uses().open
    };
    let session = || Session::new(Arc::clone(&keyring.keyring), after(1)).expect("loaded");
    let (encryptor, prefix) = session().stream_encryptor(AAD).expect("encrypts");
    assert_eq!(open(), 1);
    let decryptor = session().stream_decryptor(AAD, &prefix).await;
    let decryptor = decryptor.expect("version 2 is unwrapped");
    assert_eq!(open(), 2);
    drop(encryptor);
    assert_eq!(open(), 1);
    drop(decryptor);
    assert_eq!(open(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_batch_refreshes_again_after_its_time_moved_on() {
    let mut keyring = keyring_with(table(manifest(1), "standard", &[]));
    let session = Session::new(Arc::clone(&keyring.keyring), start()).expect("loaded");
    let mut processor = ItemProcessor::new(Operation::Decrypt, session).expect("decrypts");
    let (mut early, mut late) = (message(8), message(2));
    let (result, _) = tokio::join!(
        processor.process(AAD, &mut early, 0),
        keyring.answer(|_| {})
    );
    assert_eq!(result.map_err(|error| error.version()), Err(Some(8)));
    processor
        .advance(after(1))
        .expect("decrypting has no lease");
    let (result, requested) = tokio::join!(
        processor.process(AAD, &mut late, 0),
        keyring.answer(|keyring| {
            keyring.activate(table(manifest(2), "standard", &[]), after(1));
        })
    );
    assert_eq!((result, requested), (Ok(2), 2));
}

#[test]
fn a_retry_is_advised_only_where_it_may_succeed() {
    let unavailable = |reason| SessionError::VersionUnavailable { version: 4, reason };
    for (error, expected, message) in [
        (
            unavailable(UnavailableReason::NotUnwrapped),
            Some(Duration::from_secs(1)),
            "key version 4 has not been unwrapped by its KEKs yet; try again",
        ),
        (
            unavailable(UnavailableReason::Unknown),
            Some(Duration::from_secs(1)),
            "key version 4 is not in the newest readable manifest; try again",
        ),
        (
            SessionError::VersionDestroyed { version: 4 },
            None,
            "key version 4 was destroyed permanently",
        ),
    ] {
        assert_eq!(
            (error.retry_after(), error.to_string().as_str()),
            (expected, message)
        );
    }
}
