//! What a verdict demands.

use super::{super::*, *};

/// A ledger that has watched one process since long ago.
fn watched() -> Ledger {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), day(-100));
    ledger
}

#[test]
fn an_unused_version_is_quiet() {
    let mut ledger = watched();
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(1));
    assert_eq!(missing(&verdict), [""; 0]);
    assert!(verdict.is_quiet());
    assert_eq!(verdict.workloads[0].quiet_since, Some(day(-100)));
}

#[test]
fn a_use_blocks_for_the_quiet_period() {
    let mut ledger = watched();
    take(&mut ledger, &report(1, 2, 1), day(1));
    let verdict = ask(&mut ledger, &[(1, 3, 1)], day(30));
    assert_eq!(missing(&verdict), ["used"]);
    assert_eq!(verdict.quiet_from(), Some(day(31)));
    let message = &verdict.workloads[0].reasons[0].message;
    assert!(message.contains("orders-1 (instance 0101"), "{message}");
    assert!(ask(&mut ledger, &[(1, 4, 1)], day(31)).is_quiet());
}

#[test]
fn a_use_between_the_barrier_and_the_answer_blocks() {
    let mut ledger = watched();
    let question = question(day(1));
    let delivery = answer(&question.barrier, 1, 2, 1);
    take(&mut ledger, &delivery, day(2));
    assert_eq!(missing(&judge(&ledger, &question)), ["used"]);
}

#[test]
fn an_ended_process_counts_after_its_book_is_gone() {
    let mut ledger = watched();
    take(&mut ledger, &last_report(2, 1, 1), day(10));
    ledger.fold(day(20));
    assert_eq!(ledger.books.len(), 1);
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(20));
    assert_eq!(missing(&verdict), ["used"]);
    assert!(ask(&mut ledger, &[(1, 3, 0)], day(40)).is_quiet());
}

#[test]
fn every_open_book_must_answer_the_barrier() {
    let mut ledger = watched();
    take(&mut ledger, &report(2, 1, 0), day(-100));
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(1));
    assert_eq!(missing(&verdict), ["silent"]);
    assert_eq!(verdict.quiet_from(), None, "time alone doesn't help");
    // Received after the barrier, and made before it.
    take(&mut ledger, &report(2, 2, 0), day(1));
    assert_eq!(missing(&judge(&ledger, &question(day(1)))), ["silent"]);
}

#[test]
fn what_was_not_watched_counts_as_use() {
    let gap = |keyring, workload: Option<&str>| Gap {
        until: day(5),
        from: Some(day(4)),
        keyring,
        workload: workload.map(Into::into),
        cause: Cause::HubDown,
    };
    for (keyring, workload, expected) in [
        (None, None, &["unwatched"][..]),
        (None, Some(WORKLOAD), &["unwatched"]),
        (None, Some("other"), &[]),
        (Some(KEYRING), None, &["unwatched"]),
        (Some(KeyringId([9; 16])), None, &[]),
        (Some(KeyringId([9; 16])), Some(WORKLOAD), &[]),
    ] {
        let mut ledger = watched();
        ledger.gaps.push(gap(keyring, workload));
        let verdict = ask(&mut ledger, &[(1, 2, 0)], day(34));
        assert_eq!(missing(&verdict), expected);
        assert!(ask(&mut ledger, &[(1, 3, 0)], day(35)).is_quiet());
    }
}

#[test]
fn a_workload_that_is_new_was_not_watched_before() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), day(0));
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(29));
    assert_eq!(missing(&verdict), ["unwatched"]);
    assert!(ask(&mut ledger, &[(1, 3, 0)], day(30)).is_quiet());
}

#[test]
fn processes_that_are_behind_or_do_not_count_block() {
    let mut ledger = watched();
    let question = question(day(1));
    let mut delivery = answer(&question.barrier, 1, 2, 0);
    delivery.usage[0].generation = GENERATION - 1;
    take(&mut ledger, &delivery, day(1));
    let mut delivery = answer(&question.barrier, 2, 1, 0);
    delivery.usage[0].versions.remove(0);
    take(&mut ledger, &delivery, day(1));
    let verdict = judge(&ledger, &question);
    assert_eq!(missing(&verdict), ["behind", "uncounted"]);
}

