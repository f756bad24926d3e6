//! Streams against a second implementation of STREAM (RustCrypto's) under a key derived by hand,
//! and age's test cases for streams (C2SP CCTV, `age/testdata/stream_*`) rebuilt for our key and
//! header.

use aead_stream::{EncryptorBE32, Nonce, StreamBE32};
use aes_gcm::{Aes256Gcm, KeyInit, aead::array::Array};
use aws_lc_rs::hmac::{self, HMAC_SHA256};
use proptest::prelude::*;

use super::*;
use crate::crypto::{Dek, xaes::TAG_LEN};

const ID: KeyringId = KeyringId([0xA5; 16]);
const AAD: &[u8] = b"file 7";
const NONCE: [u8; NONCE_LEN] = *b"ABCDEFGHIJKLMNOPQRSTUVWX";

fn dek() -> Dek {
    Dek::from_slice(&[0x42; 32]).expect("32 bytes")
}

fn keys() -> VersionKeys {
    VersionKeys::derive(&dek()).expect("memory")
}

fn prefix() -> [u8; PREFIX_LEN] {
    let bytes = [&[SUITE_STREAM][..], &ID.0[..4], &[0, 0, 0, 9], &NONCE].concat();
    bytes.try_into().expect("33 bytes")
}

/// One block of HKDF (RFC 5869), by hand from docs/format.md.
fn stream_key(aad: &[u8]) -> [u8; 32] {
    let mac = |key: &[u8], parts: &[&[u8]]| {
        hmac::sign(&hmac::Key::new(HMAC_SHA256, key), &parts.concat())
    };
    let subkey = mac(dek().expose(), &[b"sidekey stream v1", &[1]]);
    let prk = mac(&NONCE, &[subkey.as_ref()]);
    let okm = mac(
        prk.as_ref(),
        &[
            b"sidekey stream v1",
            &prefix()[..9],
            &ID.0,
            &fingerprint(aad),
            &[1],
        ],
    );
    okm.as_ref().try_into().expect("32 bytes")
}

/// A stream of these chunks, of any length, by the second implementation. The last is marked as
/// such.
fn sealed(chunks: &[&[u8]]) -> Vec<u8> {
    let aead = Aes256Gcm::new(&Array(stream_key(AAD)));
    // Seven zero bytes, a counter of four bytes, and the flag: our nonce below 2^32 chunks.
    let nonce = Nonce::<Aes256Gcm, StreamBE32<Aes256Gcm>>::default();
    let mut encryptor = EncryptorBE32::from_aead(aead, &nonce);
    let mut stream = prefix().to_vec();
    let (last, others) = chunks.split_last().expect("a chunk");
    for chunk in others {
        stream.extend(encryptor.encrypt_next(*chunk).expect("encrypt"));
    }
    stream.extend(encryptor.encrypt_last(*last).expect("encrypt"));
    stream
}

/// Like [`sealed`], but no chunk is marked as the last.
fn endless(chunks: &[&[u8]]) -> Vec<u8> {
    let mut stream = sealed(&[chunks, &[b"cut off"]].concat());
    stream.truncate(stream.len() - b"cut off".len() - TAG_LEN);
    stream
}

/// Decrypts a stream chunk by chunk.
fn open_chunkwise(stream: &[u8], aad: &[u8]) -> Result<Vec<u8>, CiphertextError> {
    Header::parse(stream, &ID)?;
    let (prefix, sealed) = stream
        .split_first_chunk::<PREFIX_LEN>()
        .expect("a complete prefix");
    let mut opener = StreamOpener::new(&keys(), &ID, prefix, aad);
    let mut chunks = sealed.chunks(SEALED_CHUNK_LEN).peekable();
    let mut plaintext = Vec::new();
    while let Some(chunk) = chunks.next() {
        plaintext.extend_from_slice(opener.open(chunks.peek().is_none(), &mut chunk.to_vec())?);
    }
    Ok(plaintext)
}

