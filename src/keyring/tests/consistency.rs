//! Manifests that contradict themselves, each with one fault.

use super::*;

/// Versions 1 (destroyed) and 2 (the primary), with a backup.
fn consistent() -> Document {
    let mut world = World::new();
    world.rotate_to(2);
    world.apply(&Step::Disable {
        version: 1,
        with_evidence: true,
    });
    world.apply(&Step::Wait(60));
    world.apply(&Step::Destroy(1));
    let backup = BackupRecord {
        verified_at: world.now,
        sha256: Base64(vec![5; 32]),
        generation: 2,
        newest_version: 2,
    };
    let id = world.document.manifest().id;
    let next = record_backup(&world.document, id, &backup, world.now).expect("allowed");
    world.publish(next);
    Document::parse(world.document.bytes().clone()).expect("consistent")
}

type Edit = fn(&mut Manifest);

fn newest(manifest: &mut Manifest) -> &mut Version {
    &mut manifest.versions[1]
}

fn buried(manifest: &mut Manifest) -> &mut Version {
    &mut manifest.versions[0]
}

fn testament(manifest: &mut Manifest) -> &mut Testament {
    buried(manifest).testament.as_mut().expect("destroyed")
}

fn backup(manifest: &mut Manifest) -> &mut BackupRecord {
    manifest.last_backup.as_mut().expect("recorded")
}

fn wave_number(number: usize) -> WaveSelector {
    WaveSelector::One(format!("wave-{number}").parse().expect("a name"))
}

const TESTAMENT: &str = "its testament names an impossible generation, version or heir";
const BACKUP: &str = "last_backup has an invalid SHA-256, generation or version";
const LINEAGE_FAULT: &str = "lineage must list up to 64 earlier generations";
const KEPT: &str = "it keeps a period or a class that the policy exceeds, or that a destroyed";
const MARK: &str = "rollout has a plan that is not 32 bytes, or an attempt of 0";
const ENDED: &str = "ended_rollouts lists more than 16, one twice, or the active one";
const WORDS: &str = "authentication.words must have exactly one entry";
const TOO_MANY: &str = "more than 10000 versions, 20000 activations, 256 waves or 64 signatures";