#[test]
fn a_listed_process_that_never_reported_blocks() {
    let mut ledger = watched();
    ledger.list("pod-9", WORKLOAD, day(0));
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(1));
    assert_eq!(missing(&verdict), ["not_joined"]);
    ledger.confirm_end("pod-9", day(2));
    let verdict = ask(&mut ledger, &[(1, 3, 0)], day(2));
    assert_eq!(missing(&verdict), ["unwatched"]);
    assert!(ask(&mut ledger, &[(1, 4, 0)], day(32)).is_quiet());
}

#[test]
fn no_process_is_no_evidence() {
    let ledger = Ledger::default();
    assert_eq!(
        missing(&judge(&ledger, &question(day(1)))),
        ["no_instances"]
    );
    let mut nothing = question(day(1));
    nothing.workloads.clear();
    assert_eq!(missing(&judge(&ledger, &nothing)), ["no_workloads"]);
}

#[test]
fn a_primary_is_in_use() {
    let mut ledger = watched();
    let mut question = question(day(1));
    question.superseded = None;
    let delivery = answer(&question.barrier, 1, 2, 0);
    take(&mut ledger, &delivery, day(1));
    assert_eq!(missing(&judge(&ledger, &question)), ["not_superseded"]);
}

#[test]
fn another_source_only_adds_uses() {
    let mut ledger = watched();
    let mut question = question(day(1));
    let delivery = answer(&question.barrier, 1, 2, 0);
    take(&mut ledger, &delivery, day(1));
    question.further_uses.push(FurtherUse {
        source: "Prometheus".into(),
        at: day(-40),
    });
    assert!(judge(&ledger, &question).is_quiet());
    question.further_uses[0].at = day(-20);
    assert_eq!(missing(&judge(&ledger, &question)), ["used"]);
}

/// A workload that runs every 90 days.
fn rare(at: Timestamp) -> Question {
    let mut question = question(at);
    question.workloads[0].max_interval = Some(Span::from_days(90));
    question
}

#[test]
fn a_workload_that_runs_rarely_must_have_run() {
    let mut ledger = Ledger::default();
    run(&mut ledger, 1, 0, day(-200));
    assert_eq!(missing(&judge(&ledger, &rare(day(60)))), ["not_run"]);
    // Begun before the version was superseded; and behind.
    take(&mut ledger, &report(2, 1, 0), day(-1));
    take(&mut ledger, &last_report(2, 2, 0), day(1));
    for sequence in [1, 2] {
        let mut behind = report(3, sequence, 0);
        behind.usage[0].generation = GENERATION - 1;
        behind.is_final = sequence == 2;
        take(&mut ledger, &behind, day(2));
    }
    assert_eq!(missing(&judge(&ledger, &rare(day(60)))), ["not_run"]);
    // Crashed.
    ledger.list("job-4", WORKLOAD, day(3));
    let crashed = Delivery {
        member: Some("job-4".into()),
        ..report(4, 1, 0)
    };
    take(&mut ledger, &crashed, day(3));
    ledger.confirm_end("job-4", day(4));
    let verdict = judge(&ledger, &rare(day(60)));
    assert_eq!(missing(&verdict), ["unwatched", "not_run"]);
    run(&mut ledger, 5, 0, day(50));
    for now in [day(51), day(100)] {
        ledger.fold(now);
        let verdict = judge(&ledger, &rare(day(100)));
        assert_eq!(missing(&verdict), [""; 0]);
        assert_eq!(
            verdict.workloads[0].run.map(|run| run.ended_at),
            Some(day(50))
        );
    }
}

