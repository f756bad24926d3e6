//! Users and groups of this machine, by name.

/// Returns a user's id, if the machine has a user of this name.
/// The id by which the kernel shows users and groups that are not mapped into this process's user
/// namespace (user_namespaces(7), `/proc/sys/kernel/overflowuid`).
pub(super) const UNMAPPED: u32 = 65_534;

pub(super) fn user_id(name: &str) -> Option<u32> {
    uzers::get_user_by_name(name).map(|user| user.uid())
}

/// Returns a group's id, if the machine has a group of this name.
pub(super) fn group_id(name: &str) -> Option<u32> {
    uzers::get_group_by_name(name).map(|group| group.gid())
}
