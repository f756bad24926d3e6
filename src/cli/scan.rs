//! `sidekey scan`.

use std::{collections::BTreeMap, num::NonZeroUsize, path::PathBuf, str::FromStr, thread};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::{
    client::Connection,
    exact, on_one_thread,
    output::{Failure, Format, columns, print, printable},
    shown,
};
use crate::{
    admin::{Admin, Signing},
    backend,
    clock::Clock,
    config,
    crypto::{KeyringId, to_hex},
    model::{KeyringName, Location},
    scan::{Counts, Options, Progress, Report, Root, Search, Tally, scan},
};

#[derive(Debug, Args)]
pub(super) struct Scan {
    /// Files, folders with everything beneath them, pipes, or `-` for standard input.
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Know the keyring that is stored here, by name and in every form; may be repeated.
    #[arg(long, value_name = "LOCATION", value_parser = Location::from_str)]
    location: Vec<Location>,
    /// Know the keyrings of this config file, and reach stores as it says.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Know the keyrings of the sidecar at this socket.
    #[arg(long, value_name = "PATH", env = "SIDEKEY_SOCKET")]
    socket: Option<PathBuf>,
    /// List every file with ciphertexts, and what was not searched.
    #[arg(long)]
    files: bool,
    /// Exit with 3 if there is a ciphertext of this version, of any keyring or of one, and with 1 if nothing was searched; may be
    /// repeated.
    #[arg(long, value_name = "[KEYRING:]N", value_parser = Unwanted::from_str)]
    fail_if_version: Vec<Unwanted>,
    /// Exit with 1 also if something was skipped, is compressed or encrypted so that it can't be searched, or isn't there at all.
    #[arg(long)]
    fail_if_unseen: bool,
    /// Follow symbolic links.
    #[arg(long)]
    follow: bool,
    /// How many threads read and search; one for each CPU if there is none.
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

/// A version that must not be found any more.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unwanted {
    keyring: Option<KeyringName>,
    version: u32,
}

impl FromStr for Unwanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (keyring, version) = match text.rsplit_once(':') {
            Some((keyring, version)) => (
                Some(keyring.parse().map_err(|error| format!("{error}"))?),
                version,
            ),
            None => (None, text),
        };
        let version = version.parse().ok().filter(|version| *version > 0);
        Ok(Self {
            keyring,
            version: version.ok_or("write a version such as 3, or orders:3")?,
        })
    }
}

impl Unwanted {
    /// Whether its ciphertexts could be told at all: else finding none would be no evidence.
    fn check(&self, known: &[Known]) -> Result<(), Failure> {
        let version = self.version;
        let Some(name) = &self.keyring else {
            return if known.is_empty() {
                Err(Failure::usage(format!(
                    "--fail-if-version {version}: no keyring is known, so most forms of its ciphertexts could not be told; \
                     give --location, --config or --socket"
                )))
            } else {
                Ok(())
            };
        };
        match known
            .iter()
            .filter(|known| known.name == *name)
            .map(Known::newest)
            .max()
        {
            None => Err(Failure::usage(format!(
                "--fail-if-version: the keyring {name} is not known, so none of its ciphertexts could be told; \
                 give --location, --config or --socket"
            ))),
            Some(newest) if version > newest => Err(Failure::usage(format!(
                "--fail-if-version {name}:{version}: the newest version of {name} that is known is {newest}"
            ))),
            Some(_) => Ok(()),
        }
    }
}

/// A keyring whose tag is known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Known {
    name: KeyringName,
    id: KeyringId,
    #[serde(skip)]
    versions: Vec<u32>,
}

impl Known {
    /// Versions are numbered from 1 and never given twice, so greater ones there never were.
    fn newest(&self) -> u32 {
        self.versions.iter().copied().max().unwrap_or_default()
    }
}

#[derive(Serialize)]
struct Row {
    /// None if no keyring with this tag is known.
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
    /// Whether forms other than the text form were looked for inside of files: only of known keyrings.
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

#[derive(Serialize)]
struct Found {
    keyrings: Vec<Known>,
    found: Vec<Row>,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<Vec<FileRows>>,
    searched: Searched,
    unseen: Unseen,
    empty: Vec<String>,
    failures: Vec<Unread>,
}

impl Scan {
    pub(super) fn run(self, format: Format) -> Result<(), Failure> {
        let known = on_one_thread(self.known())?;
        self.fail_if_version
            .iter()
            .try_for_each(|unwanted| unwanted.check(&known))?;
        let search = Search::new(known.iter().map(|known| known.id.tag()))
            .map_err(|error| Failure::failed(error.to_string()))?;
        let roots: Vec<Root> = self.paths.iter().map(|path| root(path)).collect();
        let options = Options {
            follow_links: self.follow,
            threads: self
                .threads
                .or_else(|| thread::available_parallelism().ok())
                .unwrap_or(NonZeroUsize::MIN),
            lists_files: self.files,
        };
        // Hidden unless standard error is a terminal.
        let bar = ProgressBar::new(0).with_style(style());
        let report = scan(&roots, &search, options, &|progress| match progress {
            Progress::Found(bytes) => bar.inc_length(bytes),
            Progress::Searched(bytes) => bar.inc(bytes),
        });
        bar.finish_and_clear();
        let verdict = self.verdict(&known, &report);
        let found = found(known, report, self.files);
        print(format, &found, || describe(&found))?;
        verdict
    }

