//! The chain: each record carries its number and the SHA-256 of the line before it, and a MAC if there is a key. docs/audit.md
//! describes every member. Pure: lines in, lines or verdicts out.

use std::io;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Event, Origin};
use crate::crypto::{MacKey, fingerprint, fingerprint_of, from_hex, to_hex};

/// The longest line, in bytes, without its newline.
pub(super) const LONGEST_LINE: usize = 64 << 10;
/// Details longer than this are clipped, which leaves room for the rest of a record.
const LONGEST_DETAILS: usize = 48 << 10;
/// Texts within details are clipped to so many characters.
const LONGEST_TEXT: usize = 4 << 10;

/// The record that ends a line which a crash left unfinished.
pub(super) const TORN: &str = "log.torn";
/// The record with which a key begins behind a line that it doesn't vouch for.
const UNVOUCHED: &str = "log.unvouched";

const MAC_BEGIN: &[u8] = br#","mac":""#;
const MAC_END: &[u8] = br#""}"#;
const HEX_LEN: usize = 64;

/// A place in the chain: a record's number and the SHA-256 of its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The record's number, from 1; 0 before the first.
    pub seq: u64,
    /// The SHA-256 of the record's line without its newline; zeros before the first.
    pub hash: [u8; 32],
}

impl Link {
    /// Before the first record.
    pub const START: Self = Self {
        seq: 0,
        hash: [0; 32],
    };

    /// The hash as lower-case hexadecimal digits.
    pub fn to_hex(&self) -> String {
        to_hex(&self.hash)
    }
}

impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.seq, self.to_hex())
    }
}

impl std::str::FromStr for Link {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = text.split_once(':').and_then(|(seq, hash)| {
            Some(Self {
                seq: seq.parse().ok()?,
                hash: from_lower_hex(hash)?,
            })
        });
        parsed.ok_or(
            "write SEQ:HASH, a record's number and the 64 hexadecimal digits of its line's SHA-256",
        )
    }
}

#[derive(Serialize)]
struct Record<'a> {
    seq: u64,
    prev: String,
    at: Timestamp,
    by: &'a Origin,
    event: &'a str,
    details: &'a Map<String, Value>,
}

/// What verifying needs of a record; the hash covers the rest.
#[derive(Deserialize)]
struct Head {
    seq: u64,
    prev: String,
    event: String,
    #[serde(default)]
    details: Map<String, Value>,
    mac: Option<String>,
}

/// The line of the record that follows `after`, without a newline, and its place in the chain.
pub(super) fn seal(
    after: &Link,
    origin: &Origin,
    event: &Event,
    key: Option<&MacKey>,
) -> (Vec<u8>, Link) {
    let details = clipped(&event.details);
    let record = Record {
        seq: after.seq + 1,
        prev: after.to_hex(),
        at: event.at,
        by: origin,
        event: event.name,
        details: details.as_ref().unwrap_or(&event.details),
    };
    let mut line = match serde_json::to_vec(&record) {
        Ok(line) => line,
        Err(error) => unreachable!("a record has string keys and finite numbers only: {error}"),
    };
    if let Some(key) = key {
        let mac = key.record_mac(&line);
        line.pop();
        line.extend_from_slice(MAC_BEGIN);
        line.extend_from_slice(to_hex(&mac).as_bytes());
        line.extend_from_slice(MAC_END);
    }
    let link = Link {
        seq: record.seq,
        hash: fingerprint(&line),
    };
    (line, link)
}

/// Details that would make a line too long, shortened; `None` if they are short enough.
fn clipped(details: &Map<String, Value>) -> Option<Map<String, Value>> {
    let length =
        |details: &Map<String, Value>| serde_json::to_vec(details).map_or(0, |bytes| bytes.len());
    if length(details) <= LONGEST_TEXT {
        return None;
    }
    let mut short: Map<String, Value> = details
        .iter()
        .map(|(name, value)| (name.clone(), clip(value)))
        .collect();
    if length(&short) > LONGEST_DETAILS {
        // What still is too long are lists; what is dropped is said.
        short.retain(|_, value| !value.is_array() && !value.is_object());
    }
    short.insert("clipped".into(), true.into());
    Some(short)
}

fn clip(value: &Value) -> Value {
    match value {
        Value::String(text) if text.chars().count() > LONGEST_TEXT => {
            Value::String(text.chars().take(LONGEST_TEXT).chain("…".chars()).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(clip).collect()),
        other => other.clone(),
    }
}

/// The record that follows a last one that the writer's key doesn't vouch for: from here on it does.
pub(super) fn unvouched(last: &Link, at: Timestamp) -> Event {
    Event::new(UNVOUCHED, at)
        .with("seq", last.seq)
        .with("sha256", last.to_hex())
}

/// A line that a crash left unfinished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Torn {
    pub(super) bytes: usize,
    pub(super) hash: [u8; 32],
}

