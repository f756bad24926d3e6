//! The result of a scan, as JSON and as text.

use std::collections::BTreeMap;

use serde::Serialize;

use super::known::{Known, name};
use crate::{
    cli::output::{columns, exact_path, printable},
    crypto::to_hex,
    scan::{Counts, CountsByKey, Report},
};

#[derive(Serialize)]
pub(super) struct Summary {
    keyrings: Vec<Known>,
    found: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<FileRows>>,
    searched: Searched,
    unseen: Unseen,
    empty: Vec<String>,
    failures: Vec<Unread>,
}

#[derive(Serialize)]
struct Row {
    /// None if no known keyring has this tag.
    keyring: Option<String>,
    tag: String,
    version: u32,
    ciphertexts: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<u64>,
    cut_off: u64,
    streams: u64,
    forms: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct FileRows {
    path: String,
    found: Vec<Row>,
}

#[derive(Serialize)]
struct Searched {
    files: u64,
    bytes: u64,
    /// Whether forms other than the text form were searched for, as for known keyrings.
    embedded: bool,
}

#[derive(Serialize)]
struct Unseen {
    opaque: u64,
    skipped: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    paths: Option<Vec<UnseenPath>>,
}

#[derive(Serialize)]
struct UnseenPath {
    path: String,
    what: &'static str,
}

#[derive(Serialize)]
struct Unread {
    path: String,
    reason: String,
}

pub(super) fn summarize(known: Vec<Known>, report: Report, lists_files: bool) -> Summary {
    let files = report.files.iter().map(|file| FileRows {
        path: exact_path(&file.path),
        found: rows(&known, &file.counts_by_key, None),
    });
    let paths = report.unseen.iter().map(|(path, what)| UnseenPath {
        path: exact_path(path),
        what,
    });
    let failures = report.failures.iter().map(|(path, reason)| Unread {
        path: exact_path(path),
        reason: reason.clone(),
    });
    Summary {
        found: rows(&known, &report.counts_by_key, Some(&report.files_by_key)),
        files: lists_files.then(|| files.collect()),
        searched: Searched {
            files: report.searched_files,
            bytes: report.searched_bytes,
            embedded: !known.is_empty(),
        },
        unseen: Unseen {
            opaque: report.opaque,
            skipped: report.skipped,
            paths: lists_files.then(|| paths.collect()),
        },
        empty: report.empty.iter().map(|path| exact_path(path)).collect(),
        failures: failures.collect(),
        keyrings: known,
    }
}

fn rows(
    known: &[Known],
    counts: &CountsByKey,
    files: Option<&BTreeMap<([u8; 4], u32), u64>>,
) -> Vec<Row> {
    let mut counts = counts.0.clone();
    if files.is_some() {
        // In the overview, known versions without ciphertexts are listed as zero.
        for known in known {
            for version in &known.versions {
                counts.entry((known.id.tag(), *version)).or_default();
            }
        }
    }
    let row = |((tag, version), counts): (([u8; 4], u32), Counts)| Row {
        keyring: name(known, tag),
        tag: to_hex(&tag),
        version,
        ciphertexts: counts.total(),
        files: files.map(|files| files.get(&(tag, version)).copied().unwrap_or_default()),
        cut_off: counts.cut_off,
        streams: counts.streams,
        forms: BTreeMap::from([
            ("text", counts.text),
            ("utf16", counts.utf16),
            ("binary", counts.binary),
            ("hex", counts.hex),
            ("base64", counts.base64),
        ]),
    };
    let mut rows: Vec<Row> = counts.into_iter().map(row).collect();
    // Known keyrings first, by name.
    rows.sort_by(|a, b| {
        (a.keyring.is_none(), &a.keyring, &a.tag, a.version).cmp(&(
            b.keyring.is_none(),
            &b.keyring,
            &b.tag,
            b.version,
        ))
    });
    rows
}

pub(super) fn describe(summary: &Summary) -> String {
    let mut text = table(&summary.found);
    if let Some(files) = summary.files.as_ref().filter(|files| !files.is_empty()) {
        text.push_str(&format!("\n{}", file_table(files)));
    }
    let Searched {
        files,
        bytes,
        embedded,
    } = summary.searched;
    text.push_str(&format!("\nsearched: {files} files, {bytes} bytes\n"));
    if !embedded {
        text.push_str(
            "not searched for: binary, hex and base64 forms, which require a known keyring \
             (--location, --config, --socket)\n",
        );
    }
    let Unseen {
        opaque,
        skipped,
        paths,
    } = &summary.unseen;
    if opaque + skipped > 0 {
        text.push_str(&format!(
            "not searched: {opaque} compressed or otherwise encrypted files, \
             {skipped} links and special files\n"
        ));
    }
    for UnseenPath { path, what } in paths.iter().flatten() {
        text.push_str(&format!("  {}: {what}\n", printable(path)));
    }
    for path in &summary.empty {
        text.push_str(&format!("nothing to search in: {}\n", printable(path)));
    }
    if !summary.failures.is_empty() {
        text.push_str("could not be read:\n");
    }
    for Unread { path, reason } in &summary.failures {
        text.push_str(&format!("  {}: {}\n", printable(path), printable(reason)));
    }
    text
}

fn table(found: &[Row]) -> String {
    if found.is_empty() {
        return "no ciphertexts found\n".into();
    }
    let heading = ["KEYRING", "VERSION", "CIPHERTEXTS", "FILES", "FORMS"];
    let mut table = vec![heading.map(String::from).to_vec()];
    for row in found {
        let [keyring, version, ciphertexts, forms] = row.cells();
        let files = row.files.unwrap_or_default().to_string();
        table.push(vec![keyring, version, ciphertexts, files, forms]);
    }
    columns(&table)
}

fn file_table(files: &[FileRows]) -> String {
    let heading = ["FILE", "KEYRING", "VERSION", "CIPHERTEXTS", "FORMS"];
    let mut table = vec![heading.map(String::from).to_vec()];
    for file in files {
        for row in &file.found {
            let mut cells = vec![printable(&file.path)];
            cells.extend(row.cells());
            table.push(cells);
        }
    }
    columns(&table)
}

impl Row {
    /// Keyring, version, ciphertexts and forms.
    fn cells(&self) -> [String; 4] {
        let forms = self
            .forms
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(form, count)| format!("{form} {count}"));
        let truncated = (self.cut_off > 0).then(|| format!("truncated {}", self.cut_off));
        let keyring = self
            .keyring
            .clone()
            .unwrap_or_else(|| format!("? {}", self.tag));
        [
            keyring,
            self.version.to_string(),
            self.ciphertexts.to_string(),
            forms.chain(truncated).collect::<Vec<_>>().join(", "),
        ]
    }
}
