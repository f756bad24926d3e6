//! What reports and rosters do to books.

use super::{super::*, *};

fn book(ledger: &Ledger, number: u8) -> &Book {
    &ledger.books[&(instance(number), KEYRING)]
}

fn last_use(ledger: &Ledger, number: u8) -> Option<Timestamp> {
    book(ledger, number).accounts[&OLD].last_use
}

#[test]
fn a_rise_is_a_use_at_its_receipt() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), hour(1));
    assert_eq!(last_use(&ledger, 1), None);
    take(&mut ledger, &report(1, 2, 3), hour(2));
    take(&mut ledger, &report(1, 3, 3), hour(3));
    assert_eq!(last_use(&ledger, 1), Some(hour(2)));
    take(&mut ledger, &report(2, 1, 5), hour(4));
    assert_eq!(last_use(&ledger, 2), Some(hour(4)), "since its start");
}

#[test]
fn resends_and_late_reports_change_nothing() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 1), hour(1));
    take(&mut ledger, &report(1, 3, 4), hour(2));
    let before = ledger.clone();
    take(&mut ledger, &report(1, 3, 4), hour(3));
    take(&mut ledger, &report(1, 2, 4), hour(4));
    take(&mut ledger, &report(1, 1, 1), hour(5));
    assert_eq!(ledger, before);
    assert_eq!(book(&ledger, 1).reported_at, hour(2), "no sign of life");
}

#[test]
fn a_resend_after_the_end_changes_nothing() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 1), hour(1));
    take(&mut ledger, &last_report(1, 2, 1), hour(2));
    let before = ledger.clone();
    take(&mut ledger, &last_report(1, 2, 1), hour(3));
    take(&mut ledger, &report(1, 1, 1), hour(4));
    ledger.fold(hour(5));
    assert_eq!(ledger, before);
}

#[test]
fn contradictions_are_gaps() {
    let cases = [
        (report(1, 2, 5), Cause::SequenceReused),
        (last_report(1, 2, 4), Cause::SequenceReused),
        (report(1, 3, 3), Cause::CountersFell),
        (report(1, 1, 5), Cause::CountersFell),
    ];
    for (delivery, cause) in cases {
        let mut ledger = Ledger::default();
        take(&mut ledger, &report(1, 1, 0), hour(1));
        take(&mut ledger, &report(1, 2, 4), hour(2));
        let gaps = ledger.take(&delivery, hour(3));
        assert_eq!(gaps, Ok(vec![(KEYRING, cause)]), "{delivery:?}");
        let until = hour(3);
        assert_eq!(book(&ledger, 1).gap, Some(Unwatched { until, cause }));
    }
}

#[test]
fn a_version_that_is_left_out_counts_as_used() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), hour(1));
    let mut delivery = report(1, 2, 0);
    delivery.usage[0].versions.remove(0);
    take(&mut ledger, &delivery, hour(2));
    assert_eq!(last_use(&ledger, 1), Some(hour(2)));
}

#[test]
fn a_refused_use_is_remembered_apart() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), hour(1));
    let mut delivery = last_report(1, 2, 0);
    delivery.usage[0].versions[0].refused = 1;
    take(&mut ledger, &delivery, hour(2));
    ledger.fold(hour(72));
    let summary = &ledger.summaries[&(KEYRING, WORKLOAD.to_owned())];
    assert!(summary.last_uses.is_empty(), "nothing was decrypted");
    assert_eq!(summary.last_refusals, [(OLD, hour(2))].into());
}

#[test]
fn only_the_owner_writes_and_closes_a_book() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), hour(1));
    let before = ledger.clone();
    for delivery in [report(1, 9, 9), last_report(1, 9, 9)] {
        let stranger = Delivery {
            owner: "owner-2".into(),
            ..delivery
        };
        assert_eq!(ledger.take(&stranger, hour(2)), Err(NotTheOwner));
    }
    assert_eq!(ledger, before);
}

