use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::audit::{
    Event, Origin,
    record::{position_of, seal},
};

const LOG: &str = "000102030405060708090a0b0c0d0e0f";
const OTHER_LOG: &str = "f00102030405060708090a0b0c0d0e0f";

fn start(log: &str) -> Position {
    Position::start(log.parse().expect("an id"))
}

fn key() -> MacKey {
    MacKey::from_slice(&[7; 32]).expect("32 bytes")
}

fn log(length: usize, key: Option<&MacKey>) -> Vec<Vec<u8>> {
    log_of(LOG, length, key)
}

fn log_of(id: &str, length: usize, key: Option<&MacKey>) -> Vec<Vec<u8>> {
    let origin = Origin::here();
    let mut position = start(id);
    (0..length)
        .map(|index| {
            let event = Event::new("test", Timestamp::UNIX_EPOCH)
                .with("index", index)
                .with("text", "a \"quoted\"\nline");
            let (line, next) = seal(&position, &origin, &event, key);
            position = next;
            line
        })
        .collect()
}

fn verify(lines: &[Vec<u8>], key: Option<&MacKey>) -> Result<Option<Link>, ChainError> {
    let mut verifier = Verifier::new(key, false);
    for line in lines {
        verifier.line(line)?;
    }
    if verifier.is_torn() {
        Err(ChainError::NotARecord)
    } else {
        Ok(verifier.head())
    }
}

#[derive(Debug, Clone)]
enum Harm {
    Flip { line: usize, at: usize, bit: u8 },
    Cut(usize),
    Duplicate(usize),
    Swap(usize, usize),
    Truncate { line: usize, at: usize },
    Insert { before: usize, copy_of: usize },
}

fn harm() -> impl Strategy<Value = Harm> {
    let any_line = || any::<prop::sample::Index>();
    prop_oneof![
        (any_line(), any_line(), 0..8u8).prop_map(|(line, at, bit)| Harm::Flip {
            line: line.index(1000),
            at: at.index(100_000),
            bit
        }),
        any_line().prop_map(|line| Harm::Cut(line.index(1000))),
        any_line().prop_map(|line| Harm::Duplicate(line.index(1000))),
        (any_line(), any_line()).prop_map(|(a, b)| Harm::Swap(a.index(1000), b.index(1000))),
        (any_line(), any_line()).prop_map(|(line, at)| Harm::Truncate {
            line: line.index(1000),
            at: at.index(100_000)
        }),
        (any_line(), any_line()).prop_map(|(before, copy_of)| Harm::Insert {
            before: before.index(1000),
            copy_of: copy_of.index(1000)
        }),
    ]
}

fn inflict(mut lines: Vec<Vec<u8>>, harm: &Harm) -> Vec<Vec<u8>> {
    let count = lines.len();
    match *harm {
        Harm::Flip { line, at, bit } => {
            let line = &mut lines[line % count];
            let at = at % line.len();
            line[at] ^= 1 << bit;
        }
        Harm::Cut(line) => drop(lines.remove(line % count)),
        Harm::Duplicate(line) => {
            let copy = lines[line % count].clone();
            lines.insert(line % count, copy);
        }
        Harm::Swap(a, b) => lines.swap(a % count, b % count),
        Harm::Truncate { line, at } => {
            let line = &mut lines[line % count];
            line.truncate(at % line.len());
        }
        Harm::Insert { before, copy_of } => {
            let copy = lines[copy_of % count].clone();
            lines.insert(before % count, copy);
        }
    }
    lines
}

