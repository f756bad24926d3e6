//! Polls what stat(2) says of a file. Events don't tell of a file that is mounted alone and written
//! outside the mount, of a link further up that leads elsewhere, or of a network file system.

use std::{
    fs::{self, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::Path,
    pin::pin,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{ChangeCallback, run_blocking};

/// How often a path is inspected: a change costs one read, and no change only the inspection.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// Inspections take turns, a few at a time in the whole process. Reads don't wait for them: many
/// files on a slow file system must not delay those of manifests and secrets.
static TURNS: Semaphore = Semaphore::const_new(2);

/// Calls `on_change` whenever the file at `path`, or a file in the folder there, is another one
/// than now, until the handle is dropped. Blocks to inspect it for the first time.
///
/// # Panics
/// Outside a Tokio runtime.
pub(super) fn poll(path: &Path, on_change: &ChangeCallback) -> AbortOnDropHandle<()> {
    poll_in_turn(path, on_change, &TURNS)
}

fn poll_in_turn(
    path: &Path,
    on_change: &ChangeCallback,
    turns: &'static Semaphore,
) -> AbortOnDropHandle<()> {
    let seen = Fingerprint::of(path);
    let (path, on_change) = (path.to_owned(), ChangeCallback::clone(on_change));
    let inspect = move || Fingerprint::of(&path);
    AbortOnDropHandle::new(tokio::spawn(follow(inspect, seen, on_change, turns)))
}

async fn follow<T: PartialEq + Send + 'static>(
    inspect: impl Fn() -> T + Clone + Send + 'static,
    mut seen: T,
    on_change: ChangeCallback,
    turns: &Semaphore,
) {
    loop {
        sleep(POLL_EVERY).await;
        let now = inspect_in_turn(inspect.clone(), turns).await;
        if now != seen {
            seen = now;
            on_change();
        }
    }
}

/// A path that hangs holds one thread until it answers, but its turn only for a while.
async fn inspect_in_turn<T: Send + 'static>(
    inspect: impl FnOnce() -> T + Send + 'static,
    turns: &Semaphore,
) -> T {
    let Ok(turn) = turns.acquire().await else {
        unreachable!("this semaphore is never closed")
    };
    let mut inspected = pin!(run_blocking(inspect));
    if let Ok(now) = timeout(POLL_EVERY, &mut inspected).await {
        return now;
    }
    drop(turn);
    inspected.await
}

/// A hash of all that a change of a file changes: which file it is, its length, and its times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint(u64);

