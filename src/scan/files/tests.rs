use std::cell::Cell;

use super::*;
use crate::{
    crypto::{Peek, to_text},
    scan::{Finding, Form},
};
use proptest::prelude::*;

const KNOWN: [u8; 4] = [7, 7, 7, 7];

fn message(version: u32, len: usize) -> Vec<u8> {
    let mut message = [&[1][..], &KNOWN, &version.to_be_bytes()].concat();
    message.resize(len, 0xEE);
    message
}

fn options(threads: usize) -> Options {
    Options {
        follow_links: false,
        threads: NonZeroUsize::new(threads).expect("one"),
        lists_files: true,
    }
}

proptest! {
    /// Segments, buffers and short reads of any size yield the same counts as a single search.
    #[test]
    fn segments_and_windows_make_no_difference(
        gaps in prop::collection::vec(0..400usize, 0..8),
        segment in 1..500u64,
        window in LOOK_AHEAD + LOOK_BEHIND + 1..1000,
        most in prop_oneof![1..10usize, 1..300usize],
    ) {
        let mut data = Vec::new();
        for (at, gap) in gaps.iter().enumerate() {
            data.resize(data.len() + gap, b' ');
            let message = message(at as u32 + 1, 49 + at);
            match at % 3 {
                0 => data.extend(to_text(&message).into_bytes()),
                1 => data.extend(message),
                _ => data.extend(to_text(&message).into_bytes().into_iter().take(20)),
            }
        }
        let search = Search::new([KNOWN]).expect("search");
        let mut expected = CountsByKey::default();
        search.look(&data, 0, true, |_, finding| expected.count(finding));
        let (report, done) = (Mutex::default(), Cell::new(0));
        let progress = |_| ();
        let scan = Scan {
            search: &search,
            options: options(1),
            progress: &progress,
            report: &report,
        };
        let mut sum = CountsByKey::default();
        let len = data.len() as u64;
        for from in (0..len.max(1)).step_by(segment as usize) {
            let to = Some(from + segment).filter(|to| *to < len);
            let mut outcome = Outcome::default();
            scan.read(from, to, &mut vec![0; window], &mut outcome, |buffer, at| {
                done.set(done.get() + 1);
                let rest = &data[(at as usize).min(data.len())..];
                let read = rest.len().min(buffer.len()).min(most);
                buffer[..read].copy_from_slice(&rest[..read]);
                Ok(read)
            }).expect("no error");
            sum.add(&outcome.counts_by_key);
        }
        prop_assert_eq!(sum, expected);
    }
}

#[test]
fn a_large_file_is_searched_in_parts_and_counted_once() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("large");
    let file = File::create(&path).expect("create");
    // Sparse: it costs no disk. One ciphertext across the border of two segments, one at the
    // very end.
    file.set_len(2 * SEGMENT).expect("length");
    let text = to_text(&message(3, 60));
    file.write_all_at(text.as_bytes(), SEGMENT - 30)
        .expect("write");
    file.write_all_at(text.as_bytes(), 2 * SEGMENT)
        .expect("write");
    let search = Search::new([]).expect("search");
    let report = scan(
        &[Root::Path(folder.path().into())],
        &search,
        options(3),
        &|_| (),
    );
    assert_eq!(report.failures, []);
    assert_eq!(
        (
            report.counts(KNOWN, 3).text,
            report.counts(KNOWN, 3).cut_off
        ),
        (2, 0)
    );
    assert_eq!(
        (report.searched_files, report.files_by_key[&(KNOWN, 3)]),
        (1, 1)
    );
    assert_eq!(report.searched_bytes, 2 * SEGMENT + text.len() as u64);
}

#[test]
fn nothing_is_skipped_silently() {
    use std::os::unix::{fs::symlink, net::UnixListener};
    let folder = tempfile::tempdir().expect("folder");
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("a"), to_text(&message(1, 60))).expect("write");
    std::fs::write(at("dump.gz"), b"\x1f\x8b......").expect("write");
    symlink(at("a"), at("link")).expect("link");
    let _socket = UnixListener::bind(at("socket")).expect("bind");
    let roots = [Root::Path(folder.path().into()), Root::Path(at("none"))];
    let search = Search::new([]).expect("search");
    let report = scan(&roots, &search, options(2), &|_| ());
    let unseen = vec![
        (at("dump.gz"), "gzip"),
        (at("link"), "symbolic link"),
        (at("socket"), "socket"),
    ];
    assert_eq!(
        (report.unseen, report.opaque, report.skipped),
        (unseen, 1, 2)
    );
    assert_eq!(
        report.failures,
        [(
            at("none"),
            "No such file or directory (os error 2)".to_owned()
        )]
    );
    assert_eq!(
        (report.searched_files, report.counts_by_key.0.len()),
        (2, 1)
    );
    let followed = scan(
        &roots[..1],
        &search,
        Options {
            follow_links: true,
            ..options(2)
        },
        &|_| (),
    );
    assert_eq!(followed.counts(KNOWN, 1).text, 2);
}

#[test]
fn a_loop_of_links_is_a_failure() {
    let folder = tempfile::tempdir().expect("folder");
    std::os::unix::fs::symlink(folder.path(), folder.path().join("loop")).expect("link");
    let search = Search::new([]).expect("search");
    let roots = [Root::Path(folder.path().into())];
    let report = scan(
        &roots,
        &search,
        Options {
            follow_links: true,
            ..options(1)
        },
        &|_| (),
    );
    assert_eq!(report.failures.len(), 1);
    assert!(
        report.failures[0].1.starts_with("a link back to"),
        "{:?}",
        report.failures
    );
}

#[test]
fn a_file_that_is_a_ciphertext_of_an_unknown_keyring_is_counted() {
    let folder = tempfile::tempdir().expect("folder");
    std::fs::write(folder.path().join("whole"), message(5, 49)).expect("write");
    let search = Search::new([]).expect("search");
    let report = scan(
        &[Root::Path(folder.path().into())],
        &search,
        options(1),
        &|_| (),
    );
    let header = Peek {
        tag: KNOWN,
        version: 5,
        is_stream: false,
    };
    let mut expected = CountsByKey::default();
    expected.count(Finding {
        header,
        form: Form::Binary,
        is_cut_off: false,
    });
    assert_eq!(report.counts_by_key, expected);
}
