//! Key memory: locked into RAM where the limit allows, excluded from core dumps, and zeroized on
//! drop. Also the process settings that keep other processes from reading it.

use std::{
    io,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use memmap2::{Advice, MmapMut};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use zeroize::Zeroize;

static LOCKED: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);

/// A private mapping that is filled once and then only read.
pub(super) struct LockedBlock {
    map: MmapMut,
    locked: bool,
}

impl LockedBlock {
    /// Maps `len` bytes and fills them. If the kernel refuses to lock them, they are counted as
    /// unlocked (see [`lock_report`]) and used anyway.
    pub(super) fn new(len: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(len)?;
        // Before the first key byte is written, so that none reaches swap or a core dump.
        let locked = map.lock().is_ok();
        map.advise(Advice::DontDump)?;
        if locked { &LOCKED } else { &UNLOCKED }.fetch_add(pages(len), Ordering::Relaxed);
        fill(&mut map);
        Ok(Self { map, locked })
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.map[range]
    }
}

impl Drop for LockedBlock {
    fn drop(&mut self) {
        self.map.zeroize();
        if self.locked { &LOCKED } else { &UNLOCKED }
            .fetch_sub(pages(self.map.len()), Ordering::Relaxed);
    }
}

/// The size of a mapping of `len` bytes in whole pages, which is what the kernel's limit counts.
fn pages(len: usize) -> usize {
    len.next_multiple_of(rustix::param::page_size())
}

/// How much key memory is locked into RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockReport {
    /// Bytes of locked key memory, in whole pages.
    pub locked: usize,
    /// Bytes of key memory that the kernel refused to lock, in whole pages.
    pub unlocked: usize,
    /// The process's limit (`RLIMIT_MEMLOCK`) in bytes; `None` means unlimited.
    pub limit: Option<u64>,
}

/// Returns how much key memory of this process is locked now.
pub fn lock_report() -> LockReport {
    LockReport {
        locked: LOCKED.load(Ordering::Relaxed),
        unlocked: UNLOCKED.load(Ordering::Relaxed),
        limit: getrlimit(Resource::Memlock).current,
    }
}

/// Disables core dumps, and keeps other processes of the same user from attaching to this one.
///
/// # Errors
/// The kernel refuses, which no known kernel does.
pub fn harden_process() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    hide_process()
}

/// Like [`harden_process`], but without a resource limit, which child processes would inherit.
///
/// # Errors
/// The kernel refuses, which no known kernel does.
pub fn hide_process() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_its_contents() {
        let block = LockedBlock::new(64, |bytes| bytes.fill(7)).expect("map");
        assert_eq!(block.bytes(32..64), [7; 32]);
    }
}
