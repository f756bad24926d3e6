use super::*;
use crate::crypto::to_text;
use proptest::prelude::*;

const KNOWN: [u8; 4] = [0x6A, 0xFB, 0xF0, 0x46];

fn search() -> Search {
    Search::new([KNOWN]).expect("one keyring")
}

fn message(suite: u8, tag: [u8; 4], version: u32, len: usize) -> Vec<u8> {
    let mut message = vec![suite];
    message.extend(tag);
    message.extend(version.to_be_bytes());
    message.resize(len, 0xEE);
    message
}

fn utf16(text: &str, is_big: bool) -> Vec<u8> {
    text.encode_utf16()
        .flat_map(|unit| {
            if is_big {
                unit.to_be_bytes()
            } else {
                unit.to_le_bytes()
            }
        })
        .collect()
}

fn whole(search: &Search, data: &[u8]) -> Vec<(usize, Finding)> {
    let mut findings = Vec::new();
    assert_eq!(
        search.look(data, 0, true, |at, finding| findings.push((at, finding))),
        data.len()
    );
    findings
}

/// Searches as a reader does: appends `chunks` to what is undecided.
fn in_chunks(search: &Search, data: &[u8], chunks: &[usize]) -> Vec<(usize, Finding)> {
    let (mut findings, mut window, mut base, mut from, mut read) =
        (Vec::new(), Vec::new(), 0, 0, 0);
    let mut sizes = chunks.iter().copied().cycle();
    loop {
        let size = sizes.next().unwrap_or(1).min(data.len() - read);
        window.extend_from_slice(&data[read..read + size]);
        read += size;
        let is_last = read == data.len();
        let decided = search.look(&window, from, is_last, |at, finding| {
            findings.push((base + at, finding))
        });
        if is_last {
            return findings;
        }
        let keep = decided.saturating_sub(LOOK_BEHIND);
        window.drain(..keep);
        base += keep;
        from = decided - keep;
    }
}

/// Searches position by position, without needles or windows.
fn naive(data: &[u8]) -> Vec<(usize, Peek, Form)> {
    let text_at = |at: usize, step: usize| -> Option<Peek> {
        let text: Vec<u8> = data[at..]
            .iter()
            .step_by(step)
            .take(PEEK_TEXT)
            .copied()
            .collect();
        let zeros =
            data[at..]
                .iter()
                .skip(1)
                .step_by(step)
                .take(if step == 2 { PEEK_TEXT - 1 } else { 0 });
        if step == 2 && !zeros.clone().all(|byte| *byte == 0) {
            return None;
        }
        peek(&URL_SAFE_NO_PAD.decode(text).ok()?)
    };
    let known = |header: &Peek| header.tag == KNOWN && header.version <= MOST_VERSIONS;
    let mut findings = Vec::new();
    for at in 0..data.len() {
        let here = &data[at..];
        if here.starts_with(b"sk1.") {
            findings.extend(text_at(at + 4, 1).map(|header| (at, header, Form::Text)));
        }
        if here.starts_with(b"s\0k\x001\0.\0") {
            findings.extend(text_at(at + 8, 2).map(|header| (at, header, Form::Utf16)));
        }
        findings.extend(
            peek(here)
                .filter(known)
                .map(|header| (at, header, Form::Binary)),
        );
        findings.extend(
            encoded(here, data[..at].ends_with(b"sk1.")).map(|(header, form)| (at, header, form)),
        );
        // Each character but the first follows a zero.
        let zeros = here[1..]
            .iter()
            .step_by(2)
            .take_while(|byte| **byte == 0)
            .count();
        let characters: Vec<u8> = here.iter().step_by(2).take(zeros + 1).copied().collect();
        let is_behind_prefix = data[..at].ends_with(b"s\0k\x001\0.\0");
        findings.extend(
            encoded(&characters, is_behind_prefix).map(|(header, _)| (at, header, Form::Utf16)),
        );
    }
    findings
}

