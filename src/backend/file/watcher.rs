//! One watcher for all manifests of a process: the kernel gives a user only so many (`fs.inotify.max_user_instances`).

use std::{
    collections::{BTreeMap, HashMap},
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use crate::backend::Changed;

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
    /// None stands for every file of the folder.
    name: Option<OsString>,
    changed: Changed,
}

/// Ends a subscription when it is dropped.
pub(super) struct Subscription {
    shared: Arc<Shared>,
    folder: PathBuf,
    id: u64,
}

/// Calls `changed` when the file `name` in `folder` may have changed; any file of it, if no name is given.
pub(super) fn subscribe(
    folder: &Path,
    name: Option<&OsStr>,
    changed: Changed,
) -> notify::Result<Subscription> {
    let mut slot = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = match slot.upgrade() {
        Some(shared) => shared,
        None => {
            let shared = Arc::new(Shared::new()?);
            *slot = Arc::downgrade(&shared);
            shared
        }
    };
    drop(slot);
    // Held over both steps, here and in `drop`, so that nobody's end takes away what somebody else has just begun to watch.
    let mut watcher = shared
        .watcher
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let id = shared
        .watched
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .add(
            folder,
            Subscriber {
                name: name.map(OsStr::to_owned),
                changed,
            },
        );
    // Again for every file, because the folder may be another one than it was. The folder, not the file: a rename replaces the
    // file, and Kubernetes swaps the link `..data` beside it.
    let begun = watcher.watch(folder, RecursiveMode::NonRecursive);
    drop(watcher);
    // Its drop cleans up if watching failed.
    let subscription = Subscription {
        shared,
        folder: folder.to_owned(),
        id,
    };
    begun.map(|()| subscription)
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
        Ok(Self {
            watcher: Mutex::new(watcher),
            watched,
        })
    }
}

impl Watched {
    fn add(&mut self, folder: &Path, subscriber: Subscriber) -> u64 {
        self.next += 1;
        self.folders
            .entry(folder.to_owned())
            .or_default()
            .insert(self.next, subscriber);
        self.next
    }

    /// Whether that was the folder's last subscriber.
    fn remove(&mut self, folder: &Path, id: u64) -> bool {
        let Some(subscribers) = self.folders.get_mut(folder) else {
            return false;
        };
        subscribers.remove(&id);
        let is_last = subscribers.is_empty();
        if is_last {
            self.folders.remove(folder);
        }
        is_last
    }

    fn concerned(&self, event: notify::Result<Event>) -> Vec<&Subscriber> {
        match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => Vec::new(),
            Ok(event) if !event.need_rescan() => event
                .paths
                .iter()
                .flat_map(|path| self.concerned_with(path))
                .collect(),
            // When events were lost: a refresh too many is cheap, one too few is not.
            Ok(_) | Err(_) => self.folders.values().flat_map(BTreeMap::values).collect(),
        }
    }

    fn concerned_with(&self, path: &Path) -> impl Iterator<Item = &Subscriber> {
        let name = path.file_name().unwrap_or_default().to_owned();
        let subscribers = path.parent().and_then(|folder| self.folders.get(folder));
        subscribers
            .into_iter()
            .flat_map(BTreeMap::values)
            .filter(move |subscriber| {
                subscriber
                    .name
                    .as_ref()
                    .is_none_or(|wanted| *wanted == name)
                    || name == "..data"
            })
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut watcher = self
            .shared
            .watcher
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_last = self
            .shared
            .watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.folder, self.id);
        if is_last {
            // A folder that is gone isn't watched any more anyway.
            let _ = watcher.unwatch(&self.folder);
        }
    }
}
