//! One watcher for all manifests of a process: the kernel gives a user only so many (`fs.inotify.max_user_instances`).

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

type Callback = Box<dyn Fn() + Send + Sync>;

/// The watcher that is in use, if any is.
static SHARED: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

struct Shared {
    watcher: Mutex<RecommendedWatcher>,
    watched: Arc<Mutex<Watched>>,
}

#[derive(Default)]
struct Watched {
    folders: HashMap<PathBuf, BTreeMap<u64, Subscriber>>,
    next: u64,
}

struct Subscriber {
    name: OsString,
    changed: Callback,
}

/// Ends a subscription when it is dropped.
pub(super) struct Subscription {
    shared: Arc<Shared>,
    folder: PathBuf,
    id: u64,
}

/// Calls `changed` when the file `name` in `folder` may have changed.
pub(super) fn subscribe(folder: &Path, name: &OsStr, changed: Callback) -> notify::Result<Subscription> {
    let mut slot = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = match slot.upgrade() {
        Some(shared) => shared,
        None => {
            let shared = Arc::new(Shared::new()?);
            *slot = Arc::downgrade(&shared);
            shared
        }
    };
    let id = {
        let mut watched = shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.next += 1;
        let id = watched.next;
        let subscriber = Subscriber { name: name.to_owned(), changed };
        watched.folders.entry(folder.to_owned()).or_default().insert(id, subscriber);
        id
    };
    // From here on, dropping it cleans up.
    let subscription = Subscription { shared: Arc::clone(&shared), folder: folder.to_owned(), id };
    // Again for every file, because the folder may be another one than it was. The folder, not the file: a rename replaces the
    // file, and Kubernetes swaps the link `..data` beside it.
    let mut watcher = shared.watcher.lock().unwrap_or_else(PoisonError::into_inner);
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    drop(watcher);
    Ok(subscription)
}

impl Shared {
    fn new() -> notify::Result<Self> {
        let watched = Arc::new(Mutex::new(Watched::default()));
        let told = Arc::clone(&watched);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            let watched = told.lock().unwrap_or_else(PoisonError::into_inner);
            for subscriber in watched.concerned(event) {
                (subscriber.changed)();
            }
        })?;
        Ok(Self { watcher: Mutex::new(watcher), watched })
    }
}

impl Watched {
    fn concerned(&self, event: notify::Result<Event>) -> Vec<&Subscriber> {
        match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => Vec::new(),
            Ok(event) if !event.need_rescan() => event.paths.iter().flat_map(|path| self.concerned_with(path)).collect(),
            // When events were lost: a refresh too many is cheap, one too few is not.
            Ok(_) | Err(_) => self.folders.values().flat_map(BTreeMap::values).collect(),
        }
    }

    fn concerned_with(&self, path: &Path) -> impl Iterator<Item = &Subscriber> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let subscribers = path.parent().and_then(|folder| self.folders.get(folder));
        subscribers.into_iter().flat_map(BTreeMap::values).filter(move |subscriber| subscriber.name == name || name == "..data")
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let is_last = {
            let mut watched = self.shared.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(subscribers) = watched.folders.get_mut(&self.folder) else { return };
            subscribers.remove(&self.id);
            let is_last = subscribers.is_empty();
            if is_last {
                watched.folders.remove(&self.folder);
            }
            is_last
        };
        if is_last {
            // A folder that is gone isn't watched any more anyway.
            let _ = self.shared.watcher.lock().unwrap_or_else(PoisonError::into_inner).unwatch(&self.folder);
        }
    }
}
