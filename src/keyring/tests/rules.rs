//! What is accepted and what is refused, case by case.

use std::{collections::BTreeSet, time::Duration};

use super::*;

fn rejected(world: &World, bytes: &[u8]) -> Rejection {
    let current = &world.sidecars[0];
    let document = Document::parse(bytes.to_vec()).expect("parses");
    verdict(current.document(), &document).expect_err("rejected")
}

#[test]
fn a_sidecar_rejects_a_manifest_that_does_not_follow_its_own() {
    let mut world = World::new();
    let first = world.document.bytes().to_vec();
    world.apply(&Step::Rotate);
    assert_eq!(
        rejected(&world, &first),
        Rejection::Behind { found: 1, held: 2 }
    );

    let digest = world.document.digest();
    let next = |manifest: &mut Manifest| {
        manifest.generation += 1;
        let ancestor = Ancestor {
            generation: manifest.generation - 1,
            sha256: Base64(digest.to_vec()),
        };
        manifest.lineage.insert(0, ancestor);
    };
    let edit = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = world.document.manifest().clone();
        change(&mut manifest);
        serde_json::to_vec(&manifest).expect("JSON")
    };
    assert_eq!(
        rejected(
            &world,
            &edit(&|manifest| manifest.policy.encrypt_lease = Span::from_days(9))
        ),
        Rejection::Forked(2)
    );
    assert_eq!(
        rejected(&world, &edit(&next)),
        Rejection::Unauthenticated(1)
    );
    let replaced = edit(&|manifest| {
        next(manifest);
        manifest.versions[0].check.0[0] ^= 1;
    });
    assert_eq!(rejected(&world, &replaced), Rejection::KeyReplaced(1));
    let vanished = edit(&|manifest| {
        next(manifest);
        manifest.versions.pop();
        manifest.authentication.words.pop();
    });
    assert_eq!(rejected(&world, &vanished), Rejection::Vanished(2));
    let other = edit(&|manifest| manifest.id.0[0] ^= 1);
    assert!(matches!(
        rejected(&world, &other),
        Rejection::OtherKeyring { .. }
    ));
    let whitespace = serde_json::to_vec(world.document.manifest()).expect("JSON");
    assert_eq!(
        verdict(
            world.sidecars[0].document(),
            &Document::parse(whitespace).expect("parses")
        ),
        Ok(Succession::Unchanged),
        "whitespace is not a change"
    );
}

#[test]
fn a_version_that_no_kek_unwraps_affects_no_other() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let one = Ok(keys(&world.deks[&1]));
    let down = NotUnwrapped::because("the KMS is down");
    let unwrapped = UnwrapResults::from([(1, one), (2, Err(down.clone()))]);
    let table = KeyTable::build(
        None,
        Arc::clone(&world.document),
        Succession::Newer,
        &unwrapped,
        &BTreeMap::new(),
        wave(0),
        world.now,
    )
    .expect("serves");
    assert!(table.has_unwrapped_primary(world.now));
    assert_eq!(table.not_unwrapped().collect::<Vec<_>>(), [(2, &down)]);

    // While the primary isn't unwrapped, the previous primary encrypts, unless it is compromised.
    let next = activate(&world.document, 2, WaveSelector::Every, None, world.now).expect("allowed");
    let next = Arc::new(world.authenticate(next));
    let failed = UnwrapResults::from([(2, Err(down))]);
    let build = |next| {
        let newer = Succession::Newer;
        KeyTable::build(
            Some(&table),
            next,
            newer,
            &failed,
            &BTreeMap::new(),
            wave(0),
            world.now,
        )
    };
    let fallback = build(Arc::clone(&next)).expect("serves");
    assert!(!fallback.has_unwrapped_primary(world.now));
    assert_eq!(fallback.encryption_key(world.now).expect("encrypts").0, 1);
    let next = compromise(&next, 1, world.now).expect("allowed");
    let next = Arc::new(world.authenticate(next));
    assert!(matches!(
        build(next),
        Err(Rejection::PrimaryUnavailable { version: 2, .. })
    ));
}

