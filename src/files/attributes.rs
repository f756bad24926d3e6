//! Files that are written for another user.

use std::{
    fs::{File, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt, fchown},
};

/// What [`give`] sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// The group. A process can give its files to the groups that it is a member of.
    Group,
    /// The permission bits.
    Mode,
    /// The owner, which requires root or CAP_CHOWN.
    Owner,
}

/// Sets the group, mode and owner of a file or folder; `None` leaves one unchanged. The owner comes
/// last, because a process without CAP_FOWNER can't change the mode of what it doesn't own.
///
/// # Errors
/// What can't be set, and the system's error.
pub fn give(
    file: &File,
    group: Option<u32>,
    mode: u32,
    owner: Option<u32>,
) -> Result<(), (Attribute, io::Error)> {
    let failed = |attribute| move |error| (attribute, error);
    let present = file.metadata().map_err(failed(Attribute::Mode))?;
    if group.is_some_and(|group| group != present.gid()) {
        fchown(file, None, group).map_err(failed(Attribute::Group))?;
    }
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(failed(Attribute::Mode))?;
    if owner.is_some_and(|owner| owner != present.uid()) {
        fchown(file, owner, None).map_err(failed(Attribute::Owner))?;
    }
    Ok(())
}

/// Runs `test` as root with no capability but CAP_CHOWN, which permits neither to change the mode
/// of another user's file nor to read it. Does nothing without that capability.
#[cfg(test)]
pub(crate) fn with_only_cap_chown(test: fn()) {
    use rustix::{
        process::geteuid,
        thread::{CapabilitySet, capabilities, set_capabilities},
    };

    let keep = CapabilitySet::CHOWN;
    let restricted = move || {
        let mut sets = capabilities(None).expect("capabilities");
        if !geteuid().is_root() || !sets.effective.contains(keep) {
            return;
        }
        (sets.effective, sets.permitted, sets.inheritable) = (keep, keep, CapabilitySet::empty());
        set_capabilities(None, sets).expect("fewer capabilities");
        test();
    };
    // Capabilities belong to a thread.
    std::thread::spawn(restricted).join().expect("passed");
}