#[test]
fn the_ways_of_an_end() {
    let mut ledger = Ledger::default();
    for number in [1, 2, 3] {
        ledger.list(&format!("pod-{number}"), WORKLOAD, hour(0));
        let delivery = Delivery {
            member: Some(format!("pod-{number}")),
            ..report(number, 1, 0)
        };
        take(&mut ledger, &delivery, hour(1));
    }
    take(&mut ledger, &last_report(1, 2, 0), hour(2));
    ledger.confirm_end("pod-1", hour(3));
    ledger.confirm_end("pod-2", hour(4));
    ledger.confirm_end("pod-2", hour(5));
    ledger.close_lost(Span::from_days(1), hour(24));
    let end = |number| book(&ledger, number).end;
    let ended = |at, how| Some(End { at, how });
    assert_eq!(end(1), ended(hour(2), How::Final));
    assert_eq!(book(&ledger, 1).gap, None, "everything is known");
    assert_eq!(end(2), ended(hour(4), How::Confirmed));
    assert_eq!(end(3), None);
    ledger.close_lost(Span::from_days(1), hour(25));
    let lost = book(&ledger, 3);
    assert_eq!(lost.end, ended(hour(25), How::Lost));
    assert_eq!(lost.gap.map(|gap| gap.until), Some(hour(25)));
}

#[test]
fn a_process_that_reports_after_its_end_is_open_again() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 0), hour(1));
    ledger.close_lost(Span::from_days(1), hour(25));
    take(&mut ledger, &report(1, 2, 0), hour(30));
    let book = book(&ledger, 1);
    assert!(book.is_open());
    let until = hour(30);
    let cause = Cause::ReportedAfterEnd;
    assert_eq!(book.gap, Some(Unwatched { until, cause }));
}

#[test]
fn a_report_that_was_under_way_leaves_no_ghost() {
    let mut ledger = Ledger::default();
    ledger.list("pod-1", WORKLOAD, hour(0));
    ledger.confirm_end("pod-1", hour(1));
    let delivery = Delivery {
        member: Some("pod-1".into()),
        ..report(1, 1, 0)
    };
    take(&mut ledger, &delivery, hour(2));
    assert!(!book(&ledger, 1).is_open());
}

#[test]
fn a_listed_process_that_never_reports_is_given_up_once_the_roster_forgets_it() {
    let mut ledger = Ledger::default();
    ledger.list("pod-1", WORKLOAD, day(0));
    ledger.list("pod-1", WORKLOAD, day(20));
    ledger.close_lost(Span::from_days(30), day(49));
    assert!(ledger.listings["pod-1"].is_silent());
    ledger.close_lost(Span::from_days(30), day(50));
    assert_eq!(ledger.gaps.len(), 1);
    assert_eq!(ledger.gaps[0].cause, Cause::NeverJoined);
    assert!(ledger.listings.is_empty(), "its end is not confirmed");
}

#[test]
fn ended_processes_take_no_room() {
    let mut ledger = Ledger::default();
    for number in 0..200 {
        let member = format!("pod-{number}");
        ledger.list(&member, WORKLOAD, day(number.into()));
        for report in [report(number, 1, 0), last_report(number, 2, number.into())] {
            let delivery = Delivery {
                member: Some(member.clone()),
                ..report
            };
            take(&mut ledger, &delivery, day(number.into()));
        }
        ledger.fold(day(number.into()));
    }
    assert_eq!(ledger.books.len(), 1);
    assert_eq!(ledger.listings.len(), 200, "the roster says when they end");
    assert_eq!(ledger.summaries.len(), 1);
    let summary = &ledger.summaries[&(KEYRING, WORKLOAD.to_owned())];
    assert_eq!(summary.last_uses, [(OLD, day(198))].into());
    assert_eq!(summary.last_run.map(|run| run.ended_at), Some(day(198)));
}

#[test]
fn a_book_survives_its_storage() {
    let mut ledger = Ledger::default();
    take(&mut ledger, &report(1, 1, 3), hour(1));
    ledger.close_lost(Span::from_days(1), hour(48));
    let stored = serde_json::to_string(book(&ledger, 1)).expect("JSON");
    let read: Book = serde_json::from_str(&stored).expect("a book");
    assert_eq!(read, *book(&ledger, 1));
}