impl Torn {
    pub(super) fn of(line: &[u8]) -> Self {
        Self {
            bytes: line.len(),
            hash: fingerprint(line),
        }
    }

    /// The same of a line that need not fit into memory.
    pub(super) fn read(line: &mut impl io::Read) -> io::Result<Self> {
        let (hash, bytes) = fingerprint_of(line)?;
        Ok(Self { bytes, hash })
    }

    /// The record that follows it.
    pub(super) fn event(&self, at: Timestamp) -> Event {
        Event::new(TORN, at)
            .with("bytes", self.bytes)
            .with("sha256", to_hex(&self.hash))
    }

    fn is_told_by(&self, head: &Head) -> bool {
        head.event == TORN
            && head.details.get("bytes").and_then(Value::as_u64) == Some(self.bytes as u64)
            && head.details.get("sha256").and_then(Value::as_str) == Some(&to_hex(&self.hash))
    }
}

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No record of ours.
    #[error("this is not an audit record")]
    NotARecord,
    /// Longer than a record can be.
    #[error("this line is longer than a record can be")]
    TooLong,
    /// A number that doesn't follow.
    #[error(
        "record {found} stands where record {expected} belongs: lines were cut, added or moved"
    )]
    OutOfOrder {
        /// The number that would follow.
        expected: u64,
        /// The number that is there.
        found: u64,
    },
    /// The line before isn't the one that was there when this one was written.
    #[error(
        "record {0} doesn't follow from the line before it: one of the two was changed, or lines were cut, added or moved"
    )]
    Unlinked(u64),
    /// A MAC that isn't right.
    #[error(
        "the MAC of record {0} is wrong: the line was changed, or was written with another key"
    )]
    WrongMac(u64),
    /// No MAC, where every record needs one.
    #[error(
        "record {0} carries no MAC: it was written without the key, or by somebody who hasn't got it. If the key came into use later, \
         name the first record that has a MAC: --keyed-from SEQ"
    )]
    NoMac(u64),
}

/// Verifies lines one after the other.
pub struct Verifier<'k> {
    key: Option<&'k MacKey>,
    keyed_from: u64,
    several_chains: bool,
    head: Option<Link>,
    torn: Option<Torn>,
    /// The first record that was seen.
    pub first: Option<u64>,
    /// How many records were seen.
    pub records: u64,
    /// How many unfinished lines were seen.
    pub torn_lines: u64,
}

impl<'k> Verifier<'k> {
    /// Verifies from wherever the first line stands. With a `key`, every record needs a right MAC. With `several_chains`, a record 1
    /// may begin a new chain anywhere.
    pub fn new(key: Option<&'k MacKey>, several_chains: bool) -> Self {
        Self {
            key,
            keyed_from: 0,
            several_chains,
            head: None,
            torn: None,
            first: None,
            records: 0,
            torn_lines: 0,
        }
    }

    /// The same, but the key vouches for record `seq` and those after it alone.
    #[must_use]
    pub fn keyed_from(self, seq: u64) -> Self {
        Self {
            keyed_from: seq,
            ..self
        }
    }

    /// Verifies from `after` on, without a key.
    pub(super) fn after(after: Link) -> Self {
        Self {
            head: Some(after),
            ..Self::new(None, false)
        }
    }

    /// The last record.
    pub fn head(&self) -> Option<Link> {
        self.head
    }

    /// Whether the last line was unfinished and nothing told of it yet.
    pub fn is_torn(&self) -> bool {
        self.torn.is_some()
    }

    /// Ends a file. A line that is unfinished there stays so, because the next record may stand in another file; gives whether there
    /// was one.
    pub fn end_of_file(&mut self) -> bool {
        let was_torn = self.torn.take().is_some();
        self.torn_lines += u64::from(was_torn);
        was_torn
    }

