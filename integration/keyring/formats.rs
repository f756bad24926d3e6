//! Stored formats stay readable forever: every golden file still opens. Files are added here, never
//! changed.

use std::{fs, path::PathBuf};

use crate::support::golden::{Opened, golden, open};
use sidekey::{
    crypto::{Header, KeyringId, Opener, SecretKey, WrapContext, from_text, unwrap_dek},
    keyring::{self, Document, State},
};

#[test]
fn the_manifest_is_authentic() {
    let Opened { document, .. } = open();
    let signer = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
        .parse()
        .unwrap();
    keyring::verify_words(&document).unwrap();
    keyring::verify_signatures(&document, &[signer]).unwrap();
    assert_eq!(
        document.canonical(),
        golden("keyring-2.canonical.json"),
        "RFC 8785 always yields the same bytes"
    );
    let states: Vec<State> = document
        .manifest()
        .versions
        .iter()
        .map(|version| version.state)
        .collect();
    assert_eq!(
        states,
        [
            State::Destroyed,
            State::Disabled,
            State::Enabled,
            State::Enabled
        ]
    );
}

#[test]
fn a_manifest_that_records_a_backup_is_authentic() {
    let document = Document::parse(golden("keyring-2-backup.json")).unwrap();
    let manifest = document.manifest();
    let kek = SecretKey::from_slice(&golden("kek")).unwrap();
    let context = WrapContext {
        keyring: manifest.id,
        version: 1,
    };
    let dek = unwrap_dek(&kek, &manifest.versions[0].wraps[0].ciphertext.0, context)
        .expect("the wrap opens");
    assert_eq!(
        dek.succession_key().public_key()[..],
        manifest.versions[0].key.0
    );
    keyring::verify_words(&document).unwrap();
    assert_eq!(
        document.canonical(),
        golden("keyring-2-backup.canonical.json")
    );
    let backup = manifest.last_backup.as_ref().unwrap();
    assert_eq!((backup.generation, backup.newest_version), (1, 1));
    assert_eq!(
        backup.sha256.0,
        sidekey::crypto::fingerprint(&golden("backup-2.age"))
    );
}

#[test]
fn a_manifest_with_an_active_rollout_is_authentic() {
    let document = Document::parse(golden("keyring-2-rollout.json")).unwrap();
    keyring::verify_words(&document).unwrap();
    assert_eq!(
        document.canonical(),
        golden("keyring-2-rollout.canonical.json")
    );
    let manifest = document.manifest();
    let mark = manifest.rollout.as_ref().unwrap();
    assert_eq!(mark.id.to_string(), "c0ffee00112233445566778899aabbcc");
    assert_eq!((mark.step, mark.attempt, mark.plan.0.len()), (5, 2, 32));
    assert_eq!(manifest.ended_rollouts.len(), 1);

    let path = format!(
        "{}/integration/golden/keyring-2-rollout.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let status = crate::support::harness::run(&["keyring", "status", &path]);
    let text = String::from_utf8(status.stdout).unwrap();
    let shown = "\nrollout c0ffee00112233445566778899aabbcc: active, at step 5, attempt 2\n";
    assert!(text.contains(shown), "{text}");
}

#[test]
fn a_manifest_that_keeps_former_policies_is_authentic() {
    let document = Document::parse(golden("keyring-2-policy.json")).unwrap();
    keyring::verify_words(&document).unwrap();
    assert_eq!(
        document.canonical(),
        golden("keyring-2-policy.canonical.json")
    );
    let manifest = document.manifest();
    let kept: Vec<String> = manifest
        .versions
        .iter()
        .map(|version| version.kept.to_string())
        .collect();
    assert_eq!(
        manifest.policy.to_string(),
        "rotate_every 90d, quiet_period 7d, encrypt_lease 2d, destroy_after 1d, \
         decrypt_until 180d, class archive"
    );
    let disabled = "quiet_period 30d, encrypt_lease 30d, destroy_after 30d, class kms";
    assert_eq!(kept, [disabled, "encrypt_lease 30d"]);
}

#[test]
fn a_backup_restores() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    sidekey::backend::local::LocalKek::create(path("kek").as_ref()).unwrap();
    let golden_path =
        |name: &str| format!("{}/integration/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    let arguments = [
        "keyring",
        "restore",
        &path("restored.json"),
        "--from",
        &golden_path("backup-2.age"),
    ];
    let kek = format!("local:{}", path("kek"));
    let restored = crate::support::harness::run(
        &[
            &arguments[..],
            &[
                "--identity",
                &golden_path("backup-2.key"),
                "--kek",
                &kek,
                "--no-sidecar",
            ],
        ]
        .concat(),
    );
    assert!(restored.status.success(), "{restored:?}");
    let document = Document::parse(fs::read(path("restored.json")).unwrap()).unwrap();
    let recorded = Document::parse(golden("keyring-2-backup.json")).unwrap();
    assert_eq!(
        document.manifest().versions[0].check,
        recorded.manifest().versions[0].check
    );
    assert_eq!(document.manifest().generation, 2);
}

#[test]
fn the_audit_log_verifies() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("integration/golden/audit-2.log");
    let key = sidekey::crypto::MacKey::from_slice(&golden("kek")).unwrap();
    let requirements = sidekey::audit::Requirements {
        key: Some(&key),
        ..Default::default()
    };
    let report = sidekey::audit::verify(&[path], &requirements).unwrap();
    assert_eq!((report.records, report.torn_lines), (4, 0));
}

#[test]
fn every_message_decrypts() {
    let opened = open();
    let document = &opened.document;
    let id: KeyringId = document.manifest().id;
    let text = String::from_utf8(golden("message-1.txt")).unwrap();
    let messages = [
        (
            "message-1.bin",
            golden("message-1.bin"),
            &b""[..],
            2,
            &b"the first message"[..],
        ),
        (
            "message-1-aad.bin",
            golden("message-1-aad.bin"),
            b"row 7",
            3,
            b"bound to its row",
        ),
        (
            "message-1-empty.bin",
            golden("message-1-empty.bin"),
            b"",
            4,
            b"",
        ),
        (
            "message-1.txt",
            from_text(text.trim_end()).unwrap(),
            b"",
            4,
            b"as text",
        ),
        (
            "stream-1.bin",
            golden("stream-1.bin"),
            b"dump.sql",
            3,
            &[b's'; (64 << 10) + 7],
        ),
        (
            "stream-1-empty.bin",
            golden("stream-1-empty.bin"),
            b"",
            4,
            b"",
        ),
    ];
    for (name, mut message, aad, version, plaintext) in messages {
        let header = Header::parse(&message, &id).unwrap();
        assert_eq!(header.version, version, "{name}");
        let opened = Opener::default().open(&opened.keys(version), &id, &header, aad, &mut message);
        assert_eq!(opened.unwrap(), plaintext, "{name}");
    }
}