impl Fingerprint {
    /// Follows links. A path that can't be inspected has a fingerprint, too.
    fn of(path: &Path) -> Self {
        let found = fs::metadata(path);
        let is_folder = found.as_ref().is_ok_and(Metadata::is_dir);
        let files = is_folder.then(|| fs::read_dir(path)).and_then(Result::ok);
        // Summed up, because the order of a folder's entries means nothing.
        let files = files.into_iter().flatten().flatten();
        let sum = files.fold(0, |sum: u64, entry| {
            let file = (entry.file_name(), inspected(fs::metadata(entry.path())));
            sum.wrapping_add(hash(&file))
        });
        Self(hash(&(inspected(found), sum)))
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn inspected(found: std::io::Result<Metadata>) -> impl Hash {
    found.map_err(|error| error.kind()).map(|metadata| {
        (
            (metadata.dev(), metadata.ino(), metadata.size()),
            (metadata.mtime(), metadata.mtime_nsec()),
            (metadata.ctime(), metadata.ctime_nsec()),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::symlink,
        sync::{Arc, Mutex},
    };

    use tokio::{
        sync::{Notify, mpsc},
        time::advance,
    };

    use super::*;

    /// Asserts that polling `path` reports `change`, and nothing while nothing changes.
    async fn assert_noticed(path: &Path, change: impl FnOnce()) {
        let changed = Arc::new(Notify::new());
        let notified = Arc::clone(&changed);
        let on_change: ChangeCallback = Arc::new(move || notified.notify_one());
        // Its own, because paused time doesn't wait for the turns of other tests.
        let turns = Box::leak(Box::new(Semaphore::new(1)));
        let _polling = poll_in_turn(path, &on_change, turns);
        let quiet = timeout(3 * POLL_EVERY, changed.notified()).await;
        quiet.expect_err("nothing has changed yet");
        change();
        let noticed = timeout(3 * POLL_EVERY, changed.notified()).await;
        noticed.expect("the change is noticed");
        let quiet = timeout(3 * POLL_EVERY, changed.notified()).await;
        quiet.expect_err("it is reported once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_through_another_path_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("outside")).expect("folder");
        fs::create_dir(at("inside")).expect("folder");
        // As with a bind mount, both are one file, and no event reaches the second folder.
        fs::write(at("outside/pw"), "one").expect("write");
        fs::hard_link(at("outside/pw"), at("inside/pw")).expect("link");
        let write = || fs::write(at("outside/pw"), "two!").expect("write");
        assert_noticed(&at("inside/pw"), write).await;
        let write = || fs::write(at("outside/pw"), "three").expect("write");
        assert_noticed(&at("inside"), write).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_link_further_up_that_leads_elsewhere_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let at = |name: &str| folder.path().join(name);
        for generation in ["1", "2", "3"] {
            fs::create_dir(at(generation)).expect("folder");
            fs::write(at(generation).join("pw"), generation).expect("write");
        }
        symlink("1", at("current")).expect("link");
        let lead_to = |generation: &str| {
            symlink(generation, at("new")).expect("link");
            fs::rename(at("new"), at("current")).expect("rename");
        };
        assert_noticed(&at("current/pw"), || lead_to("2")).await;
        assert_noticed(&at("current"), || lead_to("3")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_and_folder_that_come_and_go_are_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let (late, file) = (folder.path().join("late"), folder.path().join("late/pw"));
        assert_noticed(&file, || {
            fs::create_dir(&late).expect("folder");
            fs::write(&file, "one").expect("write");
        })
        .await;
        assert_noticed(&file, || fs::remove_dir_all(&late).expect("remove")).await;
    }

    #[tokio::test(start_paused = true)]
    async fn inspections_take_turns_and_a_path_that_hangs_gives_its_turn_back() {
        static ONE_TURN: Semaphore = Semaphore::const_new(1);
        let (started, mut starts) = mpsc::unbounded_channel();
        let (release, hold) = std::sync::mpsc::channel::<()>();
        let hold = Arc::new(Mutex::new(hold));
        let hung = {
            let started = started.clone();
            move || {
                started.send("hung").expect("test");
                hold.lock().expect("lock").recv().expect("test");
            }
        };
        let other = move || started.send("other").expect("test");
        let on_change: ChangeCallback = Arc::new(|| ());
        let _hung = AbortOnDropHandle::new(tokio::spawn(follow(
            hung,
            (),
            ChangeCallback::clone(&on_change),
            &ONE_TURN,
        )));
        // No thread is busy, so time passes.
        assert_eq!(starts.recv().await, Some("hung"));
        let _other = AbortOnDropHandle::new(tokio::spawn(follow(other, (), on_change, &ONE_TURN)));
        tokio::task::yield_now().await;
        // Time passes only by hand from here on.
        advance(POLL_EVERY - Duration::from_millis(1)).await;
        assert_eq!(ONE_TURN.available_permits(), 0);
        assert!(starts.is_empty());
        for _ in 0..3 {
            advance(POLL_EVERY).await;
            assert_eq!(starts.recv().await, Some("other"));
            while ONE_TURN.available_permits() == 0 {
                tokio::task::yield_now().await;
            }
        }
        release.send(()).expect("held");
        while starts.recv().await != Some("hung") {}
        release.send(()).expect("held");
    }
}