#[test]
fn disabling_requires_that_every_sidecar_answered_and_was_quiet() {
    let mut world = World::new();
    for step in [
        Step::Rotate,
        Step::Activate {
            version: 2,
            wave: None,
            in_seconds: None,
        },
        Step::Wait(100),
    ] {
        world.apply(&step);
    }
    let current = &world.document;
    let second =
        |seconds: i64| Timestamp::from_second(world.now.as_second() - seconds).expect("in range");
    let report = |generation, since, last_used: Option<i64>| SidecarReport {
        sidecar: "pod-1".into(),
        usage: Ok(VersionUse {
            generation,
            observed_since: second(since),
            last_used: last_used.map(second),
            open: 0,
            last_refused: None,
        }),
    };
    let verdict = |reports: Vec<SidecarReport>| {
        disable(current, 1, &Evidence::Fleet(reports.into()), world.now)
    };
    assert!(verdict(vec![report(3, 90, Some(21))]).is_ok());
    assert!(verdict(vec![report(3, 90, None)]).is_ok());
    let silent = SidecarReport {
        sidecar: "pod-2".into(),
        usage: Err("connection refused".into()),
    };
    let lacking = [
        (vec![], "no sidecar was asked"),
        (vec![report(3, 90, Some(19))], "used it at"),
        (vec![report(3, 5, None)], "counting only since"),
        (vec![report(2, 90, None)], "serves generation 2, not 3"),
        (
            vec![report(3, 90, None), silent],
            "pod-2 did not answer (connection refused)",
        ),
    ];
    for (reports, expected) in lacking {
        let refusal = verdict(reports).expect_err("refused").to_string();
        assert!(refusal.contains(expected), "{refusal}");
    }
    assert_eq!(
        disable(current, 2, &Evidence::Override("x".into()), world.now),
        Err(Refusal::IsPrimary(2))
    );
}

#[test]
fn destroying_requires_that_lease_and_waiting_time_are_over() {
    let mut world = World::new();
    for step in [
        Step::Rotate,
        Step::Activate {
            version: 2,
            wave: None,
            in_seconds: None,
        },
        Step::Disable {
            version: 1,
            with_evidence: true,
        },
    ] {
        world.apply(&step);
    }
    let manifest = world.document.manifest();
    let phrase = backup_phrase(&manifest.name, 1);
    let after = |seconds: i64| {
        let now = Timestamp::from_second(world.now.as_second() + seconds).expect("in range");
        destroy(
            &world.document,
            1,
            Some(&phrase),
            world.sightings.of(1),
            now,
        )
    };
    for seconds in [9, 29] {
        assert!(
            after(seconds)
                .expect_err("refused")
                .to_string()
                .contains("encrypt_lease (30s)")
        );
    }
    assert_eq!(after(30).expect("allowed").versions[0].wraps, []);
    let unconfirmed = destroy(
        &world.document,
        1,
        Some("yes"),
        world.sightings.of(1),
        world.now + std::time::Duration::from_secs(60),
    );
    assert!(matches!(unconfirmed, Err(Refusal::NotConfirmed { .. })));
}

#[test]
fn a_lost_primary_is_destroyed_only_with_a_successor() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let manifest = world.document.manifest();
    let phrase = lost_phrase(&manifest.name, &[1]);
    let lose = |successor| {
        let loss = Loss {
            versions: &[1],
            confirm: Some(&phrase),
            successor,
        };
        declare_lost(&world.document, loss, world.now)
    };
    assert_eq!(lose(None), Err(Refusal::LostPrimary(1)));
    assert!(matches!(lose(Some(3)), Err(Refusal::NoSuchVersion { .. })));
    assert_eq!(lose(Some(1)), Err(Refusal::LostPrimary(1)));
    let next = lose(Some(2)).expect("allowed");
    assert_eq!(primary_at(&next.activations, world.now, &wave(0)), Some(2));
    assert_eq!(next.versions[0].state, State::Destroyed);
}

