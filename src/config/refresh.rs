//! `[refresh]` and `[runtime]`.

use std::{path::PathBuf, time::Duration};

use super::reader::{INSTANT, KIB, LONGEST, MIB, Parsed, Section, Value};

/// How manifests are kept fresh.
#[derive(Debug, Clone, PartialEq)]
pub struct Refresh {
    /// How often a location is read without a notification. Spread by ±25 %, so that a fleet
    /// doesn't read in step.
    pub poll: Duration,
    /// Time limit for reading a location.
    pub read_timeout: Duration,
    /// Time limit for one unwrap.
    pub kek_timeout: Duration,
    /// How long a KEK may take before the next KEK that wraps the same version is asked as well.
    pub hedge: Duration,
    /// Minimum time between two refreshes for unknown versions.
    pub unknown_interval: Duration,
    /// How long a version that the newest manifest lacks is reported missing without reading
    /// again.
    pub miss_ttl: Duration,
    /// The longest manifest, in bytes.
    pub manifest_bytes: usize,
    /// The folder for copies of the manifests, if they are kept.
    pub cache_dir: Option<PathBuf>,
    /// The longest wait before a failed refresh is retried.
    pub max_backoff: Duration,
}

impl Default for Refresh {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(60),
            read_timeout: Duration::from_secs(10),
            kek_timeout: Duration::from_secs(10),
            hedge: Duration::from_millis(300),
            unknown_interval: Duration::from_millis(250),
            miss_ttl: Duration::from_secs(1),
            manifest_bytes: 16 << 20,
            cache_dir: None,
            max_backoff: Duration::from_secs(60),
        }
    }
}

/// Threads.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Runtime {
    /// The data plane's worker threads. Default: one per CPU.
    pub workers: Option<usize>,
}

pub(super) fn refresh(section: &Section<'_>) -> Parsed<Refresh> {
    let nonzero = |value: &Value<'_>| value.duration(INSTANT..=LONGEST);
    let default = Refresh::default();
    let poll = section.or("poll", default.poll, |value| {
        value.duration(Duration::from_millis(100)..=LONGEST)
    });
    let read_timeout = section.or("read_timeout", default.read_timeout, nonzero);
    let kek_timeout = section.or("kek_timeout", default.kek_timeout, nonzero);
    let unknown_interval = section.or("unknown_interval", default.unknown_interval, nonzero);
    let miss_ttl = section.or("miss_ttl", default.miss_ttl, nonzero);
    let manifest_bytes = section.or("manifest_bytes", default.manifest_bytes, |value| {
        value.size(KIB..=256 * MIB)
    });
    let max_backoff = section.or("max_backoff", default.max_backoff, nonzero);
    let cache_dir = section.maybe("cache_dir", Value::path);
    let hedge = section.or("hedge", default.hedge, nonzero);
    Ok(Refresh {
        poll: poll?,
        read_timeout: read_timeout?,
        kek_timeout: kek_timeout?,
        unknown_interval: unknown_interval?,
        miss_ttl: miss_ttl?,
        manifest_bytes: manifest_bytes?,
        max_backoff: max_backoff?,
        hedge: hedge?,
        cache_dir: cache_dir?,
    })
}

pub(super) fn runtime(section: &Section<'_>) -> Parsed<Runtime> {
    let workers = section.maybe("workers", |value| value.integer(1..=256));
    Ok(Runtime { workers: workers? })
}