proptest! {
    /// Every edit, removal, duplicate and move is detected: by the chain alone or, at the ends, by
    /// an anchor.
    #[test]
    fn every_modification_shows(
        length in 2..12usize, harm in harm(), with_key in any::<bool>()
    ) {
        let key = with_key.then(key);
        let before = log(length, key.as_ref());
        let head = verify(&before, key.as_ref()).expect("untouched");
        let after = inflict(before.clone(), &harm);
        prop_assume!(after != before);
        let verdict = verify(&after, key.as_ref());
        // Anchors of the first and the last record detect what the chain alone can't.
        let first = after.first().and_then(|line| position_of(line));
        let is_accepted = verdict == Ok(head) && first.is_some_and(|first| first.link.seq == 1);
        prop_assert!(!is_accepted, "{harm:?} was not detected");
    }

    /// A forger without the key can recompute every hash, but not the MACs.
    #[test]
    fn a_chain_forged_without_the_key_shows(
        length in 2..8usize, at in any::<prop::sample::Index>()
    ) {
        let key = key();
        let lines = log(length, Some(&key));
        let at = at.index(length);
        let forger = MacKey::from_slice(&[8; 32]).expect("32 bytes");
        let forged = [&lines[..at], &log(length, Some(&forger))[at..]].concat();
        let mut position = start(LOG);
        let mut rebuilt = Vec::new();
        for line in &forged {
            let text = String::from_utf8(line.clone()).expect("UTF-8");
            let (_, rest) = text.split_once(r#""at""#).expect("a member");
            let (seq, prev) = (position.link.seq + 1, position.link.to_hex());
            let line = format!(r#"{{"seq":{seq},"log":"{LOG}","prev":"{prev}","at"{rest}"#);
            let line = line.into_bytes();
            position = position_of(&line).expect("a record");
            rebuilt.push(line);
        }
        verify(&rebuilt, None).expect("the chain alone is valid");
        verify(&rebuilt, Some(&key)).expect_err("the MACs are not");
    }
}

#[test]
fn with_a_key_every_record_of_every_chain_needs_a_mac() {
    let key = key();
    let (keyed, keyless) = (log(3, Some(&key)), log_of(OTHER_LOG, 3, None));
    let mut verifier = Verifier::new(Some(&key), true);
    for line in &keyed {
        verifier.line(line).expect("authenticated");
    }
    // A MAC in one chain doesn't cover another chain.
    assert_eq!(verifier.line(&keyless[0]), Err(ChainError::NoMac(1)));

    // A record with a MAC doesn't authenticate the records before it.
    let last = position_of(&keyless[2]).expect("a record");
    let keyed = seal(
        &last,
        &Origin::here(),
        &Event::new("test", Timestamp::UNIX_EPOCH),
        Some(&key),
    )
    .0;
    let lines = [&keyless[..], &[keyed]].concat();
    assert_eq!(verify(&lines, Some(&key)), Err(ChainError::NoMac(1)));
    let from = |seq| {
        let mut verifier = Verifier::new(Some(&key), false).keyed_from(seq);
        lines.iter().try_for_each(|line| verifier.line(line))
    };
    assert_eq!(from(4), Ok(()));
    assert_eq!(from(3), Err(ChainError::NoMac(3)));
}

#[test]
fn no_line_of_another_log_with_the_same_key_is_accepted() {
    let key = key();
    let (ours, theirs) = (log(4, Some(&key)), log_of(OTHER_LOG, 4, Some(&key)));
    let foreign = |seq, expected: &str| ChainError::OtherLog {
        seq,
        log: OTHER_LOG.parse().expect("an id"),
        expected: expected.to_owned(),
    };
    // The same number and a valid MAC: the log's name gives it away.
    let mixed = [&ours[..2], &theirs[2..]].concat();
    assert_eq!(verify(&mixed, Some(&key)), Err(foreign(3, LOG)));
    // A whole log in place of another, or beside it.
    let known = [LOG.parse().expect("an id")];
    let verify_known = |lines: &[Vec<u8>]| {
        let mut verifier = Verifier::new(Some(&key), true).of_logs(&known);
        lines.iter().try_for_each(|line| verifier.line(line))
    };
    assert_eq!(verify_known(&ours), Ok(()));
    assert_eq!(verify_known(&theirs), Err(foreign(1, LOG)));
    assert_eq!(
        verify_known(&[&ours[..], &theirs].concat()),
        Err(foreign(1, LOG))
    );
    // The name is under the MAC.
    let renamed: Vec<Vec<u8>> = theirs
        .iter()
        .map(|line| {
            let text = String::from_utf8(line.clone()).expect("UTF-8");
            text.replace(OTHER_LOG, LOG).into_bytes()
        })
        .collect();
    assert_eq!(verify_known(&renamed[..1]), Err(ChainError::WrongMac(1)));
}

#[test]
fn a_chain_does_not_occur_twice() {
    let lines = [log(2, None), log_of(OTHER_LOG, 2, None), log(2, None)].concat();
    let mut verifier = Verifier::new(None, true);
    let verdict = lines.iter().try_for_each(|line| verifier.line(line));
    let log = LOG.parse().expect("an id");
    assert_eq!(verdict, Err(ChainError::Repeated(log)));
    assert_eq!(verifier.records, 4);
}

#[test]
fn an_unfinished_line_is_accepted_if_the_next_record_describes_it() {
    let key = key();
    let lines = log(3, Some(&key));
    let torn = &lines[2][..40];
    let after = position_of(&lines[1]).expect("a record");
    let described = seal(
        &after,
        &Origin::here(),
        &Torn::of(torn).event(Timestamp::UNIX_EPOCH),
        Some(&key),
    )
    .0;
    let mut verifier = Verifier::new(Some(&key), false);
    for line in [&lines[0], &lines[1], &torn.to_vec(), &described] {
        verifier.line(line).expect("a crash is not an error");
    }
    assert_eq!(
        (verifier.torn_lines, verifier.head().map(|head| head.seq)),
        (1, Some(3))
    );
    // Any other next line is an error.
    let mut verifier = Verifier::new(Some(&key), false);
    verifier.line(&lines[0]).expect("whole");
    verifier.line(b"{").expect("perhaps unfinished");
    assert_eq!(verifier.line(&lines[1]), Err(ChainError::NotARecord));
}

#[test]
fn long_details_are_clipped_and_marked() {
    let long = "x".repeat(1 << 20);
    let many: Vec<String> = (0..5000)
        .map(|index| format!("http://sidecar-{index}:9464"))
        .collect();
    let event = Event::new("test", Timestamp::UNIX_EPOCH)
        .with("reason", long)
        .with("sidecars", many)
        .with("version", 3);
    let (line, _) = seal(&start(LOG), &Origin::here(), &event, Some(&key()));
    assert!(line.len() <= LONGEST_LINE);
    let record: Value = serde_json::from_slice(&line).expect("JSON");
    assert_eq!(
        (&record["details"]["clipped"], &record["details"]["version"]),
        (&true.into(), &3.into())
    );
}

#[test]
fn a_link_parses_as_it_is_displayed() {
    let link = Link {
        seq: 12,
        hash: [0xab; 32],
    };
    assert_eq!(link.to_string().parse(), Ok(link));
    for wrong in ["", "12", "12:ab", "x:0", ":"] {
        wrong.parse::<Link>().expect_err(wrong);
    }
}