    /// Takes the next line, without its newline. One that is no record may be unfinished; whether it was, the next line tells, so its
    /// fault may come with that one.
    ///
    /// # Errors
    /// What is wrong, with this line or, if it is [`Fault::NotARecord`], with the one before.
    pub fn line(&mut self, line: &[u8]) -> Result<(), Fault> {
        if line.len() > LONGEST_LINE {
            return Err(Fault::TooLong);
        }
        let Ok(head) = serde_json::from_slice::<Head>(line) else {
            if self.torn.is_some() {
                return Err(Fault::NotARecord);
            }
            self.torn = Some(Torn::of(line));
            return Ok(());
        };
        if let Some(torn) = self.torn.take() {
            if !torn.is_told_by(&head) {
                return Err(Fault::NotARecord);
            }
            self.torn_lines += 1;
        }
        let begins_anew = self.several_chains && head.seq == 1 && head.prev == Link::START.to_hex();
        if let Some(before) = self.head.filter(|_| !begins_anew) {
            if head.seq != before.seq + 1 {
                return Err(Fault::OutOfOrder {
                    expected: before.seq + 1,
                    found: head.seq,
                });
            }
            if head.prev != before.to_hex() {
                return Err(Fault::Unlinked(head.seq));
            }
        } else if head.seq == 0 || (head.seq == 1) != (head.prev == Link::START.to_hex()) {
            return Err(Fault::Unlinked(head.seq));
        }
        self.check_mac(line, &head)?;
        self.first.get_or_insert(head.seq);
        self.records += 1;
        self.head = Some(Link {
            seq: head.seq,
            hash: fingerprint(line),
        });
        Ok(())
    }

    fn check_mac(&self, line: &[u8], head: &Head) -> Result<(), Fault> {
        match self.key {
            Some(key) if head.seq >= self.keyed_from => check_mac(key, line, head),
            // Not even one that is there: whoever could change the record could drop it.
            _ => Ok(()),
        }
    }
}

fn check_mac(key: &MacKey, line: &[u8], head: &Head) -> Result<(), Fault> {
    let mac = head.mac.as_ref().ok_or(Fault::NoMac(head.seq))?;
    let wrong = Fault::WrongMac(head.seq);
    let record = line
        .len()
        .checked_sub(MAC_BEGIN.len() + HEX_LEN + MAC_END.len())
        .map(|end| line.split_at(end));
    let Some((record, tail)) = record else {
        return Err(wrong);
    };
    let stands_last = tail.starts_with(MAC_BEGIN)
        && tail.ends_with(MAC_END)
        && tail[MAC_BEGIN.len()..].starts_with(mac.as_bytes());
    match from_lower_hex(mac) {
        Some(bytes) if stands_last && key.verifies_record(&[record, b"}"].concat(), &bytes) => {
            Ok(())
        }
        _ => Err(wrong),
    }
}

/// Whether a record's line carries the MAC that `key` makes.
pub(super) fn is_vouched(key: &MacKey, line: &[u8]) -> bool {
    serde_json::from_slice::<Head>(line).is_ok_and(|head| check_mac(key, line, &head).is_ok())
}

/// The place of a record's line in its chain, if it is a record.
pub(super) fn place(line: &[u8]) -> Option<Link> {
    let head: Head = serde_json::from_slice(line).ok()?;
    Some(Link {
        seq: head.seq,
        hash: fingerprint(line),
    })
}