    async fn known(&self) -> Result<Vec<Known>, Failure> {
        let (mut known, mut locations, mut settings) = (
            Vec::new(),
            self.location.clone(),
            config::Backends::default(),
        );
        if let Some(file) = &self.config {
            let config = config::load(file)?;
            locations.extend(config.keyrings.into_iter().map(|keyring| keyring.location));
            settings = config.backends;
        }
        let backends = backend::configured(&settings);
        for location in locations {
            let document = Admin::new(location, Signing::Unless, &backends, Clock::system())?
                .read()
                .await?;
            let manifest = document.manifest();
            let versions = manifest
                .versions
                .iter()
                .map(|version| version.version)
                .collect();
            known.push(Known {
                name: manifest.name.clone(),
                id: manifest.id,
                versions,
            });
        }

        if let Some(socket) = &self.socket {
            let answer = Connection::to(socket.clone()).keyrings().await?;
            let unexpected = || {
                Failure::failed(format!(
                    "{}: the answer is not that of a sidecar",
                    shown(socket)
                ))
            };
            for keyring in answer["keyrings"].as_array().ok_or_else(unexpected)? {
                let member = |name: &str| keyring[name].as_str().ok_or_else(unexpected);
                let versions = keyring["versions"].as_array().ok_or_else(unexpected)?;
                known.push(Known {
                    name: member("name")?.parse().map_err(|_| unexpected())?,
                    id: member("id")?.parse().map_err(|_| unexpected())?,
                    versions: versions
                        .iter()
                        .filter_map(|version| version["version"].as_u64()?.try_into().ok())
                        .collect(),
                });
            }
        }
        known.sort();
        known.dedup_by(|a, b| (&a.name, a.id) == (&b.name, b.id));
        Ok(known)
    }