/// Hexadecimal digits or base64 of a known keyring.
fn encoded(here: &[u8], is_behind_prefix: bool) -> Option<(Peek, Form)> {
    let known = |header: &Peek| header.tag == KNOWN && header.version <= MOST_VERSIONS;
    let digits: String = here.iter().take(18).map(|byte| char::from(*byte)).collect();
    if digits.len() == 18
        && !digits.starts_with('+')
        && [digits.to_lowercase(), digits.to_uppercase()].contains(&digits)
    {
        let bytes: Option<Vec<u8>> = (0..9)
            .map(|at| u8::from_str_radix(digits.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        if let Some(header) = bytes.and_then(|bytes| peek(&bytes)).filter(known) {
            return Some((header, Form::Hex));
        }
    }
    if is_behind_prefix || here.len() < 12 {
        return None;
    }
    let standard = here[..12].iter().map(|byte| match byte {
        b'-' => b'+',
        b'_' => b'/',
        other => *other,
    });
    let bytes = STANDARD_NO_PAD.decode(standard.collect::<Vec<u8>>()).ok()?;
    peek(&bytes)
        .filter(known)
        .map(|header| (header, Form::Base64))
}

/// Parts of files: ciphertexts in every form, complete and cut off, and what resembles them.
fn part() -> impl Strategy<Value = Vec<u8>> {
    let message = (
        1..=3u8,
        prop_oneof![Just(KNOWN), any::<[u8; 4]>()],
        prop_oneof![0..4u32, any::<u32>()],
        9..120usize,
    )
        .prop_map(|(suite, tag, version, len)| message(suite, tag, version, len));
    let form = (message, 0..12u8).prop_map(|(message, form)| match form {
        0 => to_text(&message).into_bytes(),
        1 => utf16(&to_text(&message), false),
        2 => utf16(&to_text(&message), true),
        3 => to_hex(&message).into_bytes(),
        4 => to_hex(&message).to_ascii_uppercase().into_bytes(),
        5 => STANDARD_NO_PAD.encode(&message).into_bytes(),
        6 => URL_SAFE_NO_PAD.encode(&message).into_bytes(),
        7 => utf16(&to_hex(&message), false),
        8 => utf16(&to_hex(&message).to_ascii_uppercase(), true),
        9 => utf16(&STANDARD_NO_PAD.encode(&message), true),
        10 => utf16(&URL_SAFE_NO_PAD.encode(&message), false),
        _ => message,
    });
    let cut = (form.clone(), any::<prop::sample::Index>())
        .prop_map(|(form, at)| form[..at.index(form.len())].to_vec());
    let noise = prop::collection::vec(any::<u8>(), 0..200);
    let nearly = prop::sample::select(vec![
        &b"sk1"[..],
        b"sk1.",
        b"sk1.AW",
        b"s\0k\x001\0",
        b"\x01\x6A",
        b"\n",
        b",\"",
        b"\\x",
    ]);
    prop_oneof![4 => form, 2 => cut, 2 => noise, 2 => nearly.prop_map(<[u8]>::to_vec)]
}

proptest! {
    #[test]
    fn a_search_in_chunks_finds_what_a_naive_search_finds(
        parts in prop::collection::vec(part(), 0..12),
        chunks in prop::collection::vec(1..300usize, 1..8),
    ) {
        let (data, search) = (parts.concat(), search());
        let at_once = whole(&search, &data);
        let simple = |(at, finding): &(usize, Finding)| (*at, finding.header, finding.form);
        let plain: Vec<_> = at_once.iter().map(simple).collect();
        prop_assert_eq!(plain, naive(&data));
        prop_assert_eq!(in_chunks(&search, &data, &chunks), at_once);
    }
}

#[test]
fn every_form_is_found() {
    let (ours, search) = (message(1, KNOWN, 3, 60), search());
    let header = Peek {
        tag: KNOWN,
        version: 3,
        is_stream: false,
    };
    let text = to_text(&ours);
    let cases: [(Form, Vec<u8>); 12] = [
        (Form::Text, format!("id,name\n7,{text}\n").into_bytes()),
        (Form::Text, format!("{{\"name\":\"{text}\"}}").into_bytes()),
        (Form::Utf16, utf16(&format!("x {text} y"), false)),
        (Form::Utf16, utf16(&format!("x {text} y"), true)),
        (Form::Binary, [b"row \0\0".to_vec(), ours.clone()].concat()),
        (
            Form::Hex,
            format!("7\t\\\\x{}\n", to_hex(&ours)).into_bytes(),
        ),
        (
            Form::Hex,
            format!("(7, 0x{})", to_hex(&ours).to_ascii_uppercase()).into_bytes(),
        ),
        (
            Form::Base64,
            format!("\"{}\"", STANDARD_NO_PAD.encode(&ours)).into_bytes(),
        ),
        (
            Form::Utf16,
            utf16(
                &format!("7\t0x{}\r\n", to_hex(&ours).to_ascii_uppercase()),
                false,
            ),
        ),
        (
            Form::Utf16,
            utf16(&format!("\u{3b1}{}\u{3b1}", to_hex(&ours)), true),
        ),
        (
            Form::Utf16,
            utf16(&format!("7\t{}\r\n", STANDARD_NO_PAD.encode(&ours)), false),
        ),
        (Form::Utf16, utf16(&URL_SAFE_NO_PAD.encode(&ours), true)),
    ];
    for (form, data) in cases {
        let findings: Vec<_> = whole(&search, &data)
            .into_iter()
            .map(|(_, finding)| finding)
            .collect();
        assert_eq!(
            findings,
            [Finding {
                header,
                form,
                is_cut_off: false
            }],
            "{form:?}"
        );
    }
}

#[test]
fn cut_off_and_short_ciphertexts_are_told_apart() {
    let search = search();
    let cut_off = |data: &[u8]| {
        whole(&search, data)
            .iter()
            .map(|(_, finding)| finding.is_cut_off)
            .collect::<Vec<_>>()
    };
    for (len, expected) in [(48, true), (49, false)] {
        let ours = message(1, KNOWN, 1, len);
        assert_eq!(cut_off(to_text(&ours).as_bytes()), [expected]);
        assert_eq!(cut_off(&ours), [expected]);
        assert_eq!(cut_off(to_hex(&ours).as_bytes()), [expected]);
        assert_eq!(
            cut_off(STANDARD_NO_PAD.encode(&ours).as_bytes()),
            [expected]
        );
        for is_big in [false, true] {
            assert_eq!(cut_off(&utf16(&to_hex(&ours), is_big)), [expected]);
            assert_eq!(
                cut_off(&utf16(&STANDARD_NO_PAD.encode(&ours), is_big)),
                [expected]
            );
        }
    }
    // Base64 in lines of 64 characters.
    let wrapped = STANDARD_NO_PAD.encode(message(1, KNOWN, 1, 90));
    assert_eq!(
        cut_off(format!("{}\n{}", &wrapped[..64], &wrapped[64..]).as_bytes()),
        [false]
    );
}

#[test]
fn ciphertexts_of_unknown_keyrings_are_found_as_text_or_whole_files_only() {
    let (theirs, search) = (message(2, [9; 4], 1, 60), search());
    assert_eq!(whole(&search, &theirs), []);
    let unknown = search
        .unknown_at_start(&theirs)
        .expect("looks like a stream");
    assert_eq!(
        unknown.header,
        Peek {
            tag: [9; 4],
            version: 1,
            is_stream: true
        }
    );
    assert_eq!(whole(&search, to_text(&theirs).as_bytes()).len(), 1);
    assert_eq!(
        search.unknown_at_start(&message(1, [9; 4], MOST_VERSIONS + 1, 60)),
        None
    );
    assert_eq!(search.unknown_at_start(&message(1, [9; 4], 1, 48)), None);
    assert_eq!(search.unknown_at_start(&message(1, KNOWN, 1, 60)), None);
}