fn from_lower_hex(text: &str) -> Option<[u8; 32]> {
    let is_lower = !text.bytes().any(|digit| digit.is_ascii_uppercase());
    is_lower.then(|| from_hex(text.as_bytes())).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> MacKey {
        MacKey::from_slice(&[7; 32]).expect("32 bytes")
    }

    fn log(length: usize, key: Option<&MacKey>) -> Vec<Vec<u8>> {
        let origin = Origin::here();
        let mut link = Link::START;
        (0..length)
            .map(|index| {
                let event = Event::new("test", Timestamp::UNIX_EPOCH)
                    .with("index", index)
                    .with("text", "a \"quoted\"\nline");
                let (line, next) = seal(&link, &origin, &event, key);
                link = next;
                line
            })
            .collect()
    }

    fn verify(lines: &[Vec<u8>], key: Option<&MacKey>) -> Result<Option<Link>, Fault> {
        let mut verifier = Verifier::new(key, false);
        for line in lines {
            verifier.line(line)?;
        }
        if verifier.is_torn() {
            Err(Fault::NotARecord)
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
        /// Every edit, cut, duplicate and move shows: by the chain alone or, for what stands at the ends, by an anchor.
        #[test]
        fn whatever_is_done_to_a_log_shows(length in 2..12usize, harm in harm(), with_key in any::<bool>()) {
            let key = with_key.then(key);
            let before = log(length, key.as_ref());
            let head = verify(&before, key.as_ref()).expect("untouched");
            let after = inflict(before.clone(), &harm);
            prop_assume!(after != before);
            let verdict = verify(&after, key.as_ref());
            // Who noted the first and the last record sees whatever the chain by itself can't show.
            let is_whole = verdict == Ok(head) && after.first().and_then(|line| place(line)).map(|link| link.seq) == Some(1);
            prop_assert!(!is_whole, "{harm:?} went unseen");
        }

        /// With the key, nobody without it can even write a chain of his own: the forger recomputes every hash.
        #[test]
        fn a_chain_forged_without_the_key_shows(length in 2..8usize, at in any::<prop::sample::Index>()) {
            let key = key();
            let lines = log(length, Some(&key));
            let at = at.index(length);
            let forger = MacKey::from_slice(&[8; 32]).expect("32 bytes");
            let forged = [&lines[..at], &log(length, Some(&forger))[at..]].concat();
            let mut link = Link::START;
            let mut rebuilt = Vec::new();
            for line in &forged {
                let text = String::from_utf8(line.clone()).expect("UTF-8");
                let (_, rest) = text.split_once(r#""at""#).expect("a member");
                let line = format!(r#"{{"seq":{},"prev":"{}","at"{rest}"#, link.seq + 1, link.to_hex()).into_bytes();
                link = place(&line).expect("a record");
                rebuilt.push(line);
            }
            verify(&rebuilt, None).expect("without the key the forgery is whole");
            verify(&rebuilt, Some(&key)).expect_err("with it, it isn't");
        }
    }

    #[test]
    fn with_a_key_each_record_needs_its_own_mac_in_every_chain() {
        let key = key();
        let (keyed, keyless) = (log(3, Some(&key)), log(3, None));
        let mut verifier = Verifier::new(Some(&key), true);
        for line in &keyed {
            verifier.line(line).expect("vouched for");
        }
        // The last chain being vouched for says nothing of those before it.
        assert_eq!(verifier.line(&keyless[0]), Err(Fault::NoMac(1)));

        // A record that the key's holder wrote behind those of somebody else doesn't vouch for them.
        let last = place(&keyless[2]).expect("a record");
        let keyed = seal(
            &last,
            &Origin::here(),
            &Event::new("test", Timestamp::UNIX_EPOCH),
            Some(&key),
        )
        .0;
        let lines = [&keyless[..], &[keyed]].concat();
        assert_eq!(verify(&lines, Some(&key)), Err(Fault::NoMac(1)));
        let from = |seq| {
            let mut verifier = Verifier::new(Some(&key), false).keyed_from(seq);
            lines.iter().try_for_each(|line| verifier.line(line))
        };
        assert_eq!(from(4), Ok(()));
        assert_eq!(from(3), Err(Fault::NoMac(3)));
    }

    #[test]
    fn an_unfinished_line_is_no_tampering_if_the_next_record_tells_of_it() {
        let key = key();
        let lines = log(3, Some(&key));
        let torn = &lines[2][..40];
        let after = place(&lines[1]).expect("a record");
        let told = seal(
            &after,
            &Origin::here(),
            &Torn::of(torn).event(Timestamp::UNIX_EPOCH),
            Some(&key),
        )
        .0;
        let mut verifier = Verifier::new(Some(&key), false);
        for line in [&lines[0], &lines[1], &torn.to_vec(), &told] {
            verifier.line(line).expect("a crash is no crime");
        }
        assert_eq!(
            (verifier.torn_lines, verifier.head().map(|head| head.seq)),
            (1, Some(3))
        );
        // Another line in its place is.
        let mut verifier = Verifier::new(Some(&key), false);
        verifier.line(&lines[0]).expect("whole");
        verifier.line(b"{").expect("perhaps unfinished");
        assert_eq!(verifier.line(&lines[1]), Err(Fault::NotARecord));
    }

    #[test]
    fn long_details_are_clipped_and_say_so() {
        let long = "x".repeat(1 << 20);
        let many: Vec<String> = (0..5000)
            .map(|index| format!("http://sidecar-{index}:9464"))
            .collect();
        let event = Event::new("test", Timestamp::UNIX_EPOCH)
            .with("reason", long)
            .with("sidecars", many)
            .with("version", 3);
        let (line, _) = seal(&Link::START, &Origin::here(), &event, Some(&key()));
        assert!(line.len() <= LONGEST_LINE);
        let record: Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!(
            (&record["details"]["clipped"], &record["details"]["version"]),
            (&true.into(), &3.into())
        );
    }

    #[test]
    fn a_link_reads_as_it_is_written() {
        let link = Link {
            seq: 12,
            hash: [0xab; 32],
        };
        assert_eq!(link.to_string().parse(), Ok(link));
        for wrong in ["", "12", "12:ab", "x:0", ":"] {
            wrong.parse::<Link>().expect_err(wrong);
        }
    }
}
