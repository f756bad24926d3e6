//! Memory that is locked against swapping where the limit allows, left out of core dumps, and zeroized when it is dropped.

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

/// A private mapping that is written once, while it is built, and read from then on.
pub(super) struct LockedBlock {
    map: MmapMut,
    locked: bool,
}

impl LockedBlock {
    /// A block of `len` bytes, filled by `fill`. A refused lock is counted (see [`lock_report`]) and costs nothing else.
    pub(super) fn new(len: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Self> {
        let mut map = MmapMut::map_anon(len)?;
        // Before the first key byte is written, so that none can reach swap or a dump.
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

/// What a mapping of `len` bytes takes, which is what the kernel's limit counts.
fn pages(len: usize) -> usize {
    len.next_multiple_of(rustix::param::page_size())
}

/// How much key memory is locked against swapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LockReport {
    /// Bytes of locked key memory, in whole pages.
    pub locked: usize,
    /// Bytes of key memory that the kernel refused to lock, in whole pages.
    pub unlocked: usize,
    /// The process's limit (RLIMIT_MEMLOCK) in bytes; `None` is unlimited.
    pub limit: Option<u64>,
}

/// What is locked now, in the whole process.
pub fn lock_report() -> LockReport {
    LockReport {
        locked: LOCKED.load(Ordering::Relaxed),
        unlocked: UNLOCKED.load(Ordering::Relaxed),
        limit: getrlimit(Resource::Memlock).current,
    }
}

/// Forbids core dumps of this process and attaching to it by other processes of the same user.
///
/// # Errors
/// The kernel's refusal, which no known kernel gives.
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

/// The same without a limit: programs that this process starts inherit nothing of it.
///
/// # Errors
/// The kernel's refusal, which no known kernel gives.
pub fn hide_process() -> io::Result<()> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_keeps_what_it_was_filled_with() {
        let block = LockedBlock::new(64, |bytes| bytes.fill(7)).expect("map");
        assert_eq!(block.bytes(32..64), [7; 32]);
    }
}