    /// What the exit code says, once everything was printed.
    fn verdict(&self, known: &[Known], report: &Report) -> Result<(), Failure> {
        let unwanted: Vec<String> = report
            .tally
            .0
            .iter()
            .filter(|((tag, version), _)| {
                self.fail_if_version.iter().any(|unwanted| {
                    let is_meant = |known: &Known| {
                        known.id.tag() == *tag && Some(&known.name) == unwanted.keyring.as_ref()
                    };
                    unwanted.version == *version
                        && (unwanted.keyring.is_none() || known.iter().any(is_meant))
                })
            })
            .map(|((tag, version), counts)| {
                let keyring = name(known, *tag)
                    .unwrap_or_else(|| format!("an unknown keyring ({})", to_hex(tag)));
                let files = report
                    .files_by_key
                    .get(&(*tag, *version))
                    .copied()
                    .unwrap_or_default();
                format!(
                    "version {version} of {keyring}: {} ciphertexts in {files} files",
                    counts.total()
                )
            })
            .collect();
        if !unwanted.is_empty() {
            return Err(Failure::refused(format!(
                "still there: {}",
                unwanted.join("; ")
            )));
        }
        if !report.failures.is_empty() {
            return Err(Failure::failed(format!(
                "{} paths could not be read",
                report.failures.len()
            )));
        }
        let is_proof = self.fail_if_unseen || !self.fail_if_version.is_empty();
        if is_proof && !report.empty.is_empty() {
            let paths = report
                .empty
                .iter()
                .map(|path| shown(path))
                .collect::<Vec<_>>()
                .join(", ");
            return Err(Failure::failed(format!(
                "there was nothing to search in {paths}; is it mounted, and did its writer succeed?"
            )));
        }
        if self.fail_if_unseen && report.opaque + report.skipped > 0 {
            return Err(Failure::failed(format!(
                "{} paths could not be searched",
                report.opaque + report.skipped
            )));
        }
        Ok(())
    }
}

fn root(path: &std::path::Path) -> Root {
    if path.as_os_str() == "-" {
        Root::Stdin
    } else {
        Root::Path(path.into())
    }
}

/// The names of the keyrings with a tag; almost always one.
fn name(known: &[Known], tag: [u8; 4]) -> Option<String> {
    let names: Vec<&str> = known
        .iter()
        .filter(|known| known.id.tag() == tag)
        .map(|known| known.name.as_str())
        .collect();
    (!names.is_empty()).then(|| names.join("|"))
}

fn rows(known: &[Known], tally: &Tally, files: Option<&BTreeMap<([u8; 4], u32), u64>>) -> Vec<Row> {
    let mut tally = tally.0.clone();
    if files.is_some() {
        // A version of which nothing was found is what one wants to see.
        for known in known {
            for version in &known.versions {
                tally.entry((known.id.tag(), *version)).or_default();
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
    let mut rows: Vec<Row> = tally.into_iter().map(row).collect();
    // Known ones first, by name.
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

fn found(known: Vec<Known>, report: Report, lists_files: bool) -> Found {
    let files = report.files.iter().map(|file| FileRows {
        path: exact(&file.path),
        found: rows(&known, &file.tally, None),
    });
    let paths = report.unseen.iter().map(|(path, what)| UnseenPath {
        path: exact(path),
        what,
    });
    Found {
        found: rows(&known, &report.tally, Some(&report.files_by_key)),
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
        empty: report.empty.iter().map(|path| exact(path)).collect(),
        failures: report
            .failures
            .iter()
            .map(|(path, reason)| Unread {
                path: exact(path),
                reason: reason.clone(),
            })
            .collect(),
        keyrings: known,
    }
}

fn describe(found: &Found) -> String {
    let mut text = String::new();
    let cells = |row: &Row| {
        let forms = row
            .forms
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(form, count)| format!("{form} {count}"));
        let cut_off = (row.cut_off > 0).then(|| format!("cut off {}", row.cut_off));
        let keyring = row
            .keyring
            .clone()
            .unwrap_or_else(|| format!("? {}", row.tag));
        let forms = forms.chain(cut_off).collect::<Vec<_>>().join(", ");
        (
            keyring,
            row.version.to_string(),
            row.ciphertexts.to_string(),
            forms,
        )
    };
    if found.found.is_empty() {
        text.push_str("no ciphertext found\n");
    } else {
        let mut table = vec![
            ["KEYRING", "VERSION", "CIPHERTEXTS", "FILES", "FORMS"]
                .map(String::from)
                .to_vec(),
        ];
        for row in &found.found {
            let (keyring, version, ciphertexts, forms) = cells(row);
            table.push(vec![
                keyring,
                version,
                ciphertexts,
                row.files.unwrap_or_default().to_string(),
                forms,
            ]);
        }
        text.push_str(&columns(&table));
    }
    if let Some(files) = found.files.as_ref().filter(|files| !files.is_empty()) {
        let mut table = vec![
            ["FILE", "KEYRING", "VERSION", "CIPHERTEXTS", "FORMS"]
                .map(String::from)
                .to_vec(),
        ];
        for file in files {
            for row in &file.found {
                let (keyring, version, ciphertexts, forms) = cells(row);
                table.push(vec![
                    printable(&file.path),
                    keyring,
                    version,
                    ciphertexts,
                    forms,
                ]);
            }
        }
        text.push_str(&format!("\n{}", columns(&table)));
    }
    let Searched {
        files,
        bytes,
        embedded,
    } = found.searched;
    text.push_str(&format!("\nsearched: {files} files, {bytes} bytes\n"));
    if !embedded {
        text.push_str(
            "not looked for: bytes, hex and base64 inside of files, since no keyring is known (--location, --config, --socket)\n",
        );
    }
    let Unseen {
        opaque,
        skipped,
        paths,
    } = &found.unseen;
    if opaque + skipped > 0 {
        text.push_str(&format!(
            "not seen: {opaque} files compressed or encrypted by something else, {skipped} links and special files\n"
        ));
    }
    for UnseenPath { path, what } in paths.iter().flatten() {
        text.push_str(&format!("  {}: {what}\n", printable(path)));
    }
    for path in &found.empty {
        text.push_str(&format!("nothing to search in: {}\n", printable(path)));
    }
    if !found.failures.is_empty() {
        text.push_str("could not be read:\n");
    }
    for Unread { path, reason } in &found.failures {
        text.push_str(&format!("  {}: {}\n", printable(path), printable(reason)));
    }
    text
}

fn style() -> ProgressStyle {
    // The template is right, so the default is never taken.
    ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_with_and_without_a_keyring() {
        let unwanted = |keyring: Option<&str>, version| Unwanted {
            keyring: keyring.map(|name| name.parse().expect("name")),
            version,
        };
        assert_eq!("3".parse(), Ok(unwanted(None, 3)));
        assert_eq!("orders:12".parse(), Ok(unwanted(Some("orders"), 12)));
        for wrong in [
            "", "0", "orders", "orders:", ":1", "orders:0", "1:orders", "-1",
        ] {
            assert!(wrong.parse::<Unwanted>().is_err(), "{wrong}");
        }
    }
}
