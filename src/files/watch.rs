//! Watches files, by events and by polling. One watcher of events serves the whole process: the
//! kernel limits the number per user (`fs.inotify.max_user_instances`).

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::{folder_of, poll::poll};

/// Called when something that is watched may have changed.
pub type ChangeCallback = Arc<dyn Fn() + Send + Sync>;

/// Ends a watch when it is dropped.
pub struct WatchGuard(
    #[expect(dead_code, reason = "held only to be dropped")] Box<dyn Send + Sync>,
);

impl WatchGuard {
    /// Returns a guard of a watch that ends when `held` is dropped.
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self(Box::new(held))
    }
}

/// Watches the file at `path` and, if it is or lies behind a symbolic link, the file that the link
/// leads to. For a folder, watches every file in it. Blocks.
///
/// Where the system reports no events, as of a folder that doesn't exist, a change is found within
/// seconds by polling. Ends the watch of the `former` guard, which this one replaces, only after it
/// has begun, so that no change in between is missed.
///
/// # Panics
/// Outside a Tokio runtime.
pub fn watch(path: &Path, former: Option<WatchGuard>, on_change: &ChangeCallback) -> WatchGuard {
    let target = fs::canonicalize(path).ok().filter(|target| target != path);
    let subscribe = |path: &Path| {
        if path.is_dir() {
            return subscribe(path, None, Arc::clone(on_change));
        }
        let name = path.file_name().unwrap_or_default();
        subscribe(folder_of(path), Some(name), Arc::clone(on_change))
    };
    let held = (
        subscribe(path).ok(),
        target.as_deref().and_then(|target| subscribe(target).ok()),
        poll(path, on_change),
    );
    drop(former);
    WatchGuard::new(held)
}

/// The current watcher; it ends with its last subscription.
static SHARED: Mutex<Weak<SharedWatcher>> = Mutex::new(Weak::new());

struct SharedWatcher {
    watcher: Mutex<RecommendedWatcher>,
    subscribers: Arc<Mutex<Subscribers>>,
}

#[derive(Default)]
struct Subscribers {
    by_folder: HashMap<PathBuf, BTreeMap<u64, Subscriber>>,
    last_id: u64,
}

struct Subscriber {
    /// `None` means every file in the folder.
    name: Option<OsString>,
    on_change: ChangeCallback,
}

/// Ends a subscription when it is dropped.
struct Subscription {
    shared: Arc<SharedWatcher>,
    folder: PathBuf,
    id: u64,
}

/// Calls `on_change` when the file `name` in `folder` may have changed, or any file if `name` is
/// `None`.
fn subscribe(
    folder: &Path,
    name: Option<&OsStr>,
    on_change: ChangeCallback,
) -> notify::Result<Subscription> {
    let shared = shared_watcher()?;
    // Locked over both steps, here and in `drop`, so that the end of one subscription doesn't
    // unwatch the folder of another one that has just started.
    let mut watcher = lock(&shared.watcher);
    let id = lock(&shared.subscribers).add(
        folder,
        Subscriber {
            name: name.map(OsStr::to_owned),
            on_change,
        },
    );
    // Watched again for each subscription, because the folder may have been replaced. The folder,
    // not the file: a rename replaces the file, and Kubernetes swaps the link `..data` beside it.
    let watched = watcher.watch(folder, RecursiveMode::NonRecursive);
    drop(watcher);
    // If watching failed, dropping this cleans up.
    let subscription = Subscription {
        shared,
        folder: folder.to_owned(),
        id,
    };
    watched.map(|()| subscription)
}

fn shared_watcher() -> notify::Result<Arc<SharedWatcher>> {
    let mut slot = lock(&SHARED);
    if let Some(shared) = slot.upgrade() {
        return Ok(shared);
    }
    let shared = Arc::new(SharedWatcher::new()?);
    *slot = Arc::downgrade(&shared);
    Ok(shared)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SharedWatcher {
    fn new() -> notify::Result<Self> {
        let subscribers = Arc::new(Mutex::new(Subscribers::default()));
        let notified = Arc::clone(&subscribers);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let subscribers = lock(&notified);
            for subscriber in subscribers.affected_by(event) {
                (subscriber.on_change)();
            }
        })?;
        Ok(Self {
            watcher: Mutex::new(watcher),
            subscribers,
        })
    }
}

