//! Polls what stat(2) says of a file. Events don't tell of a file that is mounted alone and written
//! outside the mount, of a link further up that leads elsewhere, or of a network file system.

use std::{
    fs::{self, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::{BlockingPool, ChangeCallback};

/// How often a path is inspected: a change costs one read, and no change only the inspection.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// Calls `on_change` whenever the file at `path`, or a file in the folder there, is another one
/// than now, until the handle is dropped. Blocks to inspect it for the first time.
///
/// # Panics
/// Outside a Tokio runtime.
pub(super) fn poll(path: &Path, on_change: &ChangeCallback) -> AbortOnDropHandle<()> {
    let seen = Fingerprint::of(path);
    AbortOnDropHandle::new(tokio::spawn(follow(
        path.to_owned(),
        seen,
        ChangeCallback::clone(on_change),
    )))
}

async fn follow(path: PathBuf, mut seen: Fingerprint, on_change: ChangeCallback) {
    // A path that hangs holds one thread and is inspected again once it answers.
    let pool = BlockingPool::new(1);
    loop {
        sleep(POLL_EVERY).await;
        let inspected = path.clone();
        let inspect = pool.run(move || Fingerprint::of(&inspected));
        if let Ok(now) = timeout(POLL_EVERY, inspect).await
            && now != seen
        {
            seen = now;
            on_change();
        }
    }
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
    use std::{os::unix::fs::symlink, sync::Arc};

    use tokio::sync::Notify;

    use super::*;

    /// Asserts that polling `path` reports `change`, and nothing while nothing changes.
    async fn assert_noticed(path: &Path, change: impl FnOnce()) {
        let changed = Arc::new(Notify::new());
        let notified = Arc::clone(&changed);
        let on_change: ChangeCallback = Arc::new(move || notified.notify_one());
        let _polling = poll(path, &on_change);
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
}