#[test]
fn a_workload_that_runs_rarely_is_quiet_for_an_interval() {
    let mut ledger = Ledger::default();
    run(&mut ledger, 1, 0, day(-200));
    run(&mut ledger, 2, 1, day(10));
    let verdict = judge(&ledger, &rare(day(60)));
    assert_eq!(missing(&verdict), ["used"], "and will use it again");
    assert_eq!(verdict.quiet_from(), Some(day(100)));
    run(&mut ledger, 3, 0, day(95));
    assert!(judge(&ledger, &rare(day(100))).is_quiet());
}

fn statement(at: Timestamp, subject: Subject) -> Statement {
    Statement {
        by: "alice".into(),
        at,
        version: OLD,
        subject,
        note: "asked its owners".into(),
    }
}

#[test]
fn an_attestation_replaces_a_run_and_no_counter() {
    let not_needed = |workload: Option<&str>| Subject::NotNeeded {
        workload: workload.map(Into::into),
    };
    let cases = [
        (statement(day(1), not_needed(Some(WORKLOAD))), true),
        (statement(day(1), not_needed(None)), true),
        (statement(day(1), not_needed(Some("other"))), false),
        (statement(day(-1), not_needed(None)), false),
        (
            Statement {
                by: " ".into(),
                ..statement(day(1), not_needed(None))
            },
            false,
        ),
        (
            Statement {
                version: OLD + 1,
                ..statement(day(1), not_needed(None))
            },
            false,
        ),
    ];
    for (statement, counts) in cases {
        let mut ledger = Ledger::default();
        let mut question = question(day(2));
        question.statements.push(statement.clone());
        let is_quiet = judge(&ledger, &question).is_quiet();
        assert_eq!(is_quiet, counts, "{statement:?}");
        take(&mut ledger, &report(1, 1, 1), day(2));
        assert!(!judge(&ledger, &question).is_quiet());
    }
}

#[test]
fn other_classes_demand_more_than_no_use() {
    let scan = |day_of: i64, found| statement(day(day_of), Subject::Scan { found });
    let anyone = statement(day(1), Subject::NotNeeded { workload: None });
    let migration = |day_of: i64| statement(day(day_of), Subject::StorageMigration);
    let no_evidence = &["use_is_no_evidence"][..];
    let cases = [
        (Class::Archive, vec![], no_evidence),
        (Class::Archive, vec![scan(-1, 0)], no_evidence),
        (Class::Archive, vec![migration(1)], no_evidence),
        (Class::Archive, vec![scan(1, 0)], &[]),
        (Class::Archive, vec![anyone.clone()], &[]),
        (Class::Archive, vec![scan(1, 2)], &["found_by_scan"]),
        (Class::Archive, vec![scan(1, 2), scan(2, 0)], &[]),
        (Class::Live, vec![scan(1, 2)], &["found_by_scan"]),
        (Class::Kms, vec![], no_evidence),
        (Class::Kms, vec![anyone], no_evidence),
        (Class::Kms, vec![scan(1, 0)], no_evidence),
        (Class::Kms, vec![migration(2), scan(1, 0)], no_evidence),
        (Class::Kms, vec![migration(1), scan(2, 0)], &[]),
    ];
    for (class, statements, expected) in cases {
        let mut ledger = watched();
        let mut question = question(day(3));
        question.class = class;
        question.statements = statements;
        let delivery = answer(&question.barrier, 1, 2, 0);
        take(&mut ledger, &delivery, day(3));
        let verdict = judge(&ledger, &question);
        assert_eq!(
            missing(&verdict),
            expected,
            "{class}: {:?}",
            question.statements
        );
        assert!(
            !verdict
                .reasons
                .iter()
                .any(|reason| reason.message.is_empty())
        );
    }
}

#[test]
fn a_message_names_few_and_counts_all() {
    let mut ledger = watched();
    for number in 10..40 {
        take(&mut ledger, &report(number, 1, 0), day(-90));
    }
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(1));
    let reason = &verdict.workloads[0].reasons[0];
    assert_eq!((reason.code, reason.count), (Code::Silent, 30));
    assert_eq!(reason.message.matches("orders-").count(), 10);
    assert!(reason.message.contains("and 20 more"), "{}", reason.message);
}