#[test]
fn an_inconsistent_manifest_lists_every_contradiction() {
    let world = World::new();
    let edit = |change: fn(&mut serde_json::Value)| {
        let mut value: serde_json::Value =
            serde_json::from_slice(world.document.bytes()).expect("JSON");
        change(&mut value);
        Document::parse(value.to_string())
            .expect_err("refused")
            .to_string()
    };
    let both = edit(|value| {
        value["generation"] = 0.into();
        value["activations"][0]["version"] = 9.into();
    });
    assert!(
        both.contains("generation 0") && both.contains("names version 9"),
        "{both}"
    );
    let twice = edit(|value| {
        let version = value["versions"][0].clone();
        value["versions"]
            .as_array_mut()
            .expect("array")
            .push(version);
    });
    assert!(twice.contains("each once"), "{twice}");
    assert!(edit(|value| value["surprise"] = 1.into()).contains("unknown field `surprise`"));
    assert!(edit(|value| value["generation"] = u64::MAX.into()).contains("2^53-1"));
    assert!(edit(|value| value["versions"][0]["version"] = (1u64 << 40).into()).contains("u32"));
    assert!(edit(|value| value["versions"][0]["state"] = "disabled".into()).contains("primary"));
    let text = String::from_utf8(world.document.bytes().to_vec()).expect("UTF-8");
    let repeated = text.replacen(
        "\"generation\": 1,",
        "\"generation\": 1, \"generation\": 1,",
        1,
    );
    assert!(
        Document::parse(repeated)
            .expect_err("refused")
            .to_string()
            .contains("duplicate field")
    );
    assert!(Document::parse(world.document.bytes().slice(..100)).is_err());
}

#[test]
fn a_signature_by_a_trusted_signer_is_required() {
    let world = World::new();
    // The example key of RFC 8410, section 10.3.
    let pem = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
        -----END PRIVATE KEY-----\n";
    let signer = crate::crypto::SigningKey::from_pem(pem.as_bytes()).expect("key");
    let trusted: crate::model::SignerKey = "ed25519:Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
        .parse()
        .expect("key");
    assert_eq!(signer.public_key(), trusted.0);
    let expect = Expectations {
        trusted_signers: vec![trusted],
        ..expectations(&world.document)
    };
    assert_eq!(
        examine(None, &world.document, &expect),
        Err(Rejection::Unsigned)
    );
    let next = touch(&world.document, world.now);
    let signed = authenticate(next, &succession_keys(&world.deks), Some(&signer)).expect("keys");
    assert_eq!(examine(None, &signed, &expect), Ok(Succession::Newer));
    let signers: BTreeSet<String> = signed
        .manifest()
        .authentication
        .signatures
        .iter()
        .map(|signature| signature.signer.to_string())
        .collect();
    assert_eq!(signers, BTreeSet::from([trusted.to_string()]));
}

#[test]
fn only_a_valid_signature_by_a_listed_signer_counts() {
    let world = World::new();
    let signer = |seed: u8| {
        Dek::from_slice(&[seed; 32])
            .expect("32 bytes")
            .succession_key()
    };
    let public = |seed: u8| crate::model::SignerKey(signer(seed).public_key());
    let next = touch(&world.document, world.now);
    let signed = authenticate(next, &succession_keys(&world.deks), Some(&signer(1)))
        .expect("the operator holds every key");
    assert!(is_signed_by(&signed, &[public(2), public(1)]));
    assert!(!is_signed_by(&signed, &[public(2)]), "not listed");
    let mut claimed = signed.manifest().clone();
    claimed.authentication.signatures[0].signer = public(2);
    let claimed = Document::parse(serde_json::to_vec(&claimed).expect("JSON")).expect("parses");
    assert!(
        !is_signed_by(&claimed, &[public(2)]),
        "signed by another key"
    );
    assert!(!is_signed_by(&world.document, &[public(1)]), "unsigned");
}