impl Subscribers {
    fn add(&mut self, folder: &Path, subscriber: Subscriber) -> u64 {
        self.last_id += 1;
        self.by_folder
            .entry(folder.to_owned())
            .or_default()
            .insert(self.last_id, subscriber);
        self.last_id
    }

    /// Removes a subscriber. Returns whether it was the folder's last one.
    fn remove(&mut self, folder: &Path, id: u64) -> bool {
        let Some(subscribers) = self.by_folder.get_mut(folder) else {
            return false;
        };
        subscribers.remove(&id);
        let is_last = subscribers.is_empty();
        if is_last {
            self.by_folder.remove(folder);
        }
        is_last
    }

    fn affected_by(&self, event: notify::Result<Event>) -> Vec<&Subscriber> {
        match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => Vec::new(),
            Ok(event) if !event.need_rescan() => event
                .paths
                .iter()
                .flat_map(|path| self.affected_by_path(path))
                .collect(),
            // Events were lost: a spurious refresh is cheap, a missed one is not.
            Ok(_) | Err(_) => self.by_folder.values().flat_map(BTreeMap::values).collect(),
        }
    }

    fn affected_by_path(&self, path: &Path) -> impl Iterator<Item = &Subscriber> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let subscribers = path.parent().and_then(|folder| self.by_folder.get(folder));
        subscribers
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(move |subscriber| {
                subscriber
                    .name
                    .as_ref()
                    .is_none_or(|expected| *expected == name)
                    || name == "..data"
            })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watcher = lock(&self.shared.watcher);
        let is_last = lock(&self.shared.subscribers).remove(&self.folder, self.id);
        if is_last {
            // Fails only if the folder was removed, and with it the watch.
            let _ = watcher.unwatch(&self.folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, sync::mpsc, time::Duration};

    use super::*;

    /// Asserts that a watch of `file` reports `change`.
    fn assert_noticed(file: &Path, change: impl FnOnce()) {
        let (sender, events) = mpsc::channel();
        let on_change: ChangeCallback = Arc::new(move || {
            // No one waits for a second event.
            let _ = sender.send(());
        });
        // The runtime's only thread waits below, so nothing is polled.
        let _guard = watch(file, None, &on_change);
        change();
        let event = events.recv_timeout(Duration::from_secs(60));
        event.expect("the change is noticed");
    }

    // Each change has a folder of its own, so that no event of another one is left over.

    #[tokio::test]
    async fn a_write_in_place_is_noticed() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("demo.json");
        fs::write(&file, "one").expect("write");
        assert_noticed(&file, || fs::write(&file, "two").expect("write"));
    }

    #[tokio::test]
    async fn changes_of_a_kubernetes_volume_are_noticed() {
        let swap = |folder: &Path| {
            symlink("..2", folder.join("..data_tmp")).expect("link");
            fs::rename(folder.join("..data_tmp"), folder.join("..data")).expect("rename");
        };
        let replace = |folder: &Path| {
            fs::write(folder.join("other"), "two").expect("write");
            fs::rename(folder.join("other"), folder.join("demo.json")).expect("rename");
        };
        let write = |folder: &Path| {
            fs::write(folder.join("demo.json"), "two").expect("write");
        };
        let changes: [fn(&Path); 3] = [swap, replace, write];
        for change in changes {
            let folder = tempfile::tempdir().expect("folder");
            let at = |name: &str| folder.path().join(name);
            fs::create_dir(at("..1")).expect("folder");
            fs::write(at("..1/demo.json"), "one").expect("write");
            symlink("..1", at("..data")).expect("link");
            symlink("..data/demo.json", at("demo.json")).expect("link");
            assert_noticed(&at("demo.json"), || change(folder.path()));
        }
    }
}