#[test]
fn a_verdict_has_a_digest_and_survives_its_storage() {
    let mut ledger = watched();
    let verdict = ask(&mut ledger, &[(1, 2, 0)], day(1));
    let text = serde_json::to_string(&verdict).expect("JSON");
    let read: Verdict = serde_json::from_str(&text).expect("a verdict");
    assert_eq!((&read, read.digest()), (&verdict, verdict.digest()));
    let later = ask(&mut ledger, &[(1, 3, 1)], day(1));
    assert_ne!(later.digest(), verdict.digest());
}

#[test]
fn a_final_report_alone_is_no_run() {
    let mut ledger = Ledger::default();
    run(&mut ledger, 1, 0, day(-200));
    take(&mut ledger, &last_report(2, 1, 0), day(10));
    // A resend of it adds nothing.
    take(&mut ledger, &last_report(2, 1, 0), day(10));
    for now in [day(10), day(12)] {
        ledger.fold(now);
        assert_eq!(missing(&judge(&ledger, &rare(day(60)))), ["not_run"]);
    }
    run(&mut ledger, 3, 0, day(20));
    assert!(judge(&ledger, &rare(day(60))).is_quiet());
}

#[test]
fn generations_after_the_one_that_superseded_the_version_do_not_matter() {
    let mut ledger = Ledger::default();
    run(&mut ledger, 1, 0, day(-200));
    run(&mut ledger, 2, 0, day(10));
    // The keyring is touched every hour, and others run at later generations.
    let mut later = report(3, 1, 0);
    later.workload = "other".into();
    later.usage[0].generation = GENERATION + 2000;
    take(&mut ledger, &later, day(-100));
    let question = rare(day(100));
    let mut answer = answer(&question.barrier, 3, 2, 0);
    answer.workload = "other".into();
    answer.usage[0].generation = GENERATION + 2000;
    take(&mut ledger, &answer, day(100));
    assert_eq!(missing(&judge(&ledger, &question)), [""; 0]);
}

/// A report of process 1 with these counts of the old version.
fn with_counts(sequence: u64, counts: impl FnOnce(&mut VersionUsage)) -> Delivery {
    let mut delivery = report(1, sequence, 0);
    counts(&mut delivery.usage[0].versions[0]);
    delivery
}

/// Asks whether the version, which is disabled, may be destroyed after 20 days.
fn about_destroying(at: Timestamp) -> Question {
    Question {
        destroy_after: Some(Span::from_days(20)),
        class: Class::Archive,
        workloads: Vec::new(),
        ..question(at)
    }
}

#[test]
fn a_ledger_that_knows_no_workload_is_no_evidence_until_it_has_watched() {
    let gap = |until| Gap {
        until,
        from: None,
        keyring: None,
        workload: None,
        cause: Cause::Created,
    };
    let asked = |at| {
        let ledger = Ledger {
            gaps: vec![gap(day(10))],
            ..Ledger::default()
        };
        judge(&ledger, &about_destroying(day(at)))
    };
    assert_eq!(missing(&asked(29)), ["unwatched"]);
    assert_eq!(asked(29).quiet_from(), Some(day(30)));
    assert!(asked(30).is_quiet());
}

#[test]
fn a_refused_use_resets_the_wait_for_destroying() {
    let mut ledger = watched();
    let mut sequence = 1;
    let mut ask = |ledger: &mut Ledger, refused, today| {
        sequence += 1;
        let question = about_destroying(day(today));
        let mut delivery = with_counts(sequence, |usage| usage.refused = refused);
        delivery.answers = Some(question.barrier.number);
        take(ledger, &delivery, day(today));
        judge(ledger, &question)
    };
    assert!(
        ask(&mut ledger, 0, 40).is_quiet(),
        "whatever its class demands"
    );
    let verdict = ask(&mut ledger, 1, 45);
    assert_eq!(missing(&verdict), ["refused"]);
    assert_eq!(verdict.quiet_from(), Some(day(65)));
    let message = &verdict.workloads[0].reasons[0].message;
    assert!(message.contains("orders-1 (instance 0101"), "{message}");
    assert!(message.contains("keyring enable"), "{message}");
    assert_eq!(missing(&ask(&mut ledger, 1, 64)), ["refused"]);
    assert!(ask(&mut ledger, 1, 65).is_quiet());
    assert_eq!(missing(&ask(&mut ledger, 2, 66)), ["refused"]);
}

