//! The overhead of a message over raw AES-256-GCM of aws-lc-rs, in interleaved slices.

mod common;

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use common::{Goal, Spread, is_test, report};
use sidekey::crypto::{Dek, Header, KeyringId, Opener, Sealer, VersionKeys};

const ID: KeyringId = KeyringId([7; 16]);
const AAD: &[u8] = b"table users, row 4711";

fn main() {
    let dek = Dek::generate().expect("random");
    let keys = VersionKeys::derive(&dek).expect("memory");
    let raw = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).expect("key"));
    for (size, name) in [(256, "256B"), (64 << 10, "64KiB")] {
        let plaintext = vec![3u8; size];
        encrypt(&keys, &raw, &plaintext, name);
        decrypt(&keys, &raw, &plaintext, name);
    }
    encrypt_batch(&keys, &raw);
    decrypt_batch(&keys, &raw);
}

fn encrypt(keys: &VersionKeys, raw: &LessSafeKey, plaintext: &[u8], size: &str) {
    let baseline = || {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).expect("random");
        black_box(seal_raw(raw, nonce, plaintext));
    };
    let seal = || {
        drop(black_box(
            Sealer::new(keys, ID, 1)
                .expect("random")
                .seal_copy(AAD, plaintext),
        ))
    };
    let name = format!("crypto/encrypt/{size}/vs-aes-gcm");
    ratio(&name, seal, baseline, 1.0, &Goal::None);
}

fn decrypt(keys: &VersionKeys, raw: &LessSafeKey, plaintext: &[u8], size: &str) {
    let message = Sealer::new(keys, ID, 1)
        .expect("random")
        .seal_copy(AAD, plaintext);
    let sealed = seal_raw(raw, [0; 12], plaintext);
    let open = || {
        let mut message = message.clone();
        let header = Header::parse(&message, &ID).expect("header");
        Opener::default()
            .open(keys, &ID, &header, AAD, &mut message)
            .expect("open");
        black_box(message);
    };
    let baseline = || {
        black_box(open_raw(raw, [0; 12], &sealed));
    };
    let name = format!("crypto/decrypt/{size}/vs-aes-gcm");
    ratio(&name, open, baseline, 1.0, &Goal::None);
}

/// 100 items of one request, relative to 100 raw encryptions, each with its own nonce.
fn encrypt_batch(keys: &VersionKeys, raw: &LessSafeKey) {
    let plaintext = [3u8; 256];
    let mut random = [0; 12];
    getrandom::fill(&mut random).expect("random");
    let baseline = || {
        for item in 0..100u8 {
            let mut nonce = random;
            nonce[11] = item;
            black_box(seal_raw(raw, nonce, &plaintext));
        }
    };
    let seal = || {
        let mut sealer = Sealer::new(keys, ID, 1).expect("random");
        for _ in 0..100 {
            black_box(sealer.seal_copy(AAD, &plaintext));
        }
    };
    let name = "crypto/batch-100x256B/item-vs-aes-gcm";
    ratio(name, seal, baseline, 100.0, &Goal::AtMost(2.0));
}

fn decrypt_batch(keys: &VersionKeys, raw: &LessSafeKey) {
    let plaintext = [3u8; 256];
    let mut sealer = Sealer::new(keys, ID, 1).expect("random");
    let sealed: Vec<Vec<u8>> = (0..100)
        .map(|_| sealer.seal_copy(AAD, &plaintext))
        .collect();
    let raw_sealed: Vec<Vec<u8>> = (0..100u8)
        .map(|item| seal_raw(raw, [item; 12], &plaintext))
        .collect();
    let open = || {
        let mut opener = Opener::default();
        for message in &sealed {
            let mut message = message.clone();
            let header = Header::parse(&message, &ID).expect("header");
            opener
                .open(keys, &ID, &header, AAD, &mut message)
                .expect("open");
            black_box(message);
        }
    };
    let baseline = || {
        for (item, message) in (0..100u8).zip(&raw_sealed) {
            black_box(open_raw(raw, [item; 12], message));
        }
    };
    let name = "crypto/batch-100x256B/decrypt-item-vs-aes-gcm";
    ratio(name, open, baseline, 100.0, &Goal::AtMost(2.0));
}

fn seal_raw(raw: &LessSafeKey, nonce: [u8; 12], plaintext: &[u8]) -> Vec<u8> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    let mut data = Vec::with_capacity(plaintext.len() + 28);
    data.extend_from_slice(plaintext);
    let tag = raw
        .seal_in_place_separate_tag(nonce, Aad::from(AAD), &mut data)
        .expect("seal");
    data.extend_from_slice(tag.as_ref());
    data
}

fn open_raw(raw: &LessSafeKey, nonce: [u8; 12], sealed: &[u8]) -> Vec<u8> {
    let nonce = Nonce::assume_unique_for_key(nonce);
    let mut data = sealed.to_vec();
    raw.open_in_place(nonce, Aad::from(AAD), &mut data)
        .expect("open");
    data
}

/// Reports the time of `sidekey`, which processes `items`, relative to that of `baseline`.
fn ratio(name: &str, sidekey: impl Fn(), baseline: impl Fn(), items: f64, goal: &Goal) {
    let (rounds, slice) = if is_test() {
        (1, Duration::from_millis(5))
    } else {
        (15, Duration::from_millis(60))
    };
    let mut ratios = Vec::new();
    let mut sidekey_ns = Vec::new();
    for _ in 0..rounds {
        let (base, time) = (per_call(&baseline, slice), per_call(&sidekey, slice));
        ratios.push(time / base);
        sidekey_ns.push(time / items);
    }
    report(name, "x", Spread::of(ratios), goal);
    println!("  {:.0} ns per item", Spread::of(sidekey_ns).median);
}

/// Returns the nanoseconds per call, measured for the length of `slice`.
fn per_call(work: &impl Fn(), slice: Duration) -> f64 {
    let start = Instant::now();
    let mut calls = 0u32;
    while start.elapsed() < slice {
        for _ in 0..8 {
            work();
        }
        calls += 8;
    }
    start.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
}