#[test]
fn a_manifest_is_authenticated_only_with_the_key_of_every_live_version() {
    let mut world = World::new();
    world.apply(&Step::Rotate);
    let mut keys = succession_keys(&world.deks);
    keys.remove(&1);
    let next = touch(&world.document, world.now);
    assert_eq!(authenticate(next, &keys, None).map(drop), Err(vec![1]));
}

#[test]
fn a_generation_below_the_configured_minimum_is_rejected() {
    let mut world = World::new();
    world.apply(&Step::Touch);
    let at_least = |min_generation| Expectations {
        min_generation,
        ..expectations(&world.document)
    };
    for least in [1, 2] {
        let verdict = examine(None, &world.document, &at_least(least));
        assert_eq!(verdict, Ok(Succession::Newer));
    }
    assert_eq!(
        examine(None, &world.document, &at_least(3)),
        Err(Rejection::WentBack { found: 2, least: 3 })
    );
}

#[test]
fn only_a_backup_of_this_keyring_and_its_past_is_recorded() {
    let world = World::new();
    let id = world.document.manifest().id;
    let good = BackupRecord {
        verified_at: Timestamp::UNIX_EPOCH,
        sha256: Base64(vec![0x5a; 32]),
        generation: 1,
        newest_version: 1,
    };
    let record = |id, backup: &BackupRecord| record_backup(&world.document, id, backup, world.now);
    let recorded = record(id, &good).expect("of this keyring").last_backup;
    let recorded = recorded.expect("recorded");
    assert_eq!(recorded.verified_at, world.now);
    assert_eq!(recorded.sha256_hex(), "5a".repeat(32));

    let later = BackupRecord {
        generation: 2,
        ..good.clone()
    };
    let newer = BackupRecord {
        newest_version: 2,
        ..good.clone()
    };
    for future in [later, newer] {
        assert!(matches!(record(id, &future), Err(Refusal::NoBackup(_))));
    }
    let other = KeyringId([1; 16]);
    assert!(matches!(
        record(other, &good),
        Err(Refusal::Diverged(Rejection::OtherKeyring { .. }))
    ));
}

#[test]
fn a_disabled_version_that_is_asked_for_is_not_destroyed() {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Wait(100));
    let manifest = world.document.manifest();
    let wait = manifest.policy.destroy_after.0;
    let now = world.now;
    let asked = |last_refused, open| {
        let usage = VersionUse {
            generation: manifest.generation,
            observed_since: now,
            last_used: Some(now),
            open,
            last_refused,
        };
        let report = SidecarReport {
            sidecar: "pod-1".into(),
            usage: Ok(usage),
        };
        require_unasked(manifest, 1, &vec![report].into(), now)
    };
    assert_eq!(asked(None, 0), Ok(()), "uses are no matter");
    assert_eq!(asked(Some(now - wait), 0), Ok(()));
    let just = now - wait + Duration::from_millis(1);
    for (last_refused, open, expected) in [
        (Some(just), 0, "pod-1 was asked for it at "),
        (None, 1, "pod-1 has 1 requests in progress that use it"),
    ] {
        let refusal = asked(last_refused, open).expect_err("it may be needed");
        let Refusal::StillAskedFor { version, missing } = &refusal else {
            panic!("{refusal:?}");
        };
        assert_eq!(*version, 1);
        assert!(missing[0].starts_with(expected), "{missing:?}");
        assert!(refusal.to_string().contains("keyring enable"), "{refusal}");
    }
    let silent = SidecarReport {
        sidecar: "pod-2".into(),
        usage: Err("no response".into()),
    };
    let ledger = FleetEvidence {
        reports: vec![silent],
        ledger: Some(LedgerEvidence {
            generation: 1,
            missing: vec!["workload shop: version 1 is disabled, and it was asked for".into()],
            asking: vec!["workload shop".into()],
        }),
    };
    let refusal = require_unasked(manifest, 1, &ledger, now).expect_err("it may be needed");
    let text = refusal.to_string();
    assert!(
        text.contains("pod-2 did not answer (no response)"),
        "{text}"
    );
    assert!(text.contains("workload shop"), "{text}");
}