#[test]
fn every_contradiction_is_named() {
    let good = consistent();
    let cases: &[(&str, Edit)] = &[
        ("format is \"sidekey-keyring/1\"", |manifest| {
            manifest.format = "sidekey-keyring/1".into();
        }),
        ("generation 0 is not between", |manifest| {
            manifest.generation = 0;
        }),
        ("generation 9007199254740992 is not between", |manifest| {
            manifest.generation = 1 << 53;
        }),
        ("policy.encrypt_lease is zero", |manifest| {
            manifest.policy.encrypt_lease = Span::from_secs(0);
        }),
        ("policy.spread is zero", |manifest| {
            manifest.policy.spread = Some(Span::from_secs(0));
        }),
        ("there are no versions", |manifest| {
            manifest.versions.clear();
        }),
        ("trimmed has no version or not 32 bytes", |manifest| {
            manifest.trimmed = Some(Trimmed {
                through: 0,
                l: Base64(vec![0; 32]),
            });
        }),
        ("trimmed has no version or not 32 bytes", |manifest| {
            manifest.versions.remove(0);
            manifest.trimmed = Some(Trimmed {
                through: 1,
                l: Base64(vec![0; 31]),
            });
        }),
        ("found version 3 instead of version 2", |manifest| {
            newest(manifest).version = 3;
        }),
        (
            "version 2: its check value is not 32 bytes long",
            |manifest| {
                newest(manifest).check.0.pop();
            },
        ),
        (
            "version 2: its succession key is not 32 bytes long",
            |manifest| {
                newest(manifest).key.0.push(0);
            },
        ),
        ("version 1: it is destroyed but has wraps", |manifest| {
            let wraps = newest(manifest).wraps.clone();
            buried(manifest).wraps = wraps;
        }),
        ("version 2: it has no wrap", |manifest| {
            newest(manifest).wraps.clear();
        }),
        (
            "version 2: it has a testament but is not destroyed",
            |manifest| {
                let testament = testament(manifest).clone();
                newest(manifest).testament = Some(testament);
            },
        ),
        ("version 2: it has more than 16 wraps", |manifest| {
            let wrap = newest(manifest).wraps[0].clone();
            newest(manifest).wraps = (0..17)
                .map(|number| Wrap {
                    kek: format!("local:/{number}").parse().expect("uri"),
                    ..wrap.clone()
                })
                .collect();
        }),
        ("version 2: it has two wraps by one KEK", |manifest| {
            let wrap = newest(manifest).wraps[0].clone();
            newest(manifest).wraps.push(wrap);
        }),
        (TESTAMENT, |manifest| testament(manifest).generation = 1),
        (TESTAMENT, |manifest| {
            testament(manifest).generation = manifest.generation + 1;
        }),
        (TESTAMENT, |manifest| testament(manifest).newest = 0),
        (TESTAMENT, |manifest| testament(manifest).newest = 3),
        (TESTAMENT, |manifest| testament(manifest).heirs.clear()),
        (TESTAMENT, |manifest| testament(manifest).heirs = vec![2, 2]),
        (TESTAMENT, |manifest| testament(manifest).heirs = vec![0, 2]),
        (TESTAMENT, |manifest| testament(manifest).heirs = vec![3]),
        (TESTAMENT, |manifest| testament(manifest).heirs = vec![1, 2]),
        (TESTAMENT, |manifest| {
            testament(manifest).signature.0.pop();
        }),
        (
            "an activation names version 3, which doesn't exist",
            |manifest| {
                manifest.activations[0].version = 3;
            },
        ),
        ("version 2 is disabled, but is or becomes", |manifest| {
            newest(manifest).state = State::Disabled;
        }),
        ("version 1 is destroyed, but is or becomes", |manifest| {
            let mut first = manifest.activations[0].clone();
            first.at = manifest.updated_at;
            manifest.activations.push(first);
        }),
        (LINEAGE_FAULT, |manifest| manifest.lineage.clear()),
        (LINEAGE_FAULT, |manifest| manifest.lineage.reverse()),
        (LINEAGE_FAULT, |manifest| {
            let ancestor = manifest.lineage[0].clone();
            manifest.lineage = vec![ancestor; 65];
        }),
        (LINEAGE_FAULT, |manifest| {
            manifest.lineage[0].generation = manifest.generation;
        }),
        (LINEAGE_FAULT, |manifest| {
            manifest.lineage[0].sha256.0.pop();
        }),
        (BACKUP, |manifest| {
            backup(manifest).sha256.0.pop();
        }),
        (BACKUP, |manifest| backup(manifest).generation = 0),
        (BACKUP, |manifest| {
            backup(manifest).generation = manifest.generation;
        }),
        (BACKUP, |manifest| backup(manifest).newest_version = 0),
        (BACKUP, |manifest| backup(manifest).newest_version = 3),
        (KEPT, |manifest| {
            newest(manifest).kept.encrypt_lease = Some(manifest.policy.encrypt_lease);
        }),
        (KEPT, |manifest| {
            newest(manifest).kept.class = Some(Class::Live)
        }),
        (KEPT, |manifest| {
            buried(manifest).kept.class = Some(Class::Kms)
        }),
        (MARK, |manifest| {
            manifest.rollout = Some(mark(1, 1, 0));
        }),
        (MARK, |manifest| {
            let mut short = mark(1, 1, 1);
            short.plan.0.pop();
            manifest.rollout = Some(short);
        }),
        (ENDED, |manifest| {
            manifest.rollout = Some(mark(1, 1, 1));
            manifest.ended_rollouts = vec![id_of(1)];
        }),
        (ENDED, |manifest| {
            manifest.ended_rollouts = vec![id_of(1), id_of(2), id_of(1)];
        }),
        (ENDED, |manifest| {
            manifest.ended_rollouts = (0..17).map(id_of).collect();
        }),
        (WORDS, |manifest| manifest.authentication.words.clear()),
        (WORDS, |manifest| {
            let word = manifest.authentication.words[0].clone();
            manifest.authentication.words.push(word);
        }),
        (WORDS, |manifest| {
            manifest.authentication.words[0].version = 1;
        }),
        ("a word is not 64 bytes long", |manifest| {
            manifest.authentication.words[0].signature.0.pop();
        }),
        ("a signature is not 64 bytes long", |manifest| {
            manifest.authentication.signatures.push(Signature {
                signer: crate::model::SignerKey([1; 32]),
                signature: Base64(vec![0; 63]),
            });
        }),
        (TOO_MANY, |manifest| {
            let version = newest(manifest).clone();
            manifest.versions = vec![version; 10_001];
        }),
        (TOO_MANY, |manifest| {
            let activation = manifest.activations[1].clone();
            manifest.activations = vec![activation; 20_001];
        }),
        (TOO_MANY, |manifest| {
            let activation = manifest.activations[1].clone();
            let waves = (0..256).map(|number| Activation {
                wave: wave_number(number),
                ..activation.clone()
            });
            manifest.activations.extend(waves);
        }),
        (TOO_MANY, |manifest| {
            let signature = Signature {
                signer: crate::model::SignerKey([1; 32]),
                signature: Base64(vec![0; 64]),
            };
            manifest.authentication.signatures = vec![signature; 65];
        }),
    ];
    for (expected, edit) in cases {
        let mut manifest = good.manifest().clone();
        edit(&mut manifest);
        let text = serde_json::to_string(&manifest).expect("JSON");
        let Err(error) = Document::parse(text) else {
            panic!("accepted: {expected}");
        };
        let error = error.to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

#[test]
fn what_just_fits_is_accepted() {
    let good = consistent();
    let edits: &[Edit] = &[
        |manifest| manifest.generation = (1 << 53) - 1,
        |manifest| {
            let activation = manifest.activations[1].clone();
            manifest.activations = vec![activation; 20_000];
        },
        |manifest| {
            let activation = manifest.activations[1].clone();
            let waves = (0..255).map(|number| Activation {
                wave: wave_number(number),
                ..activation.clone()
            });
            manifest.activations.extend(waves);
        },
        |manifest| {
            let wrap = newest(manifest).wraps[0].clone();
            newest(manifest).wraps = (0..16)
                .map(|number| Wrap {
                    kek: format!("local:/{number}").parse().expect("uri"),
                    ..wrap.clone()
                })
                .collect();
        },
        |manifest| {
            let signature = Signature {
                signer: crate::model::SignerKey([1; 32]),
                signature: Base64(vec![0; 64]),
            };
            manifest.authentication.signatures = vec![signature; 64];
        },
        |manifest| {
            let ancestor = manifest.lineage[0].clone();
            manifest.lineage = vec![ancestor; 64];
        },
        |manifest| testament(manifest).generation = manifest.generation,
        |manifest| backup(manifest).generation = manifest.generation - 1,
        |manifest| backup(manifest).generation = 1,
        |manifest| {
            let longest = Some(Span::from_days(36_525));
            buried(manifest).kept.encrypt_lease = longest;
            newest(manifest).kept = Kept {
                quiet_period: longest,
                encrypt_lease: longest,
                destroy_after: longest,
                class: Some(Class::Archive),
            };
        },
        |manifest| {
            manifest.rollout = Some(mark(16, 0, 1));
            manifest.ended_rollouts = (0..16).map(id_of).collect();
        },
    ];
    for (index, edit) in edits.iter().enumerate() {
        let mut manifest = good.manifest().clone();
        edit(&mut manifest);
        let text = serde_json::to_string(&manifest).expect("JSON");
        if let Err(error) = Document::parse(text) {
            panic!("edit {index}: {error}");
        }
    }
}