fn open_in_memory(stream: &[u8], aad: &[u8]) -> Result<Vec<u8>, CiphertextError> {
    Header::parse(stream, &ID)?;
    StreamOpener::open_all(&keys(), &ID, aad, &mut stream.to_vec())
        .map(|plaintext| plaintext.to_vec())
}

fn opens(name: &str, stream: &[u8], plaintext: &[u8]) {
    assert!(
        open_chunkwise(stream, AAD).expect(name) == plaintext,
        "{name}"
    );
    assert!(
        open_in_memory(stream, AAD).expect(name) == plaintext,
        "{name}"
    );
    assert_eq!(
        opened_stream_len(stream.len() as u64),
        Some(plaintext.len() as u64),
        "{name}"
    );
    assert_eq!(
        sealed_stream_len(plaintext.len() as u64),
        Some(stream.len() as u64),
        "{name}"
    );
}

fn fails(name: &str, stream: &[u8]) {
    let (one, other) = (open_chunkwise(stream, AAD), open_in_memory(stream, AAD));
    assert!(one.is_err(), "{name}");
    assert_eq!(one, other, "{name}");
}

fn full_chunk(byte: u8) -> Vec<u8> {
    vec![byte; CHUNK_LEN]
}

#[test]
fn the_valid_streams_of_age_open() {
    let (a, b, c) = (full_chunk(b'a'), full_chunk(b'b'), full_chunk(b'c'));
    opens("stream_empty_payload", &sealed(&[b""]), b"");
    opens("stream_last_chunk_full", &sealed(&[&a]), &a);
    opens(
        "stream_two_chunks",
        &sealed(&[&a, b"more"]),
        &[&a[..], b"more"].concat(),
    );
    opens(
        "stream_last_chunk_full_second",
        &sealed(&[&a, &b]),
        &[&a[..], &b].concat(),
    );
    opens(
        "stream_three_chunks",
        &sealed(&[&a, &b, &c[..100]]),
        &[&a[..], &b, &c[..100]].concat(),
    );
}

#[test]
fn the_invalid_streams_of_age_are_refused() {
    let (a, b) = (full_chunk(b'a'), full_chunk(b'b'));
    let flipped = |mut stream: Vec<u8>, at: usize| {
        stream[at] ^= 1;
        stream
    };
    let cut = |mut stream: Vec<u8>, by: usize| {
        stream.truncate(stream.len() - by);
        stream
    };
    let with = |mut stream: Vec<u8>, more: &[u8]| {
        stream.extend_from_slice(more);
        stream
    };
    let short = sealed(&[b"age"]);
    fails("stream_bad_tag", &flipped(short.clone(), short.len() - 1));
    let second = sealed(&[&a, b"age"]);
    fails(
        "stream_bad_tag_second_chunk",
        &flipped(second.clone(), second.len() - 1),
    );
    let full = sealed(&[&a, &b]);
    fails(
        "stream_bad_tag_second_chunk_full",
        &flipped(full.clone(), full.len() - 1),
    );
    fails("stream_last_chunk_empty", &sealed(&[&a, b""]));
    fails("stream_missing_tag", &cut(short.clone(), TAG_LEN));
    fails("stream_no_chunks", &prefix());
    fails("stream_no_final", &endless(&[b"age"]));
    fails("stream_no_final_full", &endless(&[&a]));
    fails("stream_no_final_two_chunks", &endless(&[&a, b"age"]));
    fails("stream_no_final_two_chunks_full", &endless(&[&a, &b]));
    fails("stream_no_nonce", &prefix()[..HEADER_LEN]);
    fails("stream_short_chunk", &sealed(&[&a[..100], b"age"]));
    fails("stream_short_nonce", &prefix()[..PREFIX_LEN - 1]);
    fails(
        "stream_short_second_chunk",
        &sealed(&[&a, &b[..100], b"age"]),
    );
    fails(
        "stream_trailing_garbage_long",
        &with(short.clone(), &vec![0; SEALED_CHUNK_LEN]),
    );
    fails(
        "stream_trailing_garbage_short",
        &with(short.clone(), &[0; 20]),
    );
    let end = sealed(&[b"age"]).split_off(PREFIX_LEN);
    fails("stream_two_final_chunks", &with(short, &end));
    let end = sealed(&[&a]).split_off(PREFIX_LEN);
    fails("stream_two_final_chunks_full", &with(sealed(&[&a]), &end));
}

