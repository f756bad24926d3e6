//! A record as a syslog message (RFC 5424). Pure: lines in, bytes out.

use jiff::Timestamp;
use serde::Deserialize;

/// Facility 13, log audit, and severity 5, notice (RFC 5424 §6.2.1).
const PRIORITY: u8 = 13 * 8 + 5;
/// The longest fields of a head, in bytes (RFC 5424 §6).
const MAX_HOSTNAME: usize = 255;
const MAX_MSGID: usize = 32;

/// What the head of a message needs of a record.
#[derive(Deserialize)]
struct Head {
    at: Timestamp,
    event: String,
    by: By,
}

#[derive(Deserialize)]
struct By {
    host: String,
    pid: u32,
}

/// Appends a record as a message, after the message's length in bytes and a space (RFC 6587
/// §3.4.1).
///
/// There is no structured data, and no byte order mark (RFC 5424 §6.4: the message is MSG-ANY):
/// what follows the head is the record byte for byte, so that its hash and MAC can be verified.
pub(super) fn append_frame(frames: &mut Vec<u8>, line: &[u8]) {
    let head = match serde_json::from_slice::<Head>(line) {
        // RFC 5424 §6.2.3 allows six digits of a second's fraction.
        Ok(head) => format!(
            "<{PRIORITY}>1 {:.6} {} sidekey {} {} - ",
            head.at,
            field(&head.by.host, MAX_HOSTNAME),
            head.by.pid,
            field(&head.event, MAX_MSGID)
        ),
        // Every record has these. NILVALUE stands for what is unknown (RFC 5424 §6).
        Err(_) => format!("<{PRIORITY}>1 - - sidekey - - - "),
    };
    frames.extend_from_slice(format!("{} {head}", head.len() + line.len()).as_bytes());
    frames.extend_from_slice(line);
}

/// Returns the printable ASCII of a text, as the fields of a head require; `-` for nothing.
fn field(text: &str, longest: usize) -> String {
    let printable = text.chars().filter(char::is_ascii_graphic);
    let field: String = printable.take(longest).collect();
    if field.is_empty() { "-".into() } else { field }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(line: &str) -> (usize, String) {
        let mut frames = Vec::new();
        append_frame(&mut frames, line.as_bytes());
        let text = String::from_utf8(frames).expect("UTF-8");
        let (length, message) = text.split_once(' ').expect("a length");
        (length.parse().expect("digits"), message.to_owned())
    }

    fn record(at: &str, host: &str, event: &str, text: &str) -> String {
        let record = serde_json::json!({
            "at": at, "by": {"host": host, "pid": 7}, "event": event, "details": {"text": text},
        });
        record.to_string()
    }

    #[test]
    fn a_record_is_a_message_after_its_length_in_bytes() {
        for text in [
            "plain",
            "naïve 钥匙 🔑",
            "\u{feff}\"]\\\n\u{7f}",
            &"x".repeat(60 << 10),
        ] {
            let line = record("2026-11-24T12:00:00Z", "h", "keyring.rotate", text);
            let (length, message) = framed(&line);
            assert_eq!(length, message.len());
            let head = "<109>1 2026-11-24T12:00:00.000000Z h sidekey 7 keyring.rotate - ";
            assert_eq!(message, format!("{head}{line}"), "byte for byte");
            assert!(!message.contains('\n'), "a receiver may split at newlines");
        }
    }

    #[test]
    fn a_time_has_at_most_six_digits_of_a_fraction() {
        let (_, message) = framed(&record("2026-11-24T12:00:00.123456789Z", "h", "e", ""));
        assert!(
            message.starts_with("<109>1 2026-11-24T12:00:00.123456Z h "),
            "{message}"
        );
    }

    #[test]
    fn the_fields_of_a_head_are_printable_ascii_of_limited_length() {
        let (long, at) = ("e".repeat(300), "2026-11-24T12:00:00Z");
        for (host, event, expected) in [
            ("a b\u{1}ü", "é", "ab sidekey 7 - - "),
            ("", " ", "- sidekey 7 - - "),
            (
                &long,
                &long,
                &format!("{} sidekey 7 {} - ", &long[..255], &long[..32]),
            ),
        ] {
            let (_, message) = framed(&record(at, host, event, ""));
            let head = format!("<109>1 2026-11-24T12:00:00.000000Z {expected}{{");
            assert!(message.starts_with(&head), "{message}");
        }
    }

    #[test]
    fn what_is_no_record_is_still_a_message() {
        assert_eq!(framed("{}"), (27, "<109>1 - - sidekey - - - {}".into()));
    }
}
