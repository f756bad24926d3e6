use std::{
    fs,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{task::yield_now, time::advance};

use super::*;

/// Longer than a change of a file can go unnoticed.
const UNNOTICED: Duration = Duration::from_secs(10);

fn config(level: &str) -> String {
    format!(
        "[listen]\nsocket = \"s\"\n[log]\nlevel = {level:?}\n[[secret]]\nname = \"a\"\n\
         source = \"file:a\"\n"
    )
}

fn started_from(file: &Path) -> ConfigWatch {
    let file = ConfigFile::new(file);
    let sha256 = file.load().expect("a valid config").sha256;
    ConfigWatch::start(file, sha256)
}

async fn filter(watch: &mut ConfigWatch) -> String {
    let read = timeout(UNNOTICED, watch.next()).await.expect("it is read");
    read.expect("a valid config").settings.log.filter
}

async fn failure(watch: &mut ConfigWatch) -> ReloadError {
    let read = timeout(UNNOTICED, watch.next()).await.expect("it is read");
    read.expect_err("a failure")
}

async fn assert_quiet(watch: &mut ConfigWatch) {
    let read = timeout(UNNOTICED, watch.next()).await;
    assert!(read.is_err(), "there is nothing new");
}

#[tokio::test(start_paused = true)]
async fn a_file_is_read_again_when_its_content_changes_and_on_request() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("sidekey.toml");
    fs::write(&file, config("info")).expect("write");
    let mut watch = started_from(&file);
    assert_quiet(&mut watch).await;
    fs::write(&file, config("debug")).expect("write");
    assert_eq!(filter(&mut watch).await, "debug");
    // The same text again.
    fs::write(&file, config("debug")).expect("write");
    assert_quiet(&mut watch).await;
    watch.request();
    assert_eq!(filter(&mut watch).await, "debug");

    fs::write(&file, "nonsense").expect("write");
    let invalid = failure(&mut watch).await;
    assert_eq!(invalid.code(), "config_invalid");
    assert_quiet(&mut watch).await;
    // As an editor replaces it.
    fs::write(folder.path().join("new"), config("debug")).expect("write");
    fs::rename(folder.path().join("new"), &file).expect("rename");
    assert_eq!(filter(&mut watch).await, "debug");
    fs::remove_file(&file).expect("remove");
    assert_eq!(failure(&mut watch).await.code(), "config_unreadable");
    fs::write(&file, config("warn")).expect("write");
    assert_eq!(filter(&mut watch).await, "warn");
}

#[tokio::test(start_paused = true)]
async fn a_change_between_the_start_and_the_watch_is_noticed() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("sidekey.toml");
    fs::write(&file, config("debug")).expect("write");
    let mut watch = ConfigWatch::start(ConfigFile::new(&file), "another hash".into());
    assert_eq!(filter(&mut watch).await, "debug");
    assert_quiet(&mut watch).await;
}

#[tokio::test(start_paused = true)]
async fn a_pipe_is_not_read_again() {
    let folder = tempfile::tempdir().expect("folder");
    let pipe = folder.path().join("sidekey.toml");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, mode).expect("a pipe");
    let mut watch = ConfigWatch::start(ConfigFile::new(&pipe), "its hash".into());
    assert_quiet(&mut watch).await;
    watch.request();
    let refused = failure(&mut watch).await;
    assert_eq!(refused.code(), "config_unreadable");
    assert!(refused.to_string().contains("a pipe"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_hangs_is_a_failure_and_read_again_later() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("sidekey.toml");
    fs::write(&file, config("info")).expect("write");
    let (release, hold) = std::sync::mpsc::channel::<()>();
    let (hold, reads) = (Arc::new(Mutex::new(hold)), Arc::new(AtomicUsize::new(0)));
    let load = {
        let (file, reads) = (ConfigFile::new(&file), Arc::clone(&reads));
        move || {
            reads.fetch_add(1, Ordering::Relaxed);
            let _ = hold.lock().expect("test").recv();
            file.load_again()
        }
    };
    let mut watch = ConfigWatch::start_with(file, "its hash".into(), load);
    while reads.load(Ordering::Relaxed) == 0 {
        yield_now().await;
    }
    // Time passes only by hand while a thread is busy.
    advance(READ_TIMEOUT).await;
    let late = failure_by_hand(&mut watch).await;
    assert!(matches!(late, ReloadError::TimedOut { .. }), "{late}");
    watch.request();
    yield_now().await;
    advance(READ_TIMEOUT).await;
    let late = failure_by_hand(&mut watch).await;
    assert!(matches!(late, ReloadError::TimedOut { .. }), "{late}");
    assert_eq!(reads.load(Ordering::Relaxed), 1, "one thread at most hangs");
    drop(release);
    let read = timeout(2 * MAX_BACKOFF, watch.next()).await;
    read.expect("it is read again").expect("a valid config");
}

/// Like [`failure`], while time stands still.
async fn failure_by_hand(watch: &mut ConfigWatch) -> ReloadError {
    let read = watch.next().await;
    read.expect_err("a failure")
}