#[test]
fn a_refused_use_counts_after_its_process_has_ended_and_as_a_use_before_it_is_disabled_again() {
    let mut ledger = watched();
    take(&mut ledger, &report(2, 1, 0), day(-90));
    let mut refused = last_report(2, 2, 0);
    refused.usage[0].versions[0].refused = 1;
    take(&mut ledger, &refused, day(45));
    ledger.fold(day(50));
    let asked = about_destroying(day(50));
    let delivery = answer(&asked.barrier, 1, 2, 0);
    take(&mut ledger, &delivery, day(50));
    assert_eq!(missing(&judge(&ledger, &asked)), ["refused"]);
    assert_eq!(missing(&judge(&ledger, &question(day(50)))), ["used"]);
}

#[test]
fn what_is_not_watched_may_have_asked_for_a_disabled_version() {
    let mut ledger = watched();
    take(&mut ledger, &report(2, 1, 0), day(-90));
    let asked = about_destroying(day(45));
    let delivery = answer(&asked.barrier, 1, 2, 0);
    take(&mut ledger, &delivery, day(45));
    assert_eq!(missing(&judge(&ledger, &asked)), ["silent"]);
    ledger.close_lost(Span::from_days(30), day(45));
    assert_eq!(missing(&judge(&ledger, &asked)), ["unwatched"]);
}

#[test]
fn a_stream_is_a_use_for_as_long_as_it_is_open() {
    let mut ledger = watched();
    take(&mut ledger, &with_counts(2, |usage| usage.open = 1), day(1));
    let open = |ledger: &mut Ledger, sequence, open, today: i64| {
        let question = question(day(today));
        let mut delivery = with_counts(sequence, |usage| usage.open = open);
        delivery.answers = Some(question.barrier.number);
        take(ledger, &delivery, day(today));
        judge(ledger, &question)
    };
    let verdict = open(&mut ledger, 3, 2, 40);
    assert_eq!(missing(&verdict), ["used", "open"]);
    assert_eq!(verdict.quiet_from(), None, "until they end");
    let message = &verdict.workloads[0].reasons[1].message;
    assert!(message.contains("orders-1 (instance 0101"), "{message}");
    assert!(message.contains("(2)"), "{message}");
    // It ended after the last report, and was in use until then.
    let verdict = open(&mut ledger, 4, 0, 41);
    assert_eq!(missing(&verdict), ["used"]);
    assert_eq!(verdict.quiet_from(), Some(day(71)));
    assert!(open(&mut ledger, 5, 0, 71).is_quiet());
    // Another count under one number is another report.
    let other = with_counts(5, |usage| usage.open = 1);
    take(&mut ledger, &other, day(72));
    assert_eq!(missing(&open(&mut ledger, 6, 0, 73)), ["unwatched"]);
}

#[test]
fn a_hub_that_gives_up_too_soon_is_no_evidence() {
    let mut ledger = watched();
    for destroy_after in [None, Some(Span::from_days(1))] {
        let mut question = question(day(1));
        question.destroy_after = destroy_after;
        question.lost_after = Span::from_days(29);
        let delivery = answer(&question.barrier, 1, 2, 0);
        take(&mut ledger, &delivery, day(1));
        let verdict = judge(&ledger, &question);
        assert_eq!(missing(&verdict), ["lost_too_soon"]);
        let message = &verdict.reasons[0].message;
        assert!(
            message.contains("29d") && message.contains("30d"),
            "{message}"
        );
    }
}
