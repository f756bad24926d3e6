//! Reaping orphans, as the first process of a container must.

use std::{collections::HashSet, fs, io, time::Duration};

use rustix::process::{Pid, WaitId, WaitIdOptions, getpid, waitid};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

/// How long an ended child is left to its owner: a command's task, or a library that runs a program
/// of its own, waits for the children that it started.
const CLAIM_TIME: Duration = Duration::from_secs(1);

/// Reaps children that are not this process's own, if it is the first one of its PID namespace: the
/// kernel gives it every process whose parent has ended, and keeps an entry for each that has ended
/// until it is waited for.
///
/// # Errors
/// Fails if the system refuses the handler of SIGCHLD.
pub fn reap_orphans() -> io::Result<()> {
    if !getpid().is_init() {
        return Ok(());
    }
    let mut child_ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        let mut unclaimed = Unclaimed::default();
        while child_ended.recv().await.is_some() {
            unclaimed.examine(ended_children());
            while !unclaimed.0.is_empty() {
                sleep(CLAIM_TIME).await;
                for orphan in unclaimed.examine(ended_children()) {
                    reap(orphan);
                }
            }
        }
    });
    Ok(())
}

/// The ended children that no one had waited for when they were last examined.
#[derive(Default)]
struct Unclaimed(HashSet<Pid>);

impl Unclaimed {
    /// Returns those of `ended` that had already been there. An id isn't reused before its process
    /// is waited for.
    fn examine(&mut self, ended: HashSet<Pid>) -> HashSet<Pid> {
        let (orphans, new) = ended.into_iter().partition(|pid| self.0.contains(pid));
        self.0 = new;
        orphans
    }
}

fn ended_children() -> HashSet<Pid> {
    let mut children = children();
    children.retain(|pid| is_ended(*pid, WaitIdOptions::NOWAIT));
    children
}

/// The children of all threads (proc_pid_task_children(5)).
fn children() -> HashSet<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .filter_map(|pid| Pid::from_raw(pid.ok()?))
        .collect()
}

fn reap(pid: Pid) {
    // If its owner was faster, nothing is left to do.
    is_ended(pid, WaitIdOptions::empty());
}

fn is_ended(pid: Pid, options: WaitIdOptions) -> bool {
    let options = options | WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    matches!(waitid(WaitId::Pid(pid), options), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn an_ended_child_is_an_orphan_once_it_was_left_for_a_while() {
        let [own, orphan, late] = [2, 3, 4].map(|pid| Pid::from_raw(pid).expect("positive"));
        let mut unclaimed = Unclaimed::default();
        assert!(unclaimed.examine(HashSet::from([own, orphan])).is_empty());
        // Its owner has waited for one, and another one has ended.
        let orphans = unclaimed.examine(HashSet::from([orphan, late]));
        assert_eq!(orphans, HashSet::from([orphan]));
        assert_eq!(
            unclaimed.examine(HashSet::from([late])),
            HashSet::from([late])
        );
        assert!(unclaimed.0.is_empty());
    }

    #[test]
    fn looking_for_ended_children_reaps_none() {
        let mut child = Command::new("true").spawn().expect("spawn");
        let pid = Pid::from_child(&child);
        assert!(children().contains(&pid));
        while !ended_children().contains(&pid) {
            std::thread::yield_now();
        }
        assert!(child.wait().expect("still there").success());
        assert!(!children().contains(&pid));
    }
}
