//! Fuzzes every parser of outside bytes with almost valid input: seeds from the golden files and
//! from `corpus`, mutated at random. Failures are shrunk, saved in `fuzz.txt` and replayed first
//! from then on. `PROPTEST_CASES` makes a run longer.

use std::{collections::BTreeMap, fs, path::Path};

use proptest::{prelude::*, sample::Index, test_runner::FileFailurePersistence};
use sidekey::{
    config,
    crypto::{
        CiphertextError, Header, KeyringId, Opener, PREFIX_LEN, SEALED_CHUNK_LEN, StreamOpener,
        VersionKeys, from_text, to_text,
    },
    keyring::Document,
    scan::{LOOK_BEHIND, Search},
    wire::{Frame, Frames},
};

use crate::support::{
    golden,
    harness::{Client, JSON, World},
};

/// Tokens that parsers treat specially.
const TOKENS: [&[u8]; 16] = [
    b"\0",
    b"\xff\xff\xff\xff",
    b"\n",
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b"sk1.",
    b"-1",
    b"1e400",
    b"\"\"\"",
    b"\xf0\x9f\x97\x9d",
];

#[derive(Debug, Clone)]
enum Change {
    Flip(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// Repeats the bytes at that position.
    Repeat(Index, usize),
    /// Continues with another seed from that position.
    Splice(Index, Index),
}

fn change() -> impl Strategy<Value = Change> {
    let token = prop::sample::select(&TOKENS[..]).prop_map(<[u8]>::to_vec);
    let bytes = prop_oneof![token, prop::collection::vec(any::<u8>(), 1..5)];
    prop_oneof![
        (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Change::Flip(at, bits)),
        (any::<Index>(), bytes).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        (any::<Index>(), 1..40usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (any::<Index>(), 1..40usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        any::<(Index, Index)>().prop_map(|(at, seed)| Change::Splice(at, seed)),
    ]
}

/// One of the seeds, with up to five mutations.
fn almost(seeds: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (any::<Index>(), prop::collection::vec(change(), 0..6)).prop_map(move |(seed, changes)| {
        let mut bytes = seeds[seed.index(seeds.len())].clone();
        for change in changes {
            let end = |at: usize, length: usize, bytes: &[u8]| bytes.len().min(at + length);
            match change {
                Change::Flip(at, bits) if !bytes.is_empty() => {
                    let at = at.index(bytes.len());
                    bytes[at] ^= bits;
                }
                Change::Flip(..) => {}
                Change::Insert(at, more) => {
                    let at = at.index(bytes.len() + 1);
                    bytes.splice(at..at, more);
                }
                Change::Remove(at, length) => {
                    let at = at.index(bytes.len() + 1);
                    bytes.drain(at..end(at, length, &bytes));
                }
                Change::Repeat(at, length) => {
                    let at = at.index(bytes.len() + 1);
                    let again = bytes[at..end(at, length, &bytes)].to_vec();
                    bytes.splice(at..at, again);
                }
                Change::Splice(at, other) => {
                    let other = &seeds[other.index(seeds.len())];
                    bytes.truncate(at.index(bytes.len() + 1));
                    let from = at.index(other.len() + 1);
                    bytes.extend_from_slice(&other[from..]);
                }
            }
        }
        bytes
    })
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("integration/corpus")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// The ciphertexts of the golden files, and the keyring that opens them.
struct Golden {
    id: KeyringId,
    keys: BTreeMap<u32, VersionKeys>,
    ciphertexts: Vec<Vec<u8>>,
}

fn golden() -> Golden {
    let opened = golden::open();
    let keys = opened
        .deks
        .keys()
        .map(|version| (*version, opened.keys(*version)));
    let names = [
        "message-1.bin",
        "message-1-aad.bin",
        "message-1-empty.bin",
        "stream-1.bin",
        "stream-1-empty.bin",
    ];
    Golden {
        id: opened.document.manifest().id,
        keys: keys.collect(),
        ciphertexts: names.map(golden::golden).to_vec(),
    }
}

impl Golden {
    /// Opens a ciphertext without AAD.
    fn open(&self, ciphertext: &[u8]) -> Result<Vec<u8>, CiphertextError> {
        let header = Header::parse(ciphertext, &self.id)?;
        let Some(keys) = self.keys.get(&header.version) else {
            return Err(CiphertextError::DecryptionFailed);
        };
        Opener::default()
            .open(keys, &self.id, &header, b"", &mut ciphertext.to_vec())
            .map(|plaintext| plaintext.to_vec())
    }

    /// Like `open`, for a stream that arrives in chunks.
    fn open_in_chunks(&self, ciphertext: &[u8]) -> Result<Vec<u8>, CiphertextError> {
        let header = Header::parse(ciphertext, &self.id)?;
        let Some(keys) = self.keys.get(&header.version) else {
            return Err(CiphertextError::DecryptionFailed);
        };
        let (prefix, sealed) = ciphertext.split_first_chunk::<PREFIX_LEN>().unwrap();
        let mut opener = StreamOpener::new(keys, &self.id, prefix, b"");
        let mut chunks = sealed.chunks(SEALED_CHUNK_LEN).peekable();
        let mut plaintext = Vec::new();
        while let Some(chunk) = chunks.next() {
            plaintext.extend_from_slice(opener.open(chunks.peek().is_none(), &mut chunk.to_vec())?);
        }
        Ok(plaintext)
    }
}

fn cases(standard: u32) -> ProptestConfig {
    // The environment variable takes precedence.
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() {
        ProptestConfig::default().cases
    } else {
        standard
    };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/integration/fuzz.txt");
    ProptestConfig {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(file))),
        ..ProptestConfig::default()
    }
}

fn run<S: Strategy>(
    standard: u32,
    strategy: S,
    test: impl Fn(S::Value) -> Result<(), TestCaseError>,
) {
    proptest::test_runner::TestRunner::new(cases(standard))
        .run(&strategy, test)
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn modified_ciphertexts_never_decrypt() {
    let golden = golden();
    let originals = golden.ciphertexts.clone();
    run(3000, almost(golden.ciphertexts.clone()), |bytes| {
        let opened = golden.open(&bytes);
        prop_assert!(
            opened.is_err() || originals.contains(&bytes),
            "forged: {bytes:?}"
        );
        if bytes.first() == Some(&2) {
            prop_assert_eq!(golden.open_in_chunks(&bytes), opened);
        }
        Ok(())
    });
}

#[test]
fn text_forms_are_canonical() {
    let seeds = golden()
        .ciphertexts
        .iter()
        .filter(|bytes| bytes.len() < 100)
        .map(|bytes| to_text(bytes).into_bytes())
        .collect();
    run(3000, almost(seeds), |bytes| {
        if let Ok(text) = str::from_utf8(&bytes)
            && let Ok(ciphertext) = from_text(text)
        {
            prop_assert_eq!(to_text(&ciphertext), text);
        }
        Ok(())
    });
}

#[test]
fn malformed_manifests_are_rejected() {
    run(
        3000,
        almost(vec![
            golden::golden("keyring-2.json"),
            golden::golden("keyring-2.canonical.json"),
            golden::golden("keyring-2-rollout.json"),
            golden::golden("keyring-2-policy.json"),
        ]),
        |bytes| {
            if let Ok(document) = Document::parse(bytes.clone()) {
                prop_assert_eq!(document.bytes(), &bytes[..]);
                // The words cover exactly a manifest's content.
                let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
                let again = Document::parse(serde_json::to_vec(&value).unwrap()).unwrap();
                prop_assert_eq!(again.canonical(), document.canonical());
            }
            Ok(())
        },
    );
}

#[test]
fn invalid_configs_name_the_line() {
    run(2000, almost(corpus("config")), |bytes| {
        let text = String::from_utf8_lossy(&bytes);
        if let Err(problems) = config::parse(Path::new("fuzz.toml"), &text) {
            prop_assert!(!problems.items.is_empty());
            for problem in &problems.items {
                prop_assert!(
                    (1..=text.lines().count() + 1).contains(&problem.line),
                    "{problem}"
                );
                prop_assert!(!problem.message.contains('\n'), "{problem}");
            }
        }
        Ok(())
    });
}

#[test]
fn frames_consume_all_bytes_and_buffer_at_most_one() {
    let seeds = vec![
        [
            &[0, 0, 0, 3][..],
            b"abc",
            &[0; 4],
            &[0, 0, 0, 40],
            &[7; 40],
            &[0xff; 12],
        ]
        .concat(),
    ];
    run(3000, (almost(seeds), 1..9usize), |(bytes, size)| {
        let mut frames = Frames::new(30);
        let mut whole = 0;
        for piece in bytes.chunks(size) {
            let mut data = piece;
            while let Some(frame) = frames.next(&mut data) {
                if let Frame::Whole(frame) = frame {
                    prop_assert!(frame.len() <= 30);
                    whole += frame.len() + 4;
                }
            }
            prop_assert!(data.is_empty());
        }
        prop_assert!(whole <= bytes.len());
        Ok(())
    });
}

#[test]
fn a_scan_finds_a_ciphertext_in_any_surroundings() {
    let golden = golden();
    let search = Search::new([golden.id.tag()]).unwrap();
    let message = &golden.ciphertexts[0];
    let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
    let forms = vec![
        to_text(message).into_bytes(),
        message.clone(),
        hex.into_bytes(),
    ];
    let around: Vec<Vec<u8>> = [corpus("json"), corpus("config"), forms.clone()].concat();
    let strategy = (
        almost(around.clone()),
        prop::sample::select(forms),
        almost(around),
        400..2000usize,
    );
    run(2000, strategy, |(before, planted, after, window)| {
        let bytes = [&before[..], &planted, &after].concat();
        let mut found = Vec::new();
        search.look(&bytes, 0, true, |at, finding| found.push((at, finding)));
        prop_assert!(
            found
                .iter()
                .any(|(at, finding)| *at == before.len() && finding.header.version == 2),
            "{found:?}"
        );
        // Regardless of the chunks in which it is read.
        let (mut in_windows, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let from = at.min(LOOK_BEHIND);
            let end = bytes.len().min(at + window);
            let decided = search.look(
                &bytes[at - from..end],
                from,
                end == bytes.len(),
                |found, finding| {
                    in_windows.push((at - from + found, finding));
                },
            );
            at += decided - from;
        }
        prop_assert_eq!(in_windows, found);
        Ok(())
    });
}

#[test]
fn arbitrary_json_bodies_never_cause_a_server_error() {
    let world = World::with_demo();
    let sidecar = world.start();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let client = std::cell::RefCell::new(runtime.block_on(Client::http1(&sidecar.socket)));
    let operations = prop::sample::select(vec!["encrypt", "decrypt", "rewrap"]);
    run(
        1500,
        (almost(corpus("json")), operations),
        |(body, operation)| {
            let path = format!("/v1/keyrings/demo/{operation}");
            let answer = runtime.block_on(client.borrow_mut().post(&path, &[JSON], body));
            match answer.status.as_u16() {
                200 => drop(answer.json()),
                400 | 422 | 503 => drop(answer.problem()),
                status => prop_assert!(false, "{status}: {:?}", answer.body),
            }
            Ok(())
        },
    );
}