#[test]
fn missing_duplicate_and_reordered_chunks_are_refused() {
    let (a, b, c) = (full_chunk(b'a'), full_chunk(b'b'), full_chunk(b'c'));
    let stream = sealed(&[&a, &b, &c, b"end"]);
    let chunk = |number: usize| {
        let start = PREFIX_LEN + number * SEALED_CHUNK_LEN;
        &stream[start..stream.len().min(start + SEALED_CHUNK_LEN)]
    };
    for order in [
        &[0, 2, 3][..],
        &[1, 2, 3],
        &[0, 1, 1, 2, 3],
        &[0, 2, 1, 3],
        &[3, 0, 1, 2],
        &[0, 1, 2, 3, 3],
        &[3],
        &[0, 1, 2],
    ] {
        let rebuilt = [
            &prefix()[..],
            &order
                .iter()
                .flat_map(|number| chunk(*number))
                .copied()
                .collect::<Vec<u8>>(),
        ]
        .concat();
        fails(&format!("{order:?}"), &rebuilt);
    }
    opens("as it was", &stream, &[&a[..], &b, &c, b"end"].concat());
}

#[test]
fn another_aad_keyring_version_or_nonce_is_refused() {
    let stream = sealed(&[b"bound"]);
    assert_eq!(
        open_in_memory(&stream, b"file 8"),
        Err(CiphertextError::DecryptionFailed)
    );
    for at in 5..PREFIX_LEN {
        let mut changed = stream.clone();
        changed[at] ^= 1;
        assert_eq!(
            open_in_memory(&changed, AAD),
            Err(CiphertextError::DecryptionFailed),
            "byte {at}"
        );
    }
    // Another keyring with the same tag.
    let mut twin = ID;
    twin.0[15] ^= 1;
    let opened = StreamOpener::open_all(&keys(), &twin, AAD, &mut stream.clone())
        .map(|plaintext| plaintext.to_vec());
    assert_eq!(opened, Err(CiphertextError::DecryptionFailed));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_sealed_stream_opens_chunkwise_and_in_memory(
        length in 0..3 * CHUNK_LEN, aad: Vec<u8>, version: u32
    ) {
        let plaintext: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
        let (mut sealer, prefix) = StreamSealer::new(&keys(), &ID, version, &aad).expect("random");
        let mut stream = prefix.to_vec();
        let mut chunks = plaintext.chunks(CHUNK_LEN).peekable();
        loop {
            let from = stream.len();
            stream.extend_from_slice(chunks.next().unwrap_or_default());
            let is_last = chunks.peek().is_none();
            sealer.seal(is_last, &mut stream, from);
            if is_last {
                break;
            }
        }
        prop_assert_eq!(sealed_stream_len(length as u64), Some(stream.len() as u64));
        prop_assert_eq!(opened_stream_len(stream.len() as u64), Some(length as u64));
        prop_assert_eq!(Header::parse(&stream, &ID).expect("header").version, version);
        prop_assert!(open_chunkwise(&stream, &aad).expect("open") == plaintext);
        prop_assert!(open_in_memory(&stream, &aad).expect("open") == plaintext);
    }

    #[test]
    fn lengths_of_stream_and_plaintext_agree(stream in 0..10 * SEALED_CHUNK_LEN as u64) {
        if let Some(plaintext) = opened_stream_len(stream) {
            prop_assert_eq!(sealed_stream_len(plaintext), Some(stream));
        }
    }

    #[test]
    fn garbage_is_an_error_and_never_panics(bytes: Vec<u8>) {
        let stream = [&prefix()[..], &bytes].concat();
        prop_assert!(open_chunkwise(&stream, AAD).is_err());
        prop_assert!(open_in_memory(&stream, AAD).is_err());
    }
}
